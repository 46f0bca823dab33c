"""Guests that run, end to end: a daemon on the real /dev/kvm, workers, both clients, and whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sev import aio
from sev.abi.kvm_run import HALT, Exit, PortRead, PortWrite
from sev.client import Host
from sev.client_run import GuestRun
from sev.errors import NotFound, NotNow, NotOffered, SevError, UsageError, WrongState
from sev.running import GuestExit, wanted
from tests.support import real_mode as rm
from tests.support.daemon import Daemon, running
from tests.support.plain_host import descendants, launch, plain_host


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with plain_host(tmp_path_factory.mktemp("run")) as it:
        yield it


@pytest.fixture
def host(daemon: Daemon) -> Iterator[Host]:
    """A client; whatever guests a test leaves are deleted, and all that was theirs must be gone."""
    with daemon.connect() as connected:
        yield connected
        for guest in connected.guests():
            connected.delete_guest(guest.guest_id, confirm=True)


def answered(what: Exit) -> bytes:
    return b"\x5a" * wanted(what)


def state(host: Host, guest_id: str, expected: str) -> None:
    """Waits for a state."""
    until = time.monotonic() + 10
    while (found := host.guest(guest_id).state) != expected:
        assert time.monotonic() < until, found
        time.sleep(0.01)


def test_a_guest_prints_reads_and_halts(host: Host) -> None:
    guest = launch(host, rm.text(0x3F8, b"hi") + rm.read(0x60) + rm.echo(0xE9) + rm.HLT)
    seen = []
    with host.run_guest(guest) as run:
        assert run.state is not None
        assert (run.state.state, host.guest(guest).state) == ("running", "running")
        for found in run:
            seen.append(found.what)
            if found.what == HALT:
                break
            run.complete(found, answered(found.what))
    assert seen == [
        PortWrite(0x3F8, 1, b"h"), PortWrite(0x3F8, 1, b"i"), PortRead(0x60, 1, 1), PortWrite(0xE9, 1, b"\x5a"), HALT,
    ]  # fmt: skip
    assert (run.state.state, host.guest(guest).state) == ("paused", "paused")
    with host.run_guest(guest) as run:
        assert next(run).what == HALT  # it was not completed: it comes again


def test_the_asyncio_client_runs_it_alike(daemon: Daemon, host: Host) -> None:
    guest = launch(host, rm.text(0x3F8, b"async") + rm.read(0x60) + rm.echo(0xE9) + rm.TRIPLE_FAULT)

    async def run() -> tuple[bytes, object]:
        printed = b""
        async with aio.connect(daemon.socket) as there, there.run_guest(guest, posted_writes=32) as running:
            async for found in running:
                if isinstance(found.what, PortWrite):
                    printed += found.what.data
                if "shutdown" not in str(found.document()["exit"]):
                    await running.complete(found, answered(found.what))
            return printed, running.state

    printed, last = asyncio.run(run())
    assert printed == b"async\x5a"
    assert getattr(last, "state", "") == "stopped"
    view = host.guest(guest)
    assert (view.state, "triple fault" in view.failure) == ("stopped", True)
    with pytest.raises(WrongState, match="STOPPED"):
        host.run_guest(guest)


def test_pause_from_elsewhere_ends_the_run_and_the_next_one_goes_on(daemon: Daemon, host: Host) -> None:
    guest = launch(host, rm.counter(0x61))
    last = 0
    for _ in range(5):
        with host.run_guest(guest, posted_writes=8) as run:
            for _ in range(30):
                found = next(run)
                assert isinstance(found.what, PortWrite)
                assert found.sequence == last + 1
                assert found.what.data[0] == last & 0xFF
                last = found.sequence
                run.complete(found)
            run.flush()
            with daemon.connect() as other:
                assert other.pause_guest(guest).state == "paused"
            for found in run:  # what was on its way
                assert found.sequence > last
        assert run.state is not None
        assert run.state.state == "paused"
    assert host.pause_guest(guest).state == "paused"


def test_pause_and_resume_within_a_run(host: Host) -> None:
    guest = launch(host, rm.FOREVER)
    with host.run_guest(guest) as run:
        run.pause()
        state(host, guest, "paused")
        run.resume()
        state(host, guest, "running")
        run.stop()
        assert list(run) == []
        assert run.state is not None
        assert (run.state.state, run.state.failed) == ("stopped", False)


def test_refusals(daemon: Daemon, host: Host) -> None:
    guest = launch(host, rm.FOREVER)
    with pytest.raises(WrongState, match="pause_guest"):
        host.pause_guest(guest)
    with pytest.raises(UsageError, match="posted_writes"):
        host.run_guest(guest, posted_writes=257)
    with pytest.raises(NotFound):
        host.run_guest("g-00000000000000000000")
    with host.run_guest(guest), daemon.connect() as other, pytest.raises(NotNow, match="another stream"):
        other.run_guest(guest)
    created = host.create_guest(
        guest_type="plain",
        memory_bytes=1 << 20,
        firmware_bytes=1 << 16,
        vcpu_count=1,
        cpuid_signature=0,
        vmsa_features=0,
    )
    with pytest.raises(WrongState, match="run_guest"):
        host.run_guest(created.guest_id)


def test_a_deletion_ends_a_run(daemon: Daemon, host: Host) -> None:
    guest = launch(host, rm.FOREVER)
    with host.run_guest(guest) as run, daemon.connect() as other:
        other.delete_guest(guest, confirm=True)
        with pytest.raises(NotFound, match="deleted"):
            next(run)


def test_watchers_and_events_see_it_run(daemon: Daemon, host: Host) -> None:
    guest = launch(host, rm.TRIPLE_FAULT)
    watch = host.watch_guests(guest)
    assert next(watch).state == "ready"
    with host.run_guest(guest) as run:
        assert [found.document()["exit"] for found in run] == ["shutdown"]
    states = [next(watch).state]
    while states[-1] != "stopped":
        states.append(next(watch).state)
    assert states in (["running", "stopped"], ["stopped"])  # a slow watcher misses what is between


def test_the_end_of_the_client_pauses_and_loses_nothing(daemon: Daemon, host: Host) -> None:
    guest = launch(host, rm.counter(0x3F8))
    entry = "from sev.cli.main import entry; entry()"
    command = [sys.executable, "-c", entry, "guest", "run", guest, "--socket", daemon.socket]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert client.stdout is not None
    head = client.stdout.read(300)
    client.kill()
    rest = client.stdout.read()
    client.wait()
    client.stdout.close()
    printed = head + rest
    assert printed == bytes(index & 0xFF for index in range(len(printed)))
    state(host, guest, "paused")
    with host.run_guest(guest) as run:
        found = next(run)
    assert isinstance(found.what, PortWrite)
    # What was printed and not yet completed comes again; nothing after it is missing.
    assert found.sequence <= len(printed) + 1
    assert found.what.data[0] == found.sequence - 1 & 0xFF


def test_a_worker_that_is_killed_takes_its_guest_and_no_other(daemon: Daemon, host: Host) -> None:
    mine = launch(host, rm.FOREVER)
    lost = launch(host, rm.FOREVER)
    run = host.run_guest(lost)
    workers = running_workers(daemon)
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    with pytest.raises(WrongState, match="lost"):
        next(run)
    state(host, lost, "lost")
    with host.run_guest(mine):
        assert host.guest(mine).state == "running"


def running_workers(daemon: Daemon) -> list[int]:
    """Workers whose guest runs, or has run: they have threads for vCPUs."""
    out = []
    for pid in descendants(daemon.process.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            threads = len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue
        if b"sevd.worker" in command and threads > 1:
            out.append(pid)
    return out


def test_rounds_leave_nothing_behind(daemon: Daemon, host: Host) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd")), len(descendants(daemon.process.pid))

    def once() -> None:
        guest = launch(host, rm.text(0x3F8, b"ok") + rm.HLT)
        with host.run_guest(guest, posted_writes=4) as run:
            assert [next(run).what for _ in range(3)][-1] == HALT
        host.delete_guest(guest, confirm=True)

    for _ in range(3):
        once()
    time.sleep(0.5)
    before = held()
    for _ in range(100):
        once()
    until = time.monotonic() + 10
    while held() != before and time.monotonic() < until:
        time.sleep(0.05)
    assert held() == before


def test_a_daemon_that_is_killed_leaves_the_guest_paused_for_the_next_one(tmp_path: Path) -> None:
    generator = random.Random(7)
    with ExitStack() as stack:
        folder = tmp_path / "d"
        daemon = stack.enter_context(plain_host(folder))
        with daemon.connect() as host:
            guest = launch(host, rm.counter(0x61))
        last = 0
        for _ in range(3):
            with daemon.connect() as host:
                run = host.run_guest(guest, posted_writes=4)
                for _ in range(generator.randrange(5, 200)):
                    found = next(run)
                    assert isinstance(found.what, PortWrite)
                    assert (found.sequence <= last + 1, found.what.data[0]) == (True, found.sequence - 1 & 0xFF)
                    last = found.sequence
                    run.complete(found)
                daemon.process.kill()
                daemon.process.wait()
                with pytest.raises(SevError):
                    last = drained(run, last)
            daemon = stack.enter_context(running(folder, "--config", str(folder / "sevd.toml")))
            with daemon.connect() as host:
                state(host, guest, "paused")
        with daemon.connect() as host:
            host.delete_guest(guest, confirm=True)


def drained(run: GuestRun, last: int) -> int:
    """The last sequence number that a run, which has no daemon any more, still has."""
    for found in run:
        last = found.sequence
        run.complete(found)
    return last


def test_the_simulator_of_the_daemon_does_not_execute(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    from sev.measurement.sample import sample_firmware
    from tests.support.daemon import chip

    with (
        running(tmp_path, "--simulate=genoa", chip=chip("genoa", tmp_path_factory)) as daemon,
        daemon.connect() as host,
    ):
        launched = host.launch_snp(sample_firmware())
        with pytest.raises(NotOffered, match="do not execute") as refused:
            host.run_guest(launched.guest.guest_id)
        assert "--simulator" in refused.value.remedy
        assert host.guest(launched.guest.guest_id).state == "ready"
        host.delete_guest(launched.guest.guest_id, confirm=True)


def test_exits_name_themselves() -> None:
    assert GuestExit(1, 2, PortWrite(0x3F8, 1, b"A")).document() == {
        "vcpu": 1, "sequence": 2, "exit": "port_write", "port": 0x3F8, "size": 1, "data": "41",
    }  # fmt: skip
