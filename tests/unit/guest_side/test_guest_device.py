"""/dev/sev-guest through the library: what comes back is the answer, and everything else is an error that says why."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sev import status
from sev.abi import cert_table
from sev.abi import guest_device as abi
from sev.attestation import Collateral, Roots, verify
from sev.errors import (
    DeviceMissing,
    FirmwareError,
    InternalError,
    KernelError,
    NotOffered,
    NotPermitted,
    SevError,
    UsageError,
)
from sev.guest import ChannelDisabled, KeyRequest, ReportRequest, Throttled
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
