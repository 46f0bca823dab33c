"""Two simulated Rome hosts, guests of theirs that go from one to the other, and who may stand in between."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sev.abi.kvm_run import HALT, PortWrite
from sev.certs.sev_roots import SevRoots
from sev.client import Host
from sev.errors import SevError
from tests.support.daemon import Daemon, running
from tests.support.needs import need_kvm
from tests.support.service import Service, served_service
from tests.support.tiny_firmware import DEBUG_PORT


@pytest.fixture(scope="module")
def daemons_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons whose guests are in their own process."""
    with ExitStack() as stack:
        made = [
            stack.enter_context(running(tmp_path_factory.mktemp(name), "--simulate=rome")) for name in ("here", "there")
        ]
        yield made[0], made[1]


@pytest.fixture
def hosts(daemons_two: tuple[Daemon, Daemon]) -> Iterator[tuple[Host, Host]]:
    """Their clients; guests are deleted afterwards."""
    with daemons_two[0].connect() as source, daemons_two[1].connect() as target:
        yield source, target
        for host in (source, target):
            for guest in host.guests():
                host.delete_guest(guest.guest_id)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """Two daemons whose guests run on the real KVM, each with a simulator of its own."""
    need_kvm()
    with ExitStack() as stack:
        made = [
            stack.enter_context(served_service(tmp_path_factory.mktemp(name), "rome")) for name in ("source", "target")
        ]
        yield made[0], made[1]


def roots(host: Host) -> SevRoots:
    """A host's own."""
    return SevRoots.of(host.export_platform().authorities)


def launched(host: Host, content: bytes, policy: int = 0) -> str:
    """A launched SEV guest whose memory is this, all of it its own."""
    guest = host.create_guest(
        guest_type="sev", memory_bytes=len(content), firmware_bytes=0, vcpu_count=1, cpuid_signature=0x830F10
    ).guest_id
    host.load_memory(guest, [(0, content)])
    host.start_launch(guest, policy=policy)
    host.update_launch(guest, [(0, len(content), 1)])
    host.measure_guest(guest)
    host.finish_launch(guest)
    return guest


def printed(host: Host, guest: str, halts: int) -> bytes:
    """What a guest prints until it halts for the n-th time; that halt is not completed."""
    out = b""
    with host.run_guest(guest) as run:
        for found in run:
            if found.what == HALT:
                halts -= 1
                if not halts:
                    break
                run.complete(found)
                continue
            assert isinstance(found.what, PortWrite), found
            assert found.what.port == DEBUG_PORT
            out += found.what.data
            run.complete(found)
    return out


class Between:
    """A host as a migration sees it, with somebody in between who hands every call on, or does not."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def run(self, operation: Any) -> Any:
        """Runs an operation of the library, with every call of it through `hand_on`."""
        return self._host.run(self._relayed(operation))

    def hand_on(self, call: Any) -> Generator[Any, Any, Any]:
        """One call; its answer. What is raised here, the operation sees as the call's failure."""
        return (yield call)

    def _relayed(self, operation: Any) -> Generator[Any, Any, Any]:
        step, given = operation.send, None
        while True:
            try:
                call = step(given)
            except StopIteration as end:
                return end.value
            try:
                step, given = operation.send, (yield from self.hand_on(call))
            except SevError as error:
                step, given = operation.throw, error
