"""A hostile user and an honest one at the same daemon: what the honest one sees, and what stays behind. For root only.

`pytest -s` prints the figures. Latency is compared within one run: the p99 of the honest caller's calls while the
other one attacks, against the p99 of the same calls before and after. The daemon and the honest caller have a high
priority and the attacker a low one: what is measured is the daemon, not what else the machine does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from tests.support import hostile, needs
from tests.support.running import ROOT, Running, copy_state, running

ATTACKER, VICTIM = 61021, 61022
FACTOR = 3.0
TRIES = 4
"""A machine that does other things too may disturb a measurement: it is repeated, and once must be enough."""

MEMORY_MIB = 200.0
"""More than the daemon may grow by at any time: an identity's bytes in flight, and what serving it takes."""

GET_HOST = "/sev.v1.HostService/GetHost"

pytestmark = pytest.mark.root


class Use(NamedTuple):
    """What the daemon holds, and the most memory that it had since `forget`."""

    descriptors: int
    mib: float
    peak: float

    @classmethod
    def of(cls, pid: int) -> Use:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith("kB")}
        return cls(len(os.listdir(f"/proc/{pid}/fd")), sizes["VmRSS"], sizes["VmHWM"])

    @staticmethod
    def forget(pid: int) -> None:
        """The most memory is what there is now (proc_pid_clear_refs(5))."""
        Path(f"/proc/{pid}/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def daemon(simulated_state: Path) -> Iterator[Running]:
    needs.need_root()
    with tempfile.TemporaryDirectory(prefix="sevd-hostile-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        copy_state(simulated_state, folder)
        (folder / "c.toml").write_text(
            '[daemon]\nlog_level = "warning"\n[limits]\nbytes_in_flight = 67108864\n'
            f'[[identity]]\nmatch = "uid:{ATTACKER}"\nrole = "launcher"\n'
            f'[[identity]]\nmatch = "uid:{VICTIM}"\nrole = "launcher"\n'
        )
        with running(folder, "--simulate=genoa", "--config", f"{folder}/c.toml") as host:
            (folder / "s").chmod(0o666)
            favour(host.process.pid)
            yield host


VICTIM_PROGRAM = """
import json, os, sys, time
import grpc
uid, target, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
grpc.insecure_channel("unix:/nonexistent").close()  # loads what a user without rights in this place could not
os.nice(-15)
os.setgroups([]); os.setgid(uid); os.setuid(uid)
took, failed = [], []
with grpc.insecure_channel(target) as channel:
    call = channel.unary_unary("/sev.v1.HostService/GetHost")
    listing = channel.unary_unary("/sev.v1.GuestService/ListGuests")
    call(b"", timeout=30, wait_for_ready=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for one in (call, listing):
            begin = time.perf_counter()
            try:
                one(b"", timeout=30)
            except grpc.RpcError as error:
                failed.append(error.code().name)
            took.append(time.perf_counter() - begin)
            time.sleep(0.001)
print(json.dumps([took[10:], failed]))
"""


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}


def honest(target: str, seconds: float) -> list[float]:
    """Calls all the time; what each took, in seconds. None may fail."""
    arguments = [sys.executable, "-c", VICTIM_PROGRAM, str(VICTIM), target, str(seconds)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment(), cwd="/")
    took, failed = json.loads(done.stdout)
    assert failed == []
    return list(map(float, took))


def quantile(took: list[float], share: float) -> float:
    return sorted(took)[int(len(took) * share)] * 1000


def favour(pid: int) -> None:
    """High priority for every thread of a process."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.setpriority(os.PRIO_PROCESS, int(thread), -15)


def attack(host: Running, kind: str, seconds: float, seed: int, count: int) -> subprocess.Popen[str]:
    """Starts one."""
    command = [sys.executable, "-m", "tests.support.hostile", str(ATTACKER), f"{host.folder}/s", str(seconds), kind]
    command += [str(seed), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT)


def settled(host: Running, before: Use, seconds: float = 40) -> Use:
    """What the daemon holds when it has let go of everything."""
    until = time.monotonic() + seconds
    while True:
        now = Use.of(host.process.pid)
        if now.descriptors <= before.descriptors or time.monotonic() > until:
            return now
        time.sleep(0.2)


def endure(host: Running, kind: str, seconds: float, count: int) -> None:
    """One attack, with everything that must hold."""
    honest(f"unix:{host.folder}/s", 0.3)  # what is loaded at the first call is no leak
    before = settled(host, Use(0, 0, 0), 0.5)
    for attempt in range(TRIES):
        quiet = honest(host.target, seconds / 2)
        attacker = attack(host, kind, seconds + 1, attempt, count)
        Use.forget(host.process.pid)
        time.sleep(0.5)
        loud = honest(host.target, seconds)
        during = Use.of(host.process.pid)
        done = json.loads(attacker.communicate(timeout=120)[0])
        after = settled(host, before)
        quiet += honest(host.target, seconds / 2)
        ratio = quantile(loud, 0.99) / quantile(quiet, 0.99)
        print(
            f"\n{kind}: p99 {quantile(quiet, 0.99):.2f} ms quiet, {quantile(loud, 0.99):.2f} ms attacked ({ratio:.2f} x; "
            f"p50 {quantile(loud, 0.5) / quantile(quiet, 0.5):.2f} x; {len(loud)} calls); "
            f"memory {before.mib:.0f}, at most {after.peak:.0f}, then {after.mib:.0f} MiB; "
            f"descriptors {before.descriptors}, {during.descriptors}, {after.descriptors}; attacker: {done}"
        )
        assert host.process.poll() is None, host.log()[-2000:]
        assert after.peak - before.mib < MEMORY_MIB
        assert after.descriptors <= before.descriptors
        assert after.mib - before.mib < MEMORY_MIB / 2
        if ratio <= FACTOR:
            return
    pytest.fail(f"{kind}: the honest caller's p99 rose more than {FACTOR} times, {TRIES} times over")


@pytest.mark.parametrize("kind", ["crowd", "partial", "calls"])
def test_others_are_served_as_before(daemon: Running, kind: str) -> None:
    endure(daemon, kind, 1.4, 2000)


@pytest.mark.long
@pytest.mark.parametrize("kind", hostile.KINDS)
def test_others_are_served_as_before_for_long(daemon: Running, kind: str) -> None:
    import resource

    hard = max(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    endure(daemon, kind, 15.0, 10_000)


def test_the_daemon_still_serves_everybody(daemon: Running) -> None:
    with grpc.insecure_channel(daemon.target) as channel:
        call: Any = channel.unary_unary(GET_HOST)
        assert call(b"", timeout=10)
