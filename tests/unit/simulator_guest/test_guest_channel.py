"""What a guest's kernel does about a host that is busy, refuses, or lies; and when it gives its key up."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from sev import status
from sev.abi import guest_device as abi
from sev.abi import guest_message as messages
from sev.abi.guest_message import Header
from sevd.simulator import Simulator
from sevd.simulator.errnos import FirmwareRefused
from sevd.simulator.faults import parse
from sevd.simulator.guest_channel import BUSY, INVALID_LEN, SEQUENCE_END, Patience
from sevd.simulator.guest_device import SevGuestDevice
from sevd.simulator.guest_host import HostRefused
from sevd.simulator.guest_nodes import GuestDevices
from sevd.simulator.guest_ref import GuestRef
from sevd.simulator.guest_requests import seal, unseal
from tests.support.guest_program import NONCE, UNTOUCHED, GuestProgram
from tests.support.simulated import refuse


@dataclass
class Between:
    """A guest whose messages a test sees, and may answer in the firmware's place."""

    guest: GuestRef
    instead: list[Callable[[bytes], bytes] | None] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    start: int | None = None
    running: bool = True

    @property
    def lock(self) -> contextlib.AbstractContextManager[object]:
        return self.guest.lock

    def vmpck(self, number: int) -> bytes:
        return self.guest.vmpck(number)

    def messages(self, number: int) -> int:
        return self.guest.messages(number) if self.start is None else self.start

    def send(self, message: bytes) -> bytes:
        self.sent.append(message)
        answer = self.instead.pop(0) if self.instead else None
        return self.guest.send(message) if answer is None else answer(message)


@dataclass
class Clock:
    """Time that passes only while somebody waits."""

    now: float = 100.0
    pauses: list[float] = field(default_factory=list)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    @property
    def patience(self) -> Patience:
        return Patience(clock=lambda: self.now, pause=self.pause)


@pytest.fixture
def between(guest: GuestRef) -> Between:
    return Between(guest)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def program(between: Between, clock: Clock, table: bytes) -> GuestProgram:
    return GuestProgram(SevGuestDevice(between, lambda: table, patience=clock.patience))


def busy(_message: bytes) -> bytes:
    raise HostRefused(abi.VMM_ERROR_BUSY)


def refused(code: int) -> Callable[[bytes], bytes]:
    def answer(_message: bytes) -> bytes:
        raise FirmwareRefused(errno.EIO, code)

    return answer


def gone(program: GuestProgram) -> bool:
    """The key was given up, which programs are told by ENOTTY and nothing else."""
    outcome = program.report()
    return (outcome.name, outcome.exitinfo2) == ("ENOTTY", UNTOUCHED)


def test_messages_count_up_by_two(program: GuestProgram, between: Between, guest: GuestRef) -> None:
    for _ in range(3):
        assert program.report().name == "ok"
    assert [Header.decode(message).sequence for message in between.sent] == [1, 3, 5]
    assert {Header.decode(message).vmpck for message in between.sent} == {0}
    assert guest.messages(0) == 6


def test_the_payload_is_what_the_program_gave(program: GuestProgram, between: Between, guest: GuestRef) -> None:
    request = abi.DerivedKeyRequest(1, 0xAABBCCDD, 0x3F, 1, 2, 3)
    program.ioctl(abi.SNP_GET_DERIVED_KEY, request.encode(), response=64)
    (message,) = between.sent
    header = Header.decode(message)
    assert (header.message_type, header.message_version, header.message_size) == (messages.KEY_REQ, 1, 32)
    assert unseal(guest.vmpck(0), header, message) == request.encode()


def test_a_busy_host_is_asked_again_with_the_same_message(
    program: GuestProgram, between: Between, clock: Clock
) -> None:
    between.instead = [busy, busy, busy]
    outcome = program.report()
    assert (outcome.name, outcome.exitinfo2) == ("ok", UNTOUCHED)
    assert clock.pauses == [2.0, 2.0, 2.0]
    assert len(between.sent) == 4
    assert len(set(between.sent)) == 1


def test_a_host_that_stays_busy_costs_the_key(program: GuestProgram, between: Between, clock: Clock) -> None:
    between.instead = [busy] * 100
    outcome = program.report()
    assert (outcome.name, outcome.exitinfo2) == ("ETIMEDOUT", BUSY)
    assert clock.pauses == [2.0] * 31
    between.instead.clear()
    assert gone(program)


def test_a_busy_host_is_asked_with_certificates_again(program: GuestProgram, between: Between, table: bytes) -> None:
    between.instead = [busy]
    outcome = program.ext_report(8192)
    assert (outcome.name, outcome.certificates) == ("ok", table.ljust(8192, b"\0"))


def test_too_small_a_buffer_burns_the_number_with_a_plain_request(
    program: GuestProgram, between: Between, guest: GuestRef
) -> None:
    assert program.ext_report(0).exitinfo2 == INVALID_LEN
    assert len(between.sent) == 1
    assert guest.messages(0) == 2
    assert program.report().name == "ok"


def test_a_busy_host_in_the_plain_retry(program: GuestProgram, between: Between, clock: Clock) -> None:
    between.instead = [busy]
    outcome = program.ext_report(0)
    assert (outcome.name, outcome.exitinfo2, outcome.certs_len) == ("EIO", INVALID_LEN, 8192)
    assert clock.pauses == [2.0]
    assert program.report().name == "ok"


def test_a_host_that_stays_busy_in_the_plain_retry(program: GuestProgram, between: Between) -> None:
    between.instead = [busy] * 100
    outcome = program.ext_report(0)
    assert (outcome.name, outcome.exitinfo2, outcome.certs_len) == ("ETIMEDOUT", INVALID_LEN, 8192)
    between.instead.clear()
    assert gone(program)


def test_a_refused_plain_retry_looks_like_an_answered_one_and_the_next_request_fails(
    program: GuestProgram, between: Between
) -> None:
    between.instead = [refused(status.INVALID_ADDRESS)]
    outcome = program.ext_report(0)
    assert (outcome.name, outcome.exitinfo2) == ("EIO", INVALID_LEN)
    again = program.report()
    assert (again.name, again.exitinfo2) == ("EIO", status.AEAD_OFLOW)
    assert gone(program)


@pytest.mark.parametrize("code", [status.INVALID_PARAM, status.BAD_MEASUREMENT, status.AEAD_OFLOW, 0x3F])
def test_a_refusal_of_the_firmware_costs_the_key(program: GuestProgram, between: Between, code: int) -> None:
    between.instead = [refused(code)]
    outcome = program.report()
    assert (outcome.name, outcome.exitinfo2) == ("EIO", code)
    assert gone(program)


@pytest.mark.parametrize("code", [3, 5, abi.VMM_ERROR_GENERIC])
def test_another_error_of_the_host_costs_the_key(program: GuestProgram, between: Between, code: int) -> None:
    def answer(_message: bytes) -> bytes:
        raise HostRefused(code)

    between.instead = [answer]
    outcome = program.report()
    assert (outcome.name, outcome.exitinfo2) == ("EIO", abi.vmm_error(code))
    assert gone(program)


@pytest.mark.parametrize("number", [errno.EBADF, errno.EBUSY, errno.ETIMEDOUT, errno.ENXIO])
def test_a_host_that_does_not_answer_is_no_firmware_call(program: GuestProgram, between: Between, number: int) -> None:
    def answer(_message: bytes) -> bytes:
        raise OSError(number, "")

    between.instead = [answer]
    outcome = program.report()
    assert (outcome.name, outcome.exitinfo2) == ("EIO", abi.EXITINFO2_NO_FW_CALL)
    assert gone(program)


def _forged(guest: GuestRef, message: bytes, *, key: bytes | None = None, **changes: int) -> bytes:
    sent = Header.decode(message)
    fields = {
        "sequence": sent.sequence + 1,
        "message_type": sent.message_type + 1,
        "message_version": sent.message_version,
        "message_size": 64,
    } | changes
    return seal(key or guest.vmpck(0), Header(b"", vmpck=0, **fields), bytes(fields["message_size"]))


FORGERIES: dict[str, Callable[[GuestRef, bytes], bytes]] = {
    "the number of the request": lambda guest, message: _forged(guest, message, sequence=1),
    "an old number": lambda guest, message: _forged(guest, message, sequence=0),
    "the type of the request": lambda guest, message: _forged(guest, message, message_type=messages.REPORT_REQ),
    "another type": lambda guest, message: _forged(guest, message, message_type=messages.KEY_RSP),
    "another version": lambda guest, message: _forged(guest, message, message_version=2),
    "longer than the response": lambda guest, message: _forged(guest, message, message_size=4001),
    "another key": lambda guest, message: _forged(guest, message, key=b"k" * 32),
    "the request itself": lambda _guest, message: message,
    "nothing": lambda _guest, _message: b"",
    "a piece": lambda guest, message: _forged(guest, message)[:100],
    "a changed byte": lambda guest, message: _forged(guest, message)[:-1] + b"\xff",
    "a page too much": lambda _guest, _message: b"\xff" * 9000,
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_response_that_is_none_is_EBADMSG_and_costs_the_key(
    program: GuestProgram, between: Between, guest: GuestRef, forgery: Callable[[GuestRef, bytes], bytes]
) -> None:
    between.instead = [lambda message: forgery(guest, message)]
    outcome = program.report()
    assert (outcome.name, outcome.exitinfo2) == ("EBADMSG", UNTOUCHED)
    assert gone(program)


def test_a_short_but_true_response_is_filled_up(program: GuestProgram, between: Between, guest: GuestRef) -> None:
    between.instead = [lambda message: _forged(guest, message)]
    outcome = program.report()
    assert (outcome.name, outcome.response) == ("ok", bytes(4000))


@pytest.mark.parametrize("count", [SEQUENCE_END - 1, SEQUENCE_END, 1 << 40])
def test_numbers_that_are_used_up_are_EIO_without_a_trace(program: GuestProgram, between: Between, count: int) -> None:
    between.start = count
    outcome = program.report()
    assert (outcome.name, outcome.exitinfo2, between.sent) == ("EIO", UNTOUCHED, [])
    assert not program.device.channel.wiped


def test_the_last_number_is_used(program: GuestProgram, between: Between, guest: GuestRef) -> None:
    between.start = SEQUENCE_END - 3
    between.instead = [lambda message: _forged(guest, message)]
    assert program.report().name == "ok"
    assert Header.decode(between.sent[0]).sequence == SEQUENCE_END - 2
    assert program.report().name == "EIO"


def test_a_key_that_was_given_up_stops_every_request(program: GuestProgram, between: Between) -> None:
    between.instead = [refused(status.INVALID_PARAM)]
    program.report()
    for outcome in (program.key(), program.ext_report(0), program.ext_report(0x4000)):
        assert (outcome.name, outcome.exitinfo2) == ("ENOTTY", UNTOUCHED)
    assert program.ext_report(4095).name == "EINVAL"
    assert len(between.sent) == 1


def test_a_fault_of_the_firmware_reaches_the_program(device: SevGuestDevice, host: Simulator, guest: GuestRef) -> None:
    refuse(host, "SNP_GUEST_REQUEST", code=status.HWERROR_PLATFORM)
    program = GuestProgram(device)
    outcome = program.report()
    assert (outcome.name, outcome.exitinfo2) == ("EIO", status.HWERROR_PLATFORM)
    host.faults = lambda _command: None
    assert gone(program)
    assert guest.running


@pytest.mark.parametrize(
    ("spec", "expected", "pauses"),
    [
        ("EXT_GUEST_REQUEST:busy:times=3", ("ok", UNTOUCHED), 3),
        ("EXT_GUEST_REQUEST:busy", ("ETIMEDOUT", BUSY), 31),
        ("GUEST_REQUEST:busy:times=3", ("ok", UNTOUCHED), 0),
        ("EXT_GUEST_REQUEST:status=0x3F", ("EIO", 0x3F), 0),
        ("SNP_GUEST_REQUEST:status=0x3F", ("EIO", 0x3F), 0),
        ("SNP_GUEST_REQUEST:timeout", ("EIO", abi.EXITINFO2_NO_FW_CALL), 0),
        ("EXT_GUEST_REQUEST:timeout", ("EIO", abi.EXITINFO2_NO_FW_CALL), 0),
    ],
)
def test_faults_of_the_command_line(
    host: Simulator, guest: GuestRef, clock: Clock, spec: str, expected: tuple[str, int], pauses: int
) -> None:
    devices = GuestDevices.of(host)
    devices.patience = clock.patience
    program = GuestProgram(devices.devices()[guest.guest_id])
    host.inject(parse(spec))
    outcome = program.ext_report(0x4000)
    assert (outcome.name, outcome.exitinfo2) == expected
    assert clock.pauses == [2.0] * pauses
    assert gone(program) == (expected[0] != "ok")


def test_a_hypercall_that_hangs_holds_up_nobody_but_the_guest(host: Simulator, guest: GuestRef) -> None:
    devices = GuestDevices.of(host)
    program = GuestProgram(devices.devices()[guest.guest_id])
    host.inject(parse("GUEST_REQUEST:hang"))
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(program.report().name))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert host.guest_count() == 1
    for _ in range(2):
        host.firmware.guest_report(guest._vm.sev.context or 0, NONCE)
    host.inject(parse("clear"))
    thread.join(5)
    assert names == ["ok"]


def test_the_end_of_the_guest_ends_the_waiting(between: Between) -> None:
    device = SevGuestDevice(between, lambda: b"")
    program = GuestProgram(device)
    asked = threading.Event()

    def answer(_message: bytes) -> bytes:
        asked.set()
        raise HostRefused(abi.VMM_ERROR_BUSY)

    between.instead = [answer] * 1000
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(program.report().name))
    thread.start()
    assert asked.wait(5)
    device.close()
    thread.join(5)
    assert names == ["ETIMEDOUT"]


def test_programs_at_the_same_time_never_share_a_number(program: GuestProgram, between: Between) -> None:
    names: list[str] = []
    device = program.device

    def ask() -> None:
        mine = GuestProgram(device)
        names.extend(mine.report(NONCE).name for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["ok"] * 40
    assert len({Header.decode(message).sequence for message in between.sent}) == 40
