"""SEV guests that go from one simulated host to another, and refusals after which they are whole where they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sev import status
from sev.abi import kvm_sev_legacy as abi
from sev.errors import FirmwareError, SevError, UsageError
from sev.launch import Sev, SevDevice
from sev.launch.sev_migration import BATCH, Page, Receiver, Sender
from sevd.simulator import Simulator
from tests.support.simulated import template

MEMORY = 1 << 20
CPU = 0x830F10
NOSEND, SEND_TO_SEV = 0x8, 0x20
CONTENT = b"".join(bytes([page & 0xFF]) * 4096 for page in range(MEMORY // 4096))


class Host:
    """One host, with a process on it."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.process: Any = simulator.process()

    def chain(self) -> tuple[bytes, bytes, bytes]:
        """PDH; PEK, OCA and the signed CEK; authorities."""
        with SevDevice(self.process, "/dev/sev") as device:
            pdh, chain = device.pdh_export()
        made = self.simulator.sev_certificates()
        return pdh, chain[: 2 * 2084] + made["cek"], made["authorities"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    import shutil

    with ExitStack() as stack:
        found = []
        for name, seed in (("source", None), ("target", 5)):
            folder = tmp_path_factory.mktemp(name)
            if seed is None:
                shutil.copytree(template("rome"), folder, dirs_exist_ok=True)
                simulator = Simulator.open(folder, product="rome", seed=1)
            else:
                simulator = Simulator.open(folder, product="rome", seed=seed)
            stack.callback(simulator.close)
            found.append(Host(simulator))
        yield found[0], found[1]


@pytest.fixture
def source(hosts: tuple[Host, Host]) -> Host:
    return hosts[0]


@pytest.fixture
def target(hosts: tuple[Host, Host]) -> Host:
    return hosts[1]


def created(host: Host) -> Sev:
    guest = Sev(host.process)
    guest.create(MEMORY, 0, 1, CPU)
    return guest


def launched(host: Host, policy: int = 0) -> Sev:
    guest = created(host)
    guest.memory(0, MEMORY)[:] = CONTENT
    guest.start(policy)
    guest.update(0, MEMORY)
    guest.measure()
    guest.finish()
    return guest


def state(guest: Sev) -> str:
    return abi.STATE_NAMES[guest.status().state]


def test_a_guest_goes_with_all_that_it_has(source: Host, target: Host) -> None:
    with launched(source) as here, created(target) as there, Sender(here) as sender, Receiver(there) as receiver:
        departure = sender.start(*target.chain())
        assert (departure.policy, len(departure.session)) == (0, 128)
        assert receiver.start(departure, source.chain()[0]) > 0
        for gpa in range(0, MEMORY, 4096):
            page = sender.page(gpa)
            assert page.data != CONTENT[gpa : gpa + 4096]
            receiver.page(gpa, page)
        receiver.finish()
        sender.finish()
        assert state(there) == "RUNNING"
        assert bytes(there.memory(0, 4096)) != CONTENT[:4096]
        assert there.debug_read(0, MEMORY) == CONTENT
        assert (there.machine.finished, here.machine.finished) == (True, False)
        with pytest.raises(FirmwareError):
            sender.cancel()


@pytest.mark.parametrize("part", ["header", "data"])
def test_a_packet_that_was_changed(source: Host, target: Host, part: str) -> None:
    with launched(source) as here, created(target) as there, Sender(here) as sender, Receiver(there) as receiver:
        receiver.start(sender.start(*target.chain()), source.chain()[0])
        page = sender.page(4096)
        changed = {"header": page.header, "data": page.data}
        changed[part] = changed[part][:-1] + bytes([changed[part][-1] ^ 1])
        with pytest.raises(FirmwareError) as refused:
            receiver.page(4096, Page(**changed))
        assert refused.value.firmware_status == status.BAD_MEASUREMENT
        receiver.page(4096, page)
        sender.cancel()
        assert state(here) == "RUNNING"
        assert here.debug_read(0, MEMORY) == CONTENT


def test_a_policy_that_keeps_it(source: Host, target: Host) -> None:
    with launched(source, NOSEND) as here, Sender(here) as sender:
        with pytest.raises(FirmwareError) as refused:
            sender.start(*target.chain())
        assert refused.value.firmware_status == status.POLICY_FAILURE
        assert state(here) == "RUNNING"
        assert here.debug_read(0, 4096) == CONTENT[:4096]


@pytest.mark.parametrize("which", ["another chip's CEK", "a changed PEK", "another root", "no chain"])
def test_a_chain_that_is_none(source: Host, target: Host, which: str) -> None:
    pdh, chain, authorities = target.chain()
    match which:
        case "another chip's CEK":
            chain = chain[: 2 * 2084] + source.chain()[1][2 * 2084 :]
        case "a changed PEK":
            chain = chain[:100] + bytes([chain[100] ^ 1]) + chain[101:]
        case "another root":
            authorities = os.urandom(len(authorities))
        case _:
            chain = b""
    with launched(source, SEND_TO_SEV) as here, Sender(here) as sender:
        with pytest.raises(SevError) as refused:  # the kernel itself refuses what is empty
            sender.start(pdh, chain, authorities)
        assert refused.value.exit_code == 6
        assert state(here) == "RUNNING"
        assert here.debug_read(0, MEMORY) == CONTENT


def test_a_session_for_another_platform(source: Host, target: Host) -> None:
    with launched(source) as here, created(source) as there, Sender(here) as sender, Receiver(there) as receiver:
        departure = sender.start(*target.chain())
        with pytest.raises(FirmwareError) as refused:
            receiver.start(departure, source.chain()[0])
        assert refused.value.firmware_status == status.BAD_MEASUREMENT
        sender.cancel()
        assert state(here) == "RUNNING"


def test_what_no_page_is(source: Host, target: Host) -> None:
    with launched(source) as here, created(target) as there, Sender(here) as sender, Receiver(there) as receiver:
        receiver.start(sender.start(*target.chain()), source.chain()[0])
        page = sender.page(0)
        for gpa in (8, MEMORY, 1 << 40):
            with pytest.raises(UsageError):
                sender.page(gpa)
            with pytest.raises(UsageError):
                receiver.page(gpa, page)
        for broken in (Page(page.header[:-1], page.data), Page(page.header, page.data[:-1]), Page(b"", b"")):
            with pytest.raises(UsageError):
                receiver.page(0, broken)


def test_a_guest_that_was_not_launched_goes_nowhere(source: Host, target: Host) -> None:
    with created(source) as here, Sender(here) as sender:
        here.start(0)
        with pytest.raises(FirmwareError) as refused:
            sender.start(*target.chain())
        assert refused.value.firmware_status == status.INVALID_GUEST_STATE


def test_many_pages_at_once_and_one_of_them_changed(source: Host, target: Host) -> None:
    with launched(source) as here, created(target) as there, Sender(here) as sender, Receiver(there) as receiver:
        receiver.start(sender.start(*target.chain()), source.chain()[0])
        gpas = list(range(0, BATCH * 4096, 4096))
        packets = sender.pages(gpas)
        assert len({packet.header for packet in packets}) == BATCH
        spoiled = Page(packets[5].header, packets[4].data)
        with pytest.raises(FirmwareError) as refused:
            receiver.pages([*zip(gpas[:5], packets, strict=False), (gpas[5], spoiled), (gpas[6], packets[6])])
        assert refused.value.firmware_status == status.BAD_MEASUREMENT
        # Those before it are there, those after it are not.
        assert bytes(there.memory(4 * 4096, 4096)) != bytes(4096)
        assert bytes(there.memory(5 * 4096, 2 * 4096)) == bytes(2 * 4096)
        receiver.pages(zip(gpas, packets, strict=True))
        receiver.finish()
        assert there.debug_read(0, BATCH * 4096) == CONTENT[: BATCH * 4096]
        sender.cancel()


@pytest.mark.parametrize(
    "call",
    [
        lambda sender, _: sender.pages(range(0, (BATCH + 1) * 4096, 4096)),
        lambda sender, _: sender.pages([0, 8]),
        lambda sender, _: sender.pages([0, MEMORY]),
        lambda _, receiver: receiver.pages([(0, Page(bytes(52), bytes(4096)))] * (BATCH + 1)),
        lambda _, receiver: receiver.pages([(0, Page(bytes(51), bytes(4096)))]),
        lambda _, receiver: receiver.pages([(8, Page(bytes(52), bytes(4096)))]),
    ],
)
def test_pages_that_cannot_be_harm_nothing(source: Host, call: Any) -> None:
    with launched(source) as here, created(source) as there, Sender(here) as sender, Receiver(there) as receiver:
        before = bytes(there.memory(0, MEMORY))
        with pytest.raises(UsageError):
            call(sender, receiver)
        assert bytes(there.memory(0, MEMORY)) == before
        assert state(here) == "RUNNING"
        assert sender.pages([]) == []
