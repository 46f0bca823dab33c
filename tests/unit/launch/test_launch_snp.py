"""The launch driver of SNP guests: right digests, memory as the kernel takes it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sev import status
from sev.abi import cpuid_page, kvm, kvm_sev
from sev.abi.kvm_vcpu import decode_cpuid
from sev.errors import (
    FirmwareError,
    KernelError,
    UsageError,
)
from sev.launch import Snp
from sev.measurement import snp_launch_digest
from sev.measurement.plan import snp_plan
from sev.measurement.sample import sample_firmware
from sev.measurement.vcpu_types import signature
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.simulated import simulated_host
from tests.support.snp_launches import FIRMWARE, FIRMWARE_GPA, FREE, GENOA, PAGE, POLICY, held, launch, small


@pytest.mark.parametrize("vcpus", [1, 2, 5, 64, 255, 300])
@pytest.mark.parametrize(("model", "features"), [("EPYC-v4", 0x1), ("EPYC-Genoa", 0x21), ("EPYC-Milan", 0x201)])
def test_the_digest_is_the_predicted_one(
    host: Simulator, process: Process, vcpus: int, model: str, features: int
) -> None:
    firmware = sample_firmware()
    plan = snp_plan(firmware, vcpus, vcpu_type=model, guest_features=features)
    with Snp(process) as guest:
        launch(guest, plan, firmware, vcpus, features, signature(model))
        predicted = snp_launch_digest(firmware, vcpus, vcpu_type=model, guest_features=features, vmm="qemu")
        assert host.launch_digest(process, guest.vm_fd) == plan.digest() == predicted
        report = host.guest_report(process, guest.vm_fd, bytes(64), 0, 0)
        assert report[0x90:0xC0] == predicted
    assert held(host, process) == FREE


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_installed_firmware_on_every_product(tmp_path: Path, product: str) -> None:
    image = Path("/usr/share/ovmf/OVMF.fd")
    if not image.exists():
        pytest.skip(f"{image} is not installed")
    firmware = image.read_bytes()
    plan = snp_plan(firmware, 2, vcpu_type="EPYC")
    with simulated_host(tmp_path, product) as host:
        process = host.process()
        with Snp(process) as guest:
            launch(guest, plan, firmware, 2, 1, signature("EPYC"))
            assert host.launch_digest(process, guest.vm_fd) == plan.digest()


def test_kernel_hashes_are_measured(host: Simulator, process: Process) -> None:
    firmware = sample_firmware()
    plan = snp_plan(firmware, 1, vcpu_type="EPYC", kernel=b"kernel", initrd=b"initrd", append="quiet")
    with Snp(process) as guest:
        launch(guest, plan, firmware, 1, 1, signature("EPYC"))
        assert host.launch_digest(process, guest.vm_fd) == plan.digest()


@pytest.mark.parametrize("memory", [PAGE, 64 << 20, (2 << 30) + PAGE, 5 << 30])
def test_memory_below_and_above_four_gib(process: Process, memory: int) -> None:
    with Snp(process) as guest:
        guest.create(memory, FIRMWARE, 1, GENOA)
        low = min(memory, 2 << 30)
        views = [guest.memory(0, PAGE), guest.memory(low - PAGE, PAGE), guest.memory(FIRMWARE_GPA, FIRMWARE)]
        if memory > low:
            views.append(guest.memory((4 << 30) + memory - low - PAGE, PAGE))
        for view in views:
            view[-1] = 1
        for gpa, size in ((low, PAGE), (low - PAGE, 2 * PAGE), (FIRMWARE_GPA, FIRMWARE + PAGE), (0, memory + PAGE)):
            with pytest.raises(UsageError, match="inside one region"):
                guest.memory(gpa, size)


def test_memory_is_what_update_takes(host: Simulator, process: Process) -> None:
    digests = set()
    for content in (b"\0", b"\1"):
        with Snp(process) as guest:
            small(guest)
            guest.memory(FIRMWARE_GPA, PAGE)[:] = content * PAGE
            guest.start(POLICY)
            guest.update(FIRMWARE_GPA, PAGE, kvm_sev.PAGE_NORMAL)
            digests.add(host.launch_digest(process, guest.vm_fd))
    assert len(digests) == 2


def test_views_outlive_the_guest(process: Process) -> None:
    guest = Snp(process)
    small(guest)
    view = guest.memory(0, PAGE)
    view[0] = 7
    guest.close()
    assert view[0] == 7


def test_an_update_is_cut_where_the_kernel_cuts_it(host: Simulator, process: Process) -> None:
    """A slot may be filled in several calls: here one page of the run is shared when the first one comes."""
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        hole = process.memory.place(kvm.MemoryAttributes(0x8000, PAGE, 0).encode())
        process.ioctl(guest.vm_fd, kvm.KVM_SET_MEMORY_ATTRIBUTES, hole)
        with pytest.raises(KernelError) as refused:
            guest.update(0, 64 << 10, kvm_sev.PAGE_ZERO)
        assert (refused.value.errno, refused.value.command) == (errno.EIO, "SNP_LAUNCH_UPDATE")
        before = host.launch_digest(process, guest.vm_fd)
        guest.update(0x9000, PAGE, kvm_sev.PAGE_ZERO)
        assert host.launch_digest(process, guest.vm_fd) != before


def test_a_given_cpuid_page_is_taken_as_it_is(host: Simulator, process: Process) -> None:
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        mine = cpuid_page.build([cpuid_page.Function(0x80000000, 0, 0, 0, 1, 0, 0, 0)])
        guest.memory(0x1000, PAGE)[:] = mine
        guest.update(0x1000, PAGE, kvm_sev.PAGE_CPUID)
        assert guest.memory(0x1000, PAGE) == mine
        guest.update(0x2000, PAGE, kvm_sev.PAGE_CPUID)
        functions = cpuid_page.parse(guest.memory(0x2000, PAGE))
        assert next(one.eax for one in functions if one.eax_in == 1) == GENOA
        assert host.guest_count() == 1


def test_a_processor_that_the_host_is_not_yet_is_refused_with_corrections(process: Process) -> None:
    with Snp(process) as guest:
        guest.create(16 << 20, FIRMWARE, 1, signature("EPYC-Turin"))
        guest.start(POLICY)
        with pytest.raises(FirmwareError) as refused:
            guest.update(0x1000, PAGE, kvm_sev.PAGE_CPUID)
        assert refused.value.firmware_status == status.INVALID_PARAM
        assert "leaf 0x1.0 eax" in refused.value.metadata["corrections"]


def test_cpuid_tells_each_vcpu_its_apic_id(process: Process) -> None:
    with Snp(process) as guest:
        small(guest, 3)
        seen = []
        for fd in process.descriptors():
            file = process.take(fd)
            vcpu = getattr(file, "vcpu", None)
            file.drop()
            if vcpu is not None:
                leaf = next(entry for entry in decode_cpuid(vcpu.cpuid) if entry.function == 1)
                topology = next(entry for entry in decode_cpuid(vcpu.cpuid) if entry.function == 0xB)
                seen.append((leaf.ebx >> 24, topology.edx, leaf.eax))
        assert seen == [(0, 0, GENOA), (1, 1, GENOA), (2, 2, GENOA)]
