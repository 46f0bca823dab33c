"""Naples and Rome: SEV without SNP, keys of other sizes, firmware older than some commands."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sev import status
from sev.abi import amd_certificate, kvm
from sev.abi import sev_device as abi
from sev.errors import DeviceMissing, FirmwareError, UsageError
from sev.launch import SevDevice
from sevd.simulator import Simulator, kernel_era
from tests.support.caller import UNTOUCHED, Machine, issue
from tests.support.legacy import Owner, check_chain
from tests.support.simulated import simulated_host

LINES = {"naples": (2048, (0, 17, 48), (11, 4)), "rome": (4096, (0, 24, 20), (410, 99))}
Start = Callable[..., Simulator]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def powered_on(product: str, era: str = "C") -> Simulator:
            return stack.enter_context(simulated_host(tmp_path / f"{product}-{era}", product, era=era))

        yield powered_on


@pytest.mark.parametrize("product", LINES)
def test_a_host(start: Start, product: str) -> None:
    bits, version, (sev, es) = LINES[product]
    host = start(product)
    process = host.process()
    with SevDevice(process) as device:
        now = abi.PlatformStatus.decode(device.platform_status())
        assert (now.api_major, now.api_minor, now.build) == version
        assert (now.state, now.flags, host.guest_count()) == (abi.STATE_INIT, abi.FLAG_CONFIG_ES, 0)
        chain = check_chain(*device.pdh_export(), host.firmware.ca)
        assert {(each.api_major, each.api_minor) for each in chain} == {version[:2]}
        owner = Owner()
        device.pek_import(owner.sign(device.pek_csr()), owner.oca)
        check_chain(*device.pdh_export(), host.firmware.ca)
        assert device.get_id() == host.firmware.get_id()
    assert [each.bits for each in amd_certificate.split(host.firmware.ca.legacy_ca())] == [bits, bits]
    assert host.asids() == {"sev": (sev, 0), "sev_es": (es, 0)}
    assert (host.endorsements(), host.committed_tcb()) == ({}, None)
    assert host.host_facts().technologies == ("sev", "sev-es")


@pytest.mark.parametrize("product", LINES)
def test_there_is_no_snp(start: Start, product: str) -> None:
    host = start(product)
    process = host.process()
    device = process.open("/dev/kvm", os.O_RDWR)
    types = process.ioctl(device, kvm.KVM_CHECK_EXTENSION, kvm.CAP_VM_TYPES)
    assert types == 1 << kvm.VM_TYPE_DEFAULT | 1 << kvm.VM_TYPE_SEV | 1 << kvm.VM_TYPE_SEV_ES
    with pytest.raises(OSError, match="Invalid"):
        process.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP)
    with SevDevice(process) as sev:
        with pytest.raises(FirmwareError) as unknown:
            sev.snp_status()
        assert (unknown.value.firmware_status, unknown.value.errno) == (status.INVALID_COMMAND, errno.EIO)
        with pytest.raises(DeviceMissing):
            sev.snp_set_config(bytes(64))


@pytest.mark.parametrize(
    ("era", "answer"),
    [
        ("A", (errno.EINVAL, UNTOUCHED)),
        ("B", (errno.ENODEV, status.INVALID_PLATFORM_STATE)),
        ("B2", (errno.ENODEV, status.INVALID_PLATFORM_STATE)),
        ("C", (errno.EIO, status.INVALID_COMMAND)),
    ],
)
def test_a_commit_in_every_era(start: Start, era: str, answer: tuple[int, int]) -> None:
    process = start("rome", era).process()
    assert issue(process, process.open("/dev/sev", os.O_RDWR), abi.SNP_COMMIT)[:2] == answer


@pytest.mark.parametrize("era", kernel_era.ERAS)
def test_an_implicit_init_without_snp(start: Start, era: str) -> None:
    host = start("rome", era)
    process = host.process()
    fd = process.open("/dev/sev", os.O_RDWR)
    assert issue(process, fd, abi.FACTORY_RESET)[:2] == (0, 0)
    seen: list[str] = []
    host.faults = seen.append
    assert issue(process, fd, abi.PDH_GEN)[:2] == (0, 0)
    assert seen == ["INIT", "DF_FLUSH", "PDH_GEN", *([] if era == "A" else ["SHUTDOWN"])]


def test_a_vm_takes_an_asid_and_brings_the_platform_up(start: Start) -> None:
    host = start("rome")
    process = host.process()
    fd = process.open("/dev/sev", os.O_RDWR)
    issue(process, fd, abi.FACTORY_RESET)
    machine = Machine.make(process, kvm.VM_TYPE_SEV_ES)
    assert machine.init2().name == "ok"
    assert abi.PlatformStatus.decode(issue(process, fd, abi.PLATFORM_STATUS, bytes(12)).data).state == abi.STATE_INIT
    assert host.asids()["sev_es"] == (99, 1)


def test_firmware_before_get_id(tmp_path: Path) -> None:
    host = Simulator.open(tmp_path, product="naples", firmware_version="0.14.11", seed=1)
    try:
        process = host.process()
        fd = process.open("/dev/sev", os.O_RDONLY)
        for command in (abi.GET_ID, abi.GET_ID2):
            assert issue(process, fd, command, bytes(128))[:2] == (abi.ENOTSUPP, UNTOUCHED)
        assert issue(process, fd, abi.PDH_CERT_EXPORT, bytes(24))[:2] == (errno.EIO, status.INVALID_LENGTH)
    finally:
        host.close()


def test_firmware_that_no_line_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the first is 0\.22\.16"):
        Simulator.open(tmp_path, product="rome", firmware_version="0.17.0")
    with pytest.raises(UsageError, match="Venice cannot be simulated"):
        Simulator.open(tmp_path, product="venice")
