"""Guests in workers through the real daemon, on the real KVM: whatever is killed, nothing leaks and the rest goes on."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sev
from sev.client import Host
from sev.errors import NotFound, NotPermitted, SevError, WrongState
from tests.support.needs import need_kvm, need_root
from tests.support.workers import descriptors, gone, status

START_SECONDS = 30
FIRMWARE_GPA = (4 << 30) - 65536


class Service:
    """A daemon that admits plain guests, and is started again as often as one likes, on the same state."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = str(folder / "s")
        self._options = options
        (folder / "sevd.toml").write_text("[guests]\nplain = true\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        paths = ["--config", f"{self.folder}/sevd.toml", "--socket", self.socket, "--state-dir", f"{self.folder}/state"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sevd", *paths, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(SevError), self.connect(timeout=0.5) as host:
                host.host()
                return
            if time.monotonic() > until or self.process.poll() is not None:
                pytest.fail(f"sevd does not start: {self.log()[-2000:]}")
            time.sleep(0.02)

    def connect(self, *, timeout: float = 10) -> Host:
        return sev.connect(self.socket, timeout=timeout)

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(20)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def workers(self) -> list[int]:
        """Processes of workers that have a guest: each has its folder open."""
        out = []
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError):
                    if any(
                        target.startswith(f"{self.folder}/state/workers/") for target in descriptors(int(name)).values()
                    ):
                        out.append(int(name))
        return out

    def end(self) -> None:
        """Deletes every guest, stops, and fails if anything is left."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.start()
        with self.connect() as host:
            for guest in host.guests():
                host.delete_guest(guest.guest_id, confirm=True)
        self.kill(signal.SIGTERM)
        assert self.workers() == []
        assert os.listdir(self.folder / "state" / "workers") == []


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    need_kvm()
    made = Service(tmp_path)
    made.start()
    try:
        yield made
    except BaseException:
        for pid in made.workers():
            os.kill(pid, signal.SIGKILL)
        raise
    made.end()


def create(host: Host, guest_id: str = "", **changes: object) -> str:
    fields: dict[str, object] = {
        "guest_type": "plain",
        "memory_bytes": 8 << 20,
        "firmware_bytes": 65536,
        "vcpu_count": 1,
        "cpuid_signature": 0,
        "vmsa_features": 0,
        "guest_id": guest_id,
    }
    return host.create_guest(**{**fields, **changes}).guest_id  # type: ignore[arg-type]


def launch(host: Host, guest_id: str = "") -> str:
    made = create(host, guest_id)
    host.load_memory(made, [(0x1000, b"content"), (FIRMWARE_GPA, b"\xf4" * 65536)])
    host.start_launch(made, policy=0)
    host.finish_launch(made)
    return made


def worker_of(service: Service, before: list[int]) -> int:
    (pid,) = set(service.workers()) - set(before)
    return pid


def test_a_plain_guest_is_refused_unless_the_configuration_admits_it(tmp_path: Path) -> None:
    need_kvm()
    service = Service(tmp_path)
    (tmp_path / "sevd.toml").write_text("")
    service.start()
    with service.connect() as host, pytest.raises(SevError) as refused:
        create(host)
    assert isinstance(refused.value, NotPermitted) or refused.value.exit_code == 6
    service.kill(signal.SIGTERM)


def test_a_plain_guest_is_marked_as_unprotected(service: Service) -> None:
    with service.connect() as host:
        guest = host.guest(launch(host))
        assert (guest.type, guest.state, guest.protected, guest.simulated) == ("plain", "ready", False, False)
        assert guest.launch_digest == b""
        with pytest.raises(SevError) as missing:
            host.create_guest(memory_bytes=1 << 20, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0xA00F11)
        assert "/dev/sev" in missing.value.message


def test_rounds_leave_everything_where_it_was(service: Service) -> None:
    assert service.process is not None
    pid = service.process.pid

    def held() -> tuple[list[str], str, list[int]]:
        names = sorted(name.split(":")[0] for name in descriptors(pid).values())
        return names, status(pid)["Threads"], service.workers()

    with service.connect() as host:
        for _ in range(3):
            host.delete_guest(launch(host), confirm=True)
        time.sleep(0.5)
        before, memory = held(), int(status(pid)["VmRSS"].split()[0])
        for _ in range(20):
            host.delete_guest(launch(host), confirm=True)
        until = time.monotonic() + 5
        while held() != before and time.monotonic() < until:
            time.sleep(0.05)
        assert held() == before
        assert int(status(pid)["VmRSS"].split()[0]) - memory < 4096  # KiB


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_daemon_that_starts_again_finds_its_guests(service: Service, number: int) -> None:
    with service.connect() as host:
        ids = [launch(host, "first-guest"), create(host, "second-guest", label="mine")]
        host.start_launch("second-guest", policy=0)
        before = [host.guest(one) for one in ids]
    pids = service.workers()
    service.kill(number)
    assert service.workers() == pids
    service.start()
    with service.connect() as host:
        assert [host.guest(one) for one in ids] == before
        assert [guest.guest_id for guest in host.guests()] == ids
        with host.map_memory("first-guest") as memory, memory.view(0x1000, 7) as view:
            assert bytes(view) == b"content"
        assert host.finish_launch("second-guest").state == "ready"
        with pytest.raises(SevError):
            create(host, "first-guest")
    assert service.workers() == pids
    if number == signal.SIGTERM:
        assert "the daemon ends and its guests do not: workers=2" in service.log()


def test_a_worker_that_is_killed_loses_its_guest_and_nothing_else(service: Service) -> None:
    with service.connect() as host:
        create(host, "first-guest")
        pid = worker_of(service, [])
        create(host, "second-guest")
        watch = host.watch_guests("first-guest")
        assert next(watch).state == "created"
        os.kill(pid, signal.SIGKILL)
        lost = next(watch)
        assert (lost.state, lost.failure) == ("lost", "its worker process was killed by SIGKILL")
        assert host.guest("second-guest").state == "created"
        with pytest.raises(SevError):
            host.start_launch("first-guest", policy=0)
        host.delete_guest("first-guest", confirm=True)
        assert len(os.listdir(service.folder / "state" / "workers")) == 1
        with pytest.raises(NotFound):
            host.guest("first-guest")


def test_what_died_while_no_daemon_ran_is_told(service: Service) -> None:
    with service.connect() as host:
        create(host, "first-guest")
    (pid,) = service.workers()
    service.kill()
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    service.start()
    with service.connect() as host:
        guest = host.guest("first-guest")
        assert (guest.state, guest.failure) == ("lost", "its worker process ended while no daemon watched it")
    service.kill()
    service.start()
    with service.connect() as host:
        assert host.guest("first-guest") == guest
        host.delete_guest("first-guest", confirm=True)
    service.kill()
    service.start()
    with service.connect() as host, pytest.raises(NotFound):
        host.guest("first-guest")


OTHER = """
import os, sys
import sev, sev.client, sev.mapped_memory, sev.errors
with sev.connect("/nonexistent/s"):
    pass  # loads what a user without rights in this place could not
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
try:
    with sev.connect(sys.argv[1]) as host:
        host.map_memory(sys.argv[3]).close()
except sev.errors.SevError as error:
    print(type(error).__name__)
else:
    print("mapped")
"""


def _map_as_others(service: Service) -> None:
    for name in ("s", "s.fd"):
        (service.folder / name).chmod(0o666)

    def asked_by(uid: int, guest: str) -> str:
        command = [sys.executable, "-c", OTHER, service.socket, str(uid), guest]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with service.connect() as host:
        guest = launch(host)
        with host.map_memory(guest) as memory:
            memory.write(0x2000, b"written by the owner")
            assert [part[:2] for part in memory.layout] == [(0, 8 << 20), (FIRMWARE_GPA, 65536)]
        assert asked_by(61012, guest) == "NotFound"
        assert asked_by(61013, guest) == "NotPermitted"  # sees everybody's guests, not their memory
        assert asked_by(61014, guest) == "NotPermitted"


def test_memory_is_mapped_by_its_owner_alone(tmp_path: Path) -> None:
    need_kvm()
    need_root()
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    service = Service(tmp_path)
    with (tmp_path / "sevd.toml").open("a") as file:
        file.write('[access]\nlauncher_users = ["61012"]\nadmin_users = ["61013"]\n')
    service.start()
    try:
        _map_as_others(service)
    finally:
        service.end()
    audit = (tmp_path / "state" / "audit.jsonl").read_text()
    assert audit.count('"method":"Descriptors/Memory"') == 3


def storm(service: Service, kills: int, seed: int) -> None:
    """Kills daemon or worker at random moments of launches; afterwards every survivor is usable."""
    chance = random.Random(seed)
    for number in range(kills):
        guest_id = f"storm-{number:05}"
        target = chance.choice(["daemon", "worker"])
        steps = chance.randrange(6)
        moment = chance.random() * 0.02
        before = service.workers()
        killer = None
        with contextlib.suppress(SevError), service.connect(timeout=0.2) as host:
            if target == "daemon":
                # The kill falls into whatever step is under way by then.
                killer = subprocess.Popen(["sh", "-c", f"sleep {moment}; kill -9 {service.process.pid}"])  # type: ignore[union-attr]
            if steps > 0:
                create(host, guest_id)
                if target == "worker":
                    os.kill(worker_of(service, before), signal.SIGKILL)
            if steps > 1:
                host.load_memory(guest_id, [(0, bytes(1 << 20))])
            if steps > 2:
                host.start_launch(guest_id, policy=0)
            if steps > 3:
                host.finish_launch(guest_id)
            if steps > 4:
                host.delete_guest(guest_id, confirm=True)
        if killer is not None:
            killer.wait(10)
            assert service.process is not None
            service.process.wait(20)
            service.start()
        with service.connect() as host:
            for guest in host.guests():
                if guest.state in ("created", "launching", "ready"):
                    try:
                        with host.map_memory(guest.guest_id) as memory:
                            memory.write(0, b"usable")
                    except WrongState:  # its worker was killed, and the daemon heard of it just now
                        assert host.guest(guest.guest_id).state == "lost"
                host.delete_guest(guest.guest_id, confirm=True)
            assert host.guests() == []
        assert os.listdir(service.folder / "state" / "workers") == []
        gc.collect()
    assert service.workers() == []


def test_kills_at_random_points(service: Service) -> None:
    storm(service, 16, seed=4)


@pytest.mark.long
def test_many_kills_at_random_points(service: Service) -> None:
    storm(service, 500, seed=5)
