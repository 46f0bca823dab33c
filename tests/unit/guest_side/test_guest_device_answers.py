"""What comes back from /dev/sev-guest is checked to be the answer: refusals, busy hosts, other answers, hostile bytes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev import status
from sev.abi import guest_device as abi
from sev.errors import (
    FirmwareError,
    KernelError,
    MalformedInput,
    NotOffered,
    SevError,
)
from sev.guest import AnswerMismatch, ChannelDisabled, HostRefused, KeyRequest, ReportRequest, Throttled
from sev.guest.device import PATH, SevGuestDevice
from sev.guest.patience import Patience
from sevd.simulator.errnos import fail
from sevd.simulator.guest_device import SevGuestDevice as Driver
from sevd.simulator.process import File, Process
from tests.unit.guest_side.conftest import FakeTime

NONCE = bytes(range(64))


class Scripted(File):
    """A device that answers as told, each time by the next step; the last one stays."""

    def __init__(self, *steps: Callable[[Process, int], int]) -> None:
        super().__init__()
        self.steps = list(steps)
        self.asked = 0

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        if not process.memory.read(argument, 1)[0]:
            fail(errno.EINVAL)  # as the driver greets those who only want to know what it is
        self.asked += 1
        step = self.steps[0] if len(self.steps) == 1 else self.steps.pop(0)
        return step(process, argument)


def refuses(number: int, exitinfo2: int | None = None) -> Callable[[Process, int], int]:
    """Fails with an errno, or with 0 succeeds; writes exitinfo2 back unless it is None."""

    def step(process: Process, argument: int) -> int:
        if exitinfo2 is not None:
            process.memory.write(argument + 24, exitinfo2.to_bytes(8, "little"))
        return fail(number) if number else 0

    return step


def answers(response: bytes) -> Callable[[Process, int], int]:
    """Succeeds with this response."""

    def step(process: Process, argument: int) -> int:
        envelope = abi.GuestRequestIoctl.decode(process.memory.read(argument, 32))
        process.memory.write(envelope.resp_data, response)
        return 0

    return step


def scripted(patience: Patience | None, *steps: Callable[[Process, int], int], long: bool = False) -> SevGuestDevice:
    file = Scripted(*steps)
    return SevGuestDevice(
        kernel=Process({PATH: lambda _flags: file}), patience=patience or Patience(0), vmpl=0, long_key_requests=long
    )


NO_CALL = abi.EXITINFO2_NO_FW_CALL
REFUSALS = {
    "wiped": (errno.ENOTTY, None, ChannelDisabled),
    "unknown-ioctl": (errno.ENOTTY, 0xFF, ChannelDisabled),
    "numbers-used-up": (errno.EIO, None, ChannelDisabled),
    "not-reached": (errno.EIO, NO_CALL, HostRefused),
    "not-reached-and-no-errno": (0, NO_CALL, HostRefused),
    "hypervisor": (errno.EIO, abi.vmm_error(abi.VMM_ERROR_GENERIC), HostRefused),
    "hypervisor-and-firmware": (errno.EIO, abi.vmm_error(7) | 0x16, HostRefused),
    "hypervisor-and-no-errno": (0, abi.vmm_error(9), HostRefused),
    "firmware": (errno.EIO, status.INVALID_PARAM, FirmwareError),
    "firmware-and-no-errno": (0, status.BAD_MEASUREMENT, FirmwareError),
    "unknown-firmware-status": (errno.EIO, 0x77, FirmwareError),
    "unauthentic": (errno.EBADMSG, None, HostRefused),
    "throttled": (errno.ETIMEDOUT, abi.vmm_error(abi.VMM_ERROR_BUSY), Throttled),
    "throttled-without-a-word": (errno.ETIMEDOUT, None, Throttled),
    "version": (errno.EINVAL, None, KernelError),
    "address": (errno.EFAULT, 0xFF, KernelError),
    "guest-gone": (errno.ENODEV, None, KernelError),
    "no-memory": (errno.ENOMEM, None, KernelError),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("extended", [False, True])
def test_refusals(name: str, extended: bool) -> None:
    number, exitinfo2, kind = REFUSALS[name]
    with scripted(None, refuses(number, exitinfo2)) as device, pytest.raises(kind) as caught:
        device.report(ReportRequest(NONCE, certificates=extended))
    error = caught.value
    assert isinstance(error, SevError)
    assert type(error) is kind
    assert error.message.startswith("SNP_GET_EXT_REPORT" if extended else "SNP_GET_REPORT")
    assert error.errno == (number or None)
    assert error.remedy
    if kind is FirmwareError:
        assert error.firmware_status == exitinfo2


BUSY = {
    "host": (errno.EIO, abi.vmm_error(abi.VMM_ERROR_BUSY)),
    "host-and-no-errno": (0, abi.vmm_error(abi.VMM_ERROR_BUSY)),
    "again": (errno.EAGAIN, None),
    "busy": (errno.EBUSY, 0xFF),
    "interrupted": (errno.EINTR, None),
}


@pytest.mark.parametrize("name", BUSY)
def test_busy_answers_are_asked_again_ever_later(name: str, patience: Patience, time: FakeTime, driver: Driver) -> None:
    real = driver.open(0)

    def honest(process: Process, argument: int) -> int:
        return real.ioctl(process, abi.SNP_GET_REPORT, argument)

    busy = refuses(*BUSY[name])
    with scripted(patience, busy, busy, busy, busy, busy, busy, honest) as device:
        assert device.report(ReportRequest(NONCE)).report_data == NONCE
    assert time.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0])


@pytest.mark.parametrize("name", BUSY)
def test_a_host_that_stays_busy_is_left_in_time(name: str, patience: Patience, time: FakeTime) -> None:
    with scripted(patience, refuses(*BUSY[name])) as device, pytest.raises(Throttled, match="in 10 seconds") as caught:
        device.report(ReportRequest(NONCE))
    assert time.now == pytest.approx(10)
    assert int(caught.value.metadata["attempts"]) == len(time.pauses) + 1


def test_a_busy_host_and_then_a_wiped_key(patience: Patience) -> None:
    busy = refuses(errno.EIO, abi.vmm_error(abi.VMM_ERROR_BUSY))
    with scripted(patience, busy, refuses(errno.ENOTTY)) as device, pytest.raises(ChannelDisabled):
        device.report(ReportRequest(NONCE))


@pytest.mark.parametrize("number", [errno.EIO, 0])
def test_a_length_that_a_kernel_tells_with_or_without_an_error(number: int) -> None:
    def probe(process: Process, argument: int) -> int:
        envelope = abi.GuestRequestIoctl.decode(process.memory.read(argument, 32))
        process.memory.write(envelope.req_data + abi.CERTS_LEN_OFFSET, (0x9000).to_bytes(4, "little"))
        return refuses(number, abi.vmm_error(abi.VMM_ERROR_INVALID_LEN))(process, argument)

    with scripted(None, probe) as device, pytest.raises(NotOffered, match="36864"):
        device.report(ReportRequest(NONCE, certificates=True))


@pytest.fixture
def response(device: SevGuestDevice) -> bytearray:
    """A good response of the report ioctl to NONCE."""
    report = device.report(ReportRequest(NONCE)).report
    return bytearray((0).to_bytes(4, "little") + (1184).to_bytes(4, "little") + bytes(24) + report).ljust(4000, b"\0")


WRONG = {
    "status": (0, b"\x16", FirmwareError),
    "unknown-status": (0, b"\xee", FirmwareError),
    "size-zero": (4, b"\0\0\0\0", MalformedInput),
    "size-short": (4, b"\x9f\x04", MalformedInput),
    "size-huge": (4, b"\xff\xff\xff\xff", MalformedInput),
    "report-data-begin": (32 + 0x50, b"\xff", AnswerMismatch),
    "report-data-end": (32 + 0x8F, b"\xff", AnswerMismatch),
    "vmpl": (32 + 0x30, b"\x01", AnswerMismatch),
    "host-report": (32 + 0x30, b"\xff\xff\xff\xff", AnswerMismatch),
}


@pytest.mark.parametrize("name", WRONG)
def test_answers_to_other_questions(name: str, response: bytearray) -> None:
    at, data, kind = WRONG[name]
    with scripted(None, answers(bytes(response))) as device:
        assert device.report(ReportRequest(NONCE)).report_data == NONCE
    response[at : at + len(data)] = data
    with scripted(None, answers(bytes(response))) as device, pytest.raises(kind):
        device.report(ReportRequest(NONCE))


def test_a_success_that_leaves_the_drivers_own_mark_behind(response: bytearray) -> None:
    def step(process: Process, argument: int) -> int:
        answers(bytes(response))(process, argument)
        return refuses(0, abi.EXITINFO2_UNSET)(process, argument)

    with scripted(None, step) as device:
        assert device.report(ReportRequest(NONCE)).report_data == NONCE


def test_a_canned_report_is_noticed(response: bytearray) -> None:
    with scripted(None, answers(bytes(response))) as device, pytest.raises(AnswerMismatch, match="report_data"):
        device.report(ReportRequest(os.urandom(64)))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    response=st.binary(max_size=4000),
    number=st.sampled_from([0, 0, *errno.errorcode]),
    exitinfo2=st.one_of(st.none(), st.integers(0, (1 << 64) - 1)),
    certificates=st.booleans(),
)
def test_whatever_comes_is_an_error_of_ours(
    response: bytes, number: int, exitinfo2: int | None, certificates: bool
) -> None:
    def step(process: Process, argument: int) -> int:
        answers(response)(process, argument)
        return refuses(number, exitinfo2)(process, argument)

    with scripted(None, step) as device:
        with pytest.raises(SevError):
            device.report(ReportRequest(NONCE, certificates=certificates))
        with contextlib.suppress(SevError):
            device.derived_key(KeyRequest())


def key_response(process: Process, argument: int, *, size: int) -> int:
    """A kernel and firmware whose key depends on `size` bytes of the request."""
    envelope = abi.GuestRequestIoctl.decode(process.memory.read(argument, 32))
    request = process.memory.read(envelope.req_data, size)
    assert envelope.msg_version == 2
    process.memory.write(envelope.resp_data, bytes(32) + hashlib.sha256(request).digest())
    return 0


def test_a_kernel_that_carries_the_vector() -> None:
    request = KeyRequest(fields=1 << 6, launch_mit_vector=5, message_version=2)
    with scripted(None, lambda process, argument: key_response(process, argument, size=40), long=True) as device:
        assert len(device.derived_key(request)) == 32
    with (
        scripted(None, lambda process, argument: key_response(process, argument, size=32), long=True) as device,
        pytest.raises(NotOffered, match="did not reach"),
    ):
        device.derived_key(request)


def test_a_key_of_zeros_is_none() -> None:
    with scripted(None, answers(bytes(64))) as device, pytest.raises(MalformedInput, match="zero"):
        device.derived_key(KeyRequest())
