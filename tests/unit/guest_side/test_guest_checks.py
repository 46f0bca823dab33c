"""Named machines as `sev attest check` sees them: what passes, what fails, what it adds up to."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass

import pytest

from sev.errors import DeviceMissing, FirmwareError, NotPermitted, SevError
from sev.guest import sev_status
from sev.guest.checks import GROUPS, GuestCheck, check_guest
from sev.guest.levels import VMPL_PATH
from tests.support.machines import FakeReader, cpuinfo, vendor

DEVICE = "/dev/sev-guest"
HYPERVISOR = (0, 0, 1 << 31, 0)
SNP_EAX = 1 << 1 | 1 << 3 | 1 << 4


def hypervisor(name: str) -> tuple[int, int, int, int]:
    data = name.encode().ljust(12, b"\0")
    ebx, ecx, edx = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8))
    return 0x4000_0001, ebx, ecx, edx


SNP = FakeReader(
    files={VMPL_PATH: "0\n"},
    leaves={
        (0, 0): vendor("AuthenticAMD"), (1, 0): HYPERVISOR, (0x4000_0000, 0): hypervisor("KVMKVMKVM"),
        (0x8000_001F, 0): (SNP_EAX, 51, 0, 0),
    },
    msrs={sev_status.SEV_STATUS: 0x807},
    devices={DEVICE: "rw"},
)  # fmt: skip
NO_DRIVER = SNP.but(devices={DEVICE: None})
UNPRIVILEGED = SNP.but(devices={DEVICE: errno.EACCES}, msrs=errno.EACCES, uid=1000)
ES = SNP.but(files={VMPL_PATH: None}, devices={DEVICE: None}, msrs={sev_status.SEV_STATUS: 0x3})
PLAIN_SEV = ES.but(msrs={sev_status.SEV_STATUS: 0x1})
PLAIN_VM = ES.but(leaves={(0x8000_001F, 0): (0, 0, 0, 0)}, msrs=errno.EIO)
BARE = PLAIN_VM.but(leaves={(1, 0): (0, 0, 0, 0), (0x4000_0000, 0): None, (0x8000_001F, 0): (SNP_EAX, 51, 0, 0)})
NO_SEV_BARE = BARE.but(leaves={(0x8000_001F, 0): (0, 0, 0, 0)})
AZURE = NO_DRIVER.but(leaves={(0x4000_0000, 0): hypervisor("Microsoft Hv")}, files={VMPL_PATH: None}, msrs=errno.ENOENT)
INTEL = PLAIN_VM.but(leaves={(0, 0): vendor("GenuineIntel")})
SVSM = SNP.but(files={VMPL_PATH: "2\n"})
BLIND = FakeReader()
CPUINFO = FakeReader(
    files={"/proc/cpuinfo": cpuinfo("AuthenticAMD", "fpu hypervisor sev sev_es sev_snp")}, devices={DEVICE: "rw"}
)
STATUS_DENIES = SNP.but(msrs={sev_status.SEV_STATUS: 0x3})


@dataclass(frozen=True)
class Case:
    """A machine, what configfs-tsm says, and what must come out."""

    reader: FakeReader
    provider: str | SevError
    able: bool
    kind: str
    fails: str = ""
    words: str = ""


NONE = DeviceMissing("/sys/kernel/config/tsm/report: No such file or directory")
CASES = {
    "snp": Case(SNP, "sev_guest", True, "sev-snp", words="configfs-tsm and /dev/sev-guest"),
    "device-only": Case(SNP, NONE, True, "sev-snp", "configfs.tsm", "through /dev/sev-guest"),
    "tsm-only": Case(NO_DRIVER, "sev_guest", True, "sev-snp", "device.sev-guest", "through configfs-tsm"),
    "no-driver": Case(NO_DRIVER, NONE, False, "sev-snp", "device.sev-guest configfs.tsm", "cannot ask"),
    "unprivileged": Case(
        UNPRIVILEGED,
        NotPermitted("no", remedy="Be root."),
        False,
        "sev-snp",
        "device.sev-guest configfs.tsm",
        "cannot ask",
    ),
    "svsm": Case(SVSM, "sev_guest", True, "sev-snp"),
    "es": Case(ES, NONE, False, "sev-es", "status.sev-snp device.sev-guest configfs.tsm", "SEV-ES guest"),
    "sev": Case(
        PLAIN_SEV, NONE, False, "sev", "status.sev-es status.sev-snp device.sev-guest configfs.tsm", "an SEV guest"
    ),
    "plain": Case(PLAIN_VM, NONE, False, "virtual-machine", "cpu.sev device.sev-guest configfs.tsm", "no SEV guest"),
    "bare": Case(BARE, NONE, False, "bare-metal", "cpu.hypervisor device.sev-guest configfs.tsm", "sev host check"),
    "bare-without-sev": Case(
        NO_SEV_BARE, NONE, False, "bare-metal", "cpu.hypervisor cpu.sev device.sev-guest configfs.tsm"
    ),
    "azure": Case(AZURE, NONE, False, "virtual-machine", "device.sev-guest configfs.tsm"),
    "intel": Case(INTEL, NONE, False, "virtual-machine", "cpu.vendor device.sev-guest configfs.tsm"),
    "tdx": Case(INTEL, "tdx_guest", False, "virtual-machine", "cpu.vendor device.sev-guest configfs.tsm"),
    "blind": Case(BLIND, NONE, False, "unknown", "device.sev-guest configfs.tsm"),
    "cpuinfo": Case(CPUINFO, NONE, True, "sev-snp", "configfs.tsm"),
    "status-denies": Case(STATUS_DENIES, "sev_guest", False, "sev-es", "status.sev-snp"),
}


def look(case: Case) -> GuestCheck:
    def provider() -> str:
        if isinstance(case.provider, SevError):
            raise case.provider
        return case.provider

    return check_guest(case.reader, provider=provider)


@pytest.mark.parametrize("name", CASES)
def test_machines(name: str) -> None:
    case = CASES[name]
    checked = look(case)
    failed = {check.id for check in checked.checks if check.result == "failed"}
    assert failed == set(case.fails.split())
    assert (checked.able, checked.kind) == (case.able, case.kind)
    assert case.words in checked.summary
    for check in checked.checks:
        assert check.reason
        assert check.group in GROUPS
        if check.result == "failed":
            assert check.remedy, check.id


def test_the_document_is_that_of_host_check() -> None:
    document = look(CASES["snp"]).document()
    assert json.loads(json.dumps(document)) == document
    assert document["able"] is True
    checks = document["checks"]
    assert isinstance(checks, list)
    assert all({"id", "result", "reason", "remedy"} <= set(check) for check in checks)
    assert len({check["id"] for check in checks}) == len(checks)


def test_features_are_on_or_off_and_never_fail() -> None:
    results = {check.id: check for check in look(CASES["snp"]).checks}
    assert results["feature.secure-tsc"].result == "passed"
    assert results["feature.vtom"].result == "skipped"
    assert results["feature.vtom"].reason.startswith("off")
    assert results["status.readable"].reason == "0x807"


def test_what_is_below_the_kernel() -> None:
    results = {check.id: check for check in look(CASES["svsm"]).checks}
    assert "SVSM" in results["kernel.vmpl"].reason
    assert results["cpu.hypervisor"].reason == "under KVMKVMKVM"


def test_azure_is_told_where_its_reports_are() -> None:
    results = {check.id: check for check in look(CASES["azure"]).checks}
    assert "0x01400001" in results["device.sev-guest"].remedy


def test_a_register_that_cannot_be_read_decides_nothing() -> None:
    checked = check_guest(SNP.but(msrs=errno.ENOENT), provider=lambda: "sev_guest")
    assert checked.able
    results = {check.id: check for check in checked.checks}
    assert results["status.readable"].result == "skipped"
    assert "modprobe msr" in results["status.readable"].remedy


def test_a_device_that_is_another_file() -> None:
    def probe() -> None:
        raise DeviceMissing("this is no sev-guest device")

    checked = check_guest(SNP, provider=lambda: "tdx_guest", probe=probe)
    assert not checked.able
    results = {check.id: check for check in checked.checks}
    assert results["device.sev-guest"].reason == "this is no sev-guest device"


def test_a_request_that_is_really_made() -> None:
    checked = check_guest(SNP, provider=lambda: "sev_guest", request=lambda: "it came")
    assert checked.checks[-1].id == "request.report"
    assert (checked.checks[-1].result, checked.checks[-1].reason) == ("passed", "it came")

    def refused() -> str:
        raise FirmwareError(0x16, command="SNP_GET_REPORT")

    checked = check_guest(SNP, provider=lambda: "sev_guest", request=refused)
    assert not checked.able
    assert checked.kind == "sev-snp"
    assert "INVALID_PARAM" in checked.checks[-1].reason
    checked = check_guest(PLAIN_VM, provider=lambda: "tdx_guest", request=refused)
    assert checked.checks[-1].result == "skipped"
