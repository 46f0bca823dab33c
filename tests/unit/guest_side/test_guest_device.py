"""/dev/sev-guest through the library: what comes back is the answer, and everything else is an error that says why."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev import status
from sev.abi import cert_table
from sev.abi import guest_device as abi
from sev.attestation import Collateral, Roots, verify
from sev.errors import (
    DeviceMissing,
    FirmwareError,
    InternalError,
    KernelError,
    MalformedInput,
    NotOffered,
    NotPermitted,
    SevError,
    UsageError,
)
from sev.guest import AnswerMismatch, ChannelDisabled, HostRefused, KeyRequest, ReportRequest, Throttled
from sev.guest.device import PATH, SevGuestDevice
from sev.guest.model import KEY_FIELDS, ServiceRequest
from sev.guest.patience import Patience
from sevd.simulator import Simulator
from sevd.simulator.errnos import fail
from sevd.simulator.guest_channel import Patience as KernelPatience
from sevd.simulator.guest_device import SevGuestDevice as Driver
from sevd.simulator.guest_host import HostRefused as Refusal
from sevd.simulator.guest_ref import GuestRef
from sevd.simulator.process import File, Process
from tests.unit.guest_side.conftest import FakeTime

NONCE = bytes(range(64))
Open = Callable[[Driver], SevGuestDevice]

# --- on the simulated firmware --------------------------------------------------------------------------------------


def test_a_report_answers_and_verifies(device: SevGuestDevice, host: Simulator) -> None:
    nonce = os.urandom(64)
    answer = device.report(ReportRequest(nonce, certificates=True))
    assert answer.source == "sev-guest"
    assert answer.vmpl == 0
    assert answer.parse().report_data == nonce
    table = answer.certificate_table
    assert table
    verify(
        answer.parse(),
        Collateral(certificate_table=table),
        at=datetime.now(UTC),
        roots=Roots.from_pem(host.roots_pem()),
    )
    assert [guid for guid, _ in answer.certificates()] == [cert_table.VCEK, cert_table.ASK, cert_table.ARK]


def test_the_table_comes_as_the_host_has_it(device: SevGuestDevice, table: bytes) -> None:
    assert device.report(ReportRequest(NONCE, certificates=True)).certificate_table == table
    assert device.report(ReportRequest(NONCE)).certificate_table is None


def test_a_host_without_certificates(open_device: Open, guest: GuestRef) -> None:
    with open_device(Driver(guest, lambda: b"")) as device:
        answer = device.report(ReportRequest(NONCE, certificates=True))
    assert answer.certificate_table == b""
    assert answer.certificates() == []


@pytest.mark.parametrize("size", [4096, 4097, 0x4000 - 24, 0x4000])
def test_tables_of_any_size_that_fits(open_device: Open, guest: GuestRef, size: int) -> None:
    table = cert_table.build([(cert_table.ARK, b"\xa5" * (size - 48))])
    assert len(table) == size
    with open_device(Driver(guest, lambda: table)) as device:
        assert device.report(ReportRequest(NONCE, certificates=True)).certificate_table == table


def test_a_table_that_ends_in_zeros_keeps_them(open_device: Open, guest: GuestRef) -> None:
    table = cert_table.build([(cert_table.ARK, b"\xa5" + bytes(100))])
    with open_device(Driver(guest, lambda: table)) as device:
        assert device.report(ReportRequest(NONCE, certificates=True)).certificates() == [
            (cert_table.ARK, b"\xa5" + bytes(100))
        ]


def test_a_table_that_is_too_large_harms_nothing(open_device: Open, guest: GuestRef) -> None:
    table = cert_table.build([(cert_table.ARK, b"x" * 0x4000)])
    with open_device(Driver(guest, lambda: table)) as device:
        with pytest.raises(NotOffered, match="20480 bytes"):
            device.report(ReportRequest(NONCE, certificates=True))
        assert device.report(ReportRequest(NONCE)).report_data == NONCE


@pytest.mark.parametrize("vmpl", range(4))
def test_levels(device: SevGuestDevice, vmpl: int) -> None:
    assert device.report(ReportRequest(NONCE, vmpl=vmpl)).vmpl == vmpl


def test_a_level_below_the_kernels_own(guest: GuestRef, table: bytes, open_device: Open) -> None:
    with open_device(Driver(guest, lambda: table, svsm=True)) as device:
        with pytest.raises(FirmwareError) as caught:
            device.report(ReportRequest(NONCE, vmpl=1))
        assert caught.value.firmware_status == status.INVALID_PARAM
        assert "VMPL" in caught.value.remedy
        assert device.report(ReportRequest(NONCE, vmpl=2)).vmpl == 2


def test_the_signing_key_is_chosen(device: SevGuestDevice) -> None:
    assert device.report(ReportRequest(NONCE, signing_key="vcek")).parse().signing_key == "vcek"
    with pytest.raises(FirmwareError) as caught:
        device.report(ReportRequest(NONCE, signing_key="vlek"))
    assert caught.value.firmware_status == status.INVALID_KEY
    assert device.report(ReportRequest(NONCE)).report_data == NONCE


def test_keys_depend_on_what_is_mixed_in(device: SevGuestDevice) -> None:
    keys = {
        device.derived_key(KeyRequest()),
        device.derived_key(KeyRequest(vmpl=1)),
        device.derived_key(KeyRequest(root_key="vmrk")),
        *(
            device.derived_key(KeyRequest(fields=bit))
            for name, bit in KEY_FIELDS.items()
            if name != "launch_mit_vector"
        ),
    }
    assert len(keys) == 9
    assert all(len(key) == 32 for key in keys)
    assert device.derived_key(KeyRequest(signing_key="vcek")) == device.derived_key(KeyRequest())
    with pytest.raises(FirmwareError):
        device.derived_key(KeyRequest(signing_key="vlek"))


def test_a_key_that_the_firmware_refuses_harms_nothing(device: SevGuestDevice) -> None:
    with pytest.raises(FirmwareError) as caught:
        device.derived_key(KeyRequest(fields=KEY_FIELDS["guest_svn"], guest_svn=1))
    assert caught.value.firmware_status == status.INVALID_PARAM
    assert caught.value.command == "SNP_GET_DERIVED_KEY"
    assert len(device.derived_key(KeyRequest())) == 32


VECTOR = KeyRequest(fields=KEY_FIELDS["launch_mit_vector"], launch_mit_vector=0, message_version=2)


def test_a_mitigation_vector_is_refused_before_it_costs_the_key(device: SevGuestDevice) -> None:
    with pytest.raises(NotOffered, match="32 bytes"):
        device.derived_key(VECTOR)
    assert len(device.derived_key(KeyRequest())) == 32


def test_what_linux_would_make_of_a_mitigation_vector(driver: Driver, patience: Patience) -> None:
    kernel = Process({PATH: driver.open})
    with SevGuestDevice(kernel=kernel, patience=patience, long_key_requests=True) as device:
        with pytest.raises(FirmwareError) as caught:
            device.derived_key(VECTOR)
        assert "vmpck_id" in caught.value.remedy
        with pytest.raises(ChannelDisabled):
            device.derived_key(KeyRequest())


def test_a_host_that_throttles_for_a_while(open_device: Open, guest: GuestRef, host: Simulator) -> None:
    left = [3]

    def busy(command: str) -> None:
        if command == "SNP_GUEST_REQUEST" and left[0]:
            left[0] -= 1
            raise Refusal(abi.VMM_ERROR_BUSY)

    kernel_patience = KernelPatience(pause=lambda _seconds: None)
    with open_device(Driver(guest, lambda: b"", patience=kernel_patience)) as device:
        host.faults = busy
        assert device.report(ReportRequest(NONCE)).report_data == NONCE
        assert left == [0]


def test_a_host_that_throttles_for_ever(open_device: Open, guest: GuestRef, host: Simulator) -> None:
    def busy(command: str) -> None:
        if command == "SNP_GUEST_REQUEST":
            raise Refusal(abi.VMM_ERROR_BUSY)

    kernel_patience = KernelPatience(limit=-1)
    with open_device(Driver(guest, lambda: b"", patience=kernel_patience)) as device:
        host.faults = busy
        with pytest.raises(Throttled) as caught:
            device.report(ReportRequest(NONCE))
        assert caught.value.errno == errno.ETIMEDOUT
        assert "vmpck_id" in caught.value.remedy
        host.faults = lambda _command: None
        with pytest.raises(ChannelDisabled, match="wiped"):
            device.report(ReportRequest(NONCE))


def test_several_threads(device: SevGuestDevice) -> None:
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(5):
                nonce = os.urandom(64)
                assert device.report(ReportRequest(nonce)).parse().report_data == nonce
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- opening and closing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, DeviceMissing), (errno.ENXIO, DeviceMissing), (errno.ENODEV, DeviceMissing),
        (errno.EACCES, NotPermitted), (errno.EPERM, NotPermitted), (errno.EMFILE, KernelError),
    ],
)  # fmt: skip
def test_a_device_that_does_not_open(number: int, kind: type[SevError]) -> None:
    with pytest.raises(kind, match=PATH) as caught:
        SevGuestDevice(kernel=Process({PATH: lambda _flags: fail(number)}))
    assert caught.value.errno == number
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOTTY, "no sev-guest device"), (0, "no sev-guest device"), (errno.ENODEV, "No such device")],
)
def test_another_kind_of_file(number: int, words: str) -> None:
    class Other(File):
        def ioctl(self, process: Process, request: int, argument: int) -> int:
            return fail(number) if number else 0

    kernel = Process({PATH: lambda _flags: Other()})
    with pytest.raises(DeviceMissing, match=words):
        SevGuestDevice(kernel=kernel)
    assert kernel.descriptors() == []


def test_directories_and_files_are_no_devices(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    for path in (tmp_path, tmp_path / "file", Path("/dev/null")):
        with pytest.raises(DeviceMissing, match="no sev-guest device"):
            SevGuestDevice(str(path))


def test_closing_gives_everything_back(driver: Driver) -> None:
    kernel = Process({PATH: driver.open})
    device = SevGuestDevice(kernel=kernel)
    device.report(ReportRequest(NONCE, certificates=True))
    device.derived_key(KeyRequest())
    assert kernel.memory._starts == []
    device.close()
    device.close()
    assert kernel.descriptors() == []
    with pytest.raises(InternalError, match="closed"):
        device.report(ReportRequest(NONCE))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReportRequest(b""),
        lambda: ReportRequest(bytes(65)),
        lambda: ReportRequest(NONCE, vmpl=4),
        lambda: ReportRequest(NONCE, vmpl=-1),
        lambda: ReportRequest(NONCE, message_version=0),
        lambda: ReportRequest(NONCE, message_version=256),
        lambda: ReportRequest(NONCE, signing_key="ark"),
        lambda: KeyRequest(root_key="vcek"),
        lambda: KeyRequest(signing_key=""),
        lambda: KeyRequest(vmpl=4),
        lambda: KeyRequest(guest_svn=1 << 32),
        lambda: KeyRequest(tcb_version=-1),
        lambda: KeyRequest(fields=1 << 64),
        lambda: KeyRequest(launch_mit_vector=0),
        lambda: KeyRequest(fields=1 << 6),
        lambda: KeyRequest(fields=1 << 6, launch_mit_vector=1),
    ],
)
def test_requests_that_make_no_sense(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()


def test_services_are_not_asked_for_here(device: SevGuestDevice) -> None:
    with pytest.raises(NotOffered, match="SVSM"):
        device.report(ReportRequest(NONCE, service=ServiceRequest()))


# --- what a kernel may answer ---------------------------------------------------------------------------------------


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
