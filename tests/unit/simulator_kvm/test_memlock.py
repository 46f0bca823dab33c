"""What SEV and SEV-ES guests lock, against RLIMIT_MEMLOCK of the process that asks, in the simulated KVM."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from sev.abi import kvm
from sev.abi import kvm_sev as ids
from sev.abi import kvm_sev_legacy as abi
from sev.errors import KernelError
from sev.launch.sev import Sev
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.caller import PAGE
from tests.support.legacy_machine import LegacyMachine
from tests.support.simulated import simulated_host

REGISTER, FORGET = kvm.KVM_MEMORY_ENCRYPT_REG_REGION, kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION
LIMIT = 16


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulated_host(tmp_path_factory.mktemp("rome"), "rome") as simulator:
        yield simulator


@pytest.fixture
def process(host: Simulator) -> Iterator[Process]:
    """It may lock sixteen pages."""
    made = host.process(memlock=LIMIT * PAGE)
    yield made
    made.exit()


def region(guest: LegacyMachine, first: int, pages: int) -> kvm.EncRegion:
    return kvm.EncRegion(guest.address + first * PAGE, pages * PAGE)


def test_registered_pages_are_counted_until_they_are_forgotten(process: Process) -> None:
    guest = LegacyMachine(process)
    ioctl = guest.machine.ioctl
    assert ioctl(REGISTER, region(guest, 0, LIMIT + 1)) == "ENOMEM"
    assert ioctl(REGISTER, region(guest, 0, 10)) == "ok"
    assert ioctl(REGISTER, region(guest, 20, 7)) == "ENOMEM"
    assert ioctl(REGISTER, region(guest, 0, 6)) == "ok"  # the same pages again count again
    assert ioctl(REGISTER, region(guest, 30, 1)) == "ENOMEM"
    assert ioctl(FORGET, region(guest, 0, 6)) == "ok"
    # A byte at either end takes its whole page.
    assert ioctl(REGISTER, kvm.EncRegion(guest.address + 31 * PAGE - 1, 4 * PAGE + 2)) == "ok"
    assert ioctl(REGISTER, region(guest, 40, 1)) == "ENOMEM"
    assert ioctl(FORGET, region(guest, 0, 10)) == "ok"
    assert ioctl(REGISTER, region(guest, 40, 10)) == "ok"


def test_each_guest_is_counted_by_itself(process: Process) -> None:
    one, other = LegacyMachine(process), LegacyMachine(process)
    for guest in (one, other):
        assert guest.machine.ioctl(REGISTER, region(guest, 0, LIMIT)) == "ok"
        assert guest.machine.ioctl(REGISTER, region(guest, 20, 1)) == "ENOMEM"


def test_what_a_command_takes_counts_while_it_runs(process: Process) -> None:
    guest = LegacyMachine(process)
    assert guest.start(0).name == "ok"
    assert guest.update(0, (LIMIT + 1) * PAGE).name == "ENOMEM"
    assert guest.update(0, LIMIT * PAGE).name == "ok"
    assert guest.update(20 * PAGE, LIMIT * PAGE).name == "ok"
    assert guest.machine.ioctl(REGISTER, region(guest, 0, LIMIT - 1)) == "ok"
    assert guest.update(40 * PAGE, 2 * PAGE).name == "ENOMEM"
    assert guest.update(40 * PAGE + 16, PAGE).name == "ENOMEM"  # on two pages
    assert guest.update(40 * PAGE, PAGE).name == "ok"


COMMANDS: dict[str, tuple[int, Callable[[LegacyMachine, int], object]]] = {
    "DBG_DECRYPT": (2, lambda guest, other: guest.debug(ids.DBG_DECRYPT, guest.address, other, 16)),
    "DBG_ENCRYPT": (2, lambda guest, other: guest.debug(ids.DBG_ENCRYPT, other, guest.address, 16)),
    "SEND_UPDATE_DATA": (
        1, lambda guest, other: guest.op(
            ids.SEND_UPDATE_DATA, abi.SendUpdateData(other, 52, guest.address, PAGE, other, PAGE)),
    ),
    "RECEIVE_UPDATE_DATA": (
        1, lambda guest, other: guest.op(
            ids.RECEIVE_UPDATE_DATA, abi.ReceiveUpdateData(other, 52, guest.address, PAGE, other, PAGE)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_on_pages_need_room_too(process: Process, name: str) -> None:
    needed, issue = COMMANDS[name]
    guest = LegacyMachine(process).running()
    other = guest.place(bytearray(PAGE))
    assert guest.machine.ioctl(REGISTER, region(guest, 0, LIMIT - needed + 1)) == "ok"
    refused = issue(guest, other)
    assert refused[0] == errno.ENOMEM  # type: ignore[index]
    assert guest.machine.ioctl(FORGET, region(guest, 0, LIMIT - needed + 1)) == "ok"
    assert guest.machine.ioctl(REGISTER, region(guest, 0, LIMIT - needed)) == "ok"
    # Whatever the firmware says of it: it is asked.
    assert issue(guest, other)[0] in (0, errno.EIO)  # type: ignore[index]


def test_an_unlimited_process(host: Simulator) -> None:
    process = host.process()
    guest = LegacyMachine(process)
    for _ in range(100):
        assert guest.machine.ioctl(REGISTER, region(guest, 0, 64)) == "ok"
    process.exit()


def test_the_driver_says_what_to_do(host: Simulator) -> None:
    process = host.process(memlock=1 << 20)
    with Sev(process) as guest:
        with pytest.raises(KernelError) as refused:
            guest.create(2 << 20, 0, 1, 0x830F10)
        assert (refused.value.errno, refused.value.command) == (errno.ENOMEM, "KVM_MEMORY_ENCRYPT_REG_REGION")
        assert "LimitMEMLOCK=infinity" in refused.value.remedy
    with Sev(process) as guest:
        guest.create(1 << 20, 0, 1, 0x830F10)
        guest.start(0)
        with pytest.raises(KernelError) as refused:
            guest.update(0, 4096)  # what an update takes is counted on top
        assert (refused.value.errno, refused.value.command) == (errno.ENOMEM, "LAUNCH_UPDATE_DATA")
        assert "LimitMEMLOCK=infinity" in refused.value.remedy
    process.exit()
