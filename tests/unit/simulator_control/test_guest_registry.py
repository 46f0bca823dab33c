"""The guests of a host, by the names that they were given."""

from __future__ import annotations

import errno

import pytest

from sev import status
from sev.abi import guest_message as messages
from sev.abi.guest_message import Header
from sev.errors import UsageError
from sevd.simulator import Simulator
from sevd.simulator.errnos import FirmwareRefused
from sevd.simulator.guest_ref import GuestRef
from sevd.simulator.guest_requests import seal, unseal
from sevd.simulator.process import Process
from tests.support.caller import launching, ready


def ask(guest: GuestRef, *, vmpl: int = 0, sequence: int | None = None) -> bytes:
    """MSG_REPORT_REQ as the guest's kernel sends it; the report."""
    payload = messages.report_request(bytes(range(64)), vmpl, 0)
    number = guest.messages(vmpl) + 1 if sequence is None else sequence
    key = guest.vmpck(vmpl)
    answer = guest.send(seal(key, Header(b"", number, messages.REPORT_REQ, 1, len(payload), vmpl), payload))
    header = Header.decode(answer)
    clear = unseal(key, header, answer)
    assert clear is not None
    assert header.sequence == number + 1
    code, report = messages.report_response(clear)
    assert code == 0
    return report


def test_guests_appear_with_their_start_and_go_with_their_vm(host: Simulator, process: Process) -> None:
    machine = ready(process)
    assert host.guests() == {}
    assert machine.start().name == "ok"
    ((name, guest),) = host.guests().items()
    assert (name, guest.guest_id, guest.asid) == ("asid-1", "asid-1", host.asid(process, machine.vm))
    assert (guest.alive, guest.running) == (True, False)
    assert machine.finish().name == "ok"
    assert guest.running
    assert host.guests()[name] is guest
    process.exit()
    assert host.guests() == {}
    assert not guest.alive


def test_a_name_is_kept_from_before_the_launch(host: Simulator, process: Process) -> None:
    machine = ready(process)
    host.name(process, machine.vm, "guest-one")
    machine.start()
    assert list(host.guests()) == ["guest-one"]


@pytest.mark.parametrize(
    "name",
    ["", "short", "UPPER-CASE", "x" * 37, "under_score", "asid-123", "asid-1234567", "../../../etc", "guest one"],
)
def test_impossible_names_are_refused(host: Simulator, process: Process, name: str) -> None:
    machine = launching(process)
    with pytest.raises(UsageError, match="guest_id"):
        host.name(process, machine.vm, name)
    assert list(host.guests()) == ["asid-1"]


def test_a_name_has_one_guest(host: Simulator, process: Process) -> None:
    first, second = launching(process), launching(process)
    host.name(process, first.vm, "guest-one")
    host.name(process, first.vm, "guest-one")
    with pytest.raises(UsageError, match="another guest has it"):
        host.name(process, second.vm, "guest-one")
    assert sorted(host.guests()) == ["asid-2", "guest-one"]
    with pytest.raises(UsageError, match="not a guest"):
        host.name(process, second.sev, "guest-two")


def test_a_guest_talks_to_the_firmware_with_its_own_keys(host: Simulator, process: Process) -> None:
    machine = launching(process)
    machine.update()
    machine.finish()
    guest = host.guests()["asid-1"]
    assert len({guest.vmpck(number) for number in range(4)}) == 4
    assert ask(guest)[0x50:0x90] == bytes(range(64))
    assert ask(guest)[0x90:0xC0] == host.launch_digest(process, machine.vm)
    assert (guest.messages(0), guest.messages(2)) == (4, 0)
    ask(guest, vmpl=2)
    # Playing the guest counts in the same secrets page.
    host.guest_report(process, machine.vm, bytes(64), 0, 0)
    assert (guest.messages(0), guest.messages(2)) == (6, 2)
    with pytest.raises(FirmwareRefused) as refused:
        ask(guest, sequence=1)
    assert refused.value.status == status.AEAD_OFLOW
    for number in (-1, 4):
        with pytest.raises(OSError, match=r"No such device"):
            guest.vmpck(number)


def test_a_message_needs_the_descriptor_of_the_launch(host: Simulator, process: Process) -> None:
    machine = launching(process)
    machine.finish()
    guest = host.guests()["asid-1"]
    process.close(machine.sev)
    with pytest.raises(OSError, match="Bad file descriptor") as refused:
        ask(guest)
    assert refused.value.errno == errno.EBADF
    process.exit()
    with pytest.raises(OSError, match="No such device or address"):
        ask(guest)
