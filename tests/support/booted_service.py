"""The service in a booted system: prepared, configured, crashed, called without pause, given a simulator."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sevd.install_units import PLAIN_USER
from tests.support.booted import PREFIX, Booted
from tests.support.simulated import template

PYTHON = f"{PREFIX}/venv/bin/python"
SOCKETS = ("sevd", "monitor", "admin", "fd")
UNITS = ("sevd.socket", "sevd-monitor.socket", "sevd-admin.socket", "sevd-fd.socket", "sevd-fetch.socket")
SIMULATED = '[simulation]\nproduct = "genoa"\n'
PLAIN = "[guests]\nplain = true\n"
WAIT_SECONDS = 30

CALLER = """
import sys, time, sev
until, calls, longest = time.monotonic() + float(sys.argv[1]), 0, 0.0
with sev.connect("/run/sevd/sevd.sock", timeout=20) as host:
    host.host()
    print("calling", flush=True)
    while time.monotonic() < until:
        begin = time.monotonic()
        host.host()
        longest = max(longest, time.monotonic() - begin)
        calls += 1
print(f"{calls} {longest:.3f}", flush=True)
"""


def prepared(booted: Booted, *, plain_user: bool) -> Iterator[Booted]:
    """The service new and stopped, with its sockets waiting; ended afterwards."""
    configure(booted, SIMULATED)
    for name, place in PLAIN_USER.items():
        dropin = Path(f"/proc/{booted.pid}/root/{place}")
        dropin.parent.mkdir(exist_ok=True)
        if plain_user:
            shutil.copy(Path(__file__).resolve().parents[2] / "systemd" / name, dropin)
        else:
            dropin.unlink(missing_ok=True)
    state = Path(f"/proc/{booted.pid}/root/var/lib/sevd")
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(template("genoa"), state / "simulator")
    state.chmod(0o700)
    if plain_user:
        booted.run("chown", "--recursive", "sevd:sevd", "/var/lib/sevd")
        if Path("/dev/kvm").exists():
            booted.run("chgrp", "kvm", "/dev/kvm")
            booted.run("chmod", "660", "/dev/kvm")
    booted.run("systemctl", "daemon-reload")
    # whatever an earlier test left: a socket that is there already would keep its owner
    booted.run("systemctl", "stop", "sevd.service", "sevd-fetch.service", *UNITS, check=False)
    booted.run("systemctl", "start", *UNITS)
    try:
        yield booted
    finally:
        booted.run("systemctl", "stop", "sevd.service", "sevd-fetch.service", *UNITS, check=False)
        booted.run("systemctl", "kill", "--signal=KILL", "sevd.service", check=False)  # workers, after a failure
        booted.run("systemctl", "reset-failed", check=False)


def outside(booted: Booted, path: str) -> Path:
    """A path of the system, as it is to be reached from here."""
    return Path(f"/proc/{booted.pid}/root{path}")


def configure(booted: Booted, text: str) -> None:
    booted.write("/etc/sevd/sevd.toml", text)


def wait_for(what: Callable[[], bool], why: str) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not what():
        assert time.monotonic() < until, why
        time.sleep(0.05)


def active(booted: Booted) -> bool:
    return booted.show("sevd.service", "ActiveState") == "active"


def main_pid(booted: Booted) -> str:
    return booted.show("sevd.service", "MainPID")


def crash(booted: Booted) -> None:
    """Kills the daemon, and waits for the next one."""
    before = main_pid(booted)
    booted.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "sevd.service")
    wait_for(lambda: main_pid(booted) not in (before, "0") and active(booted), "a crash is followed by a start")


def workers(booted: Booted) -> set[str]:
    return set(booted.run("pgrep", "-f", "sevd[.](daemon_)?worker", check=False).stdout.split())


@contextmanager
def calling(booted: Booted, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A client that calls without pause for so long; it has begun."""
    with subprocess.Popen(
        ["nsenter", f"--target={booted.pid}", "--mount", "--pid", "--", PYTHON, "-c", CALLER, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "calling\n"
            yield process
        finally:
            process.kill()


def outcome(process: subprocess.Popen[str]) -> tuple[int, float]:
    """(calls, longest in seconds) of a client; fails if one of its calls did."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    calls, longest = out.split()
    return int(calls), float(longest)


def holds_a_vm(booted: Booted, pid: str) -> bool:
    return "kvm-vm" in booted.run("ls", "-l", f"/proc/{pid}/fd", check=False).stdout


def simulator(booted: Booted) -> None:
    """A sevd-simulator of the system, that the configuration names."""
    shutil.copytree(template("genoa"), Path(f"/proc/{booted.pid}/root/var/lib/simulated/simulator"), dirs_exist_ok=True)
    booted.run(
        "systemd-run",
        "--unit=simulator",
        "sevd-simulator",
        "--state-dir=/var/lib/simulated",
        "--device-dir=/run/simulated",
    )
    files = Path(f"/proc/{booted.pid}/root/run/simulated")
    wait_for(lambda: (files / "control.sock").exists() and (files / "sev").is_symlink(), "the simulator starts")
    configure(booted, '[simulation]\ndirectory = "/run/simulated"\n')


def fault(booted: Booted, spec: str) -> None:
    """Injects a fault into the system's simulator."""
    _control(booted, "control.fault(sys.argv[1])", spec)


def faults_that_happened(booted: Booted) -> int:
    """How often faults that were injected have happened; one that delays a command has as soon as it begins."""
    return int(_control(booted, "print(sum(one['happened'] for one in control.call('faults')['faults']))"))


def _control(booted: Booted, statement: str, *arguments: str) -> str:
    program = (
        "import sys; from pathlib import Path; from sevd.simulator.control_client import ControlClient\n"
        f"with ControlClient.connect(Path('/run/simulated/control.sock')) as control: {statement}"
    )
    return booted.run(PYTHON, "-c", program, *arguments).stdout
