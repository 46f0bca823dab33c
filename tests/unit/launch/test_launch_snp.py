"""The launch driver: right digests, typed refusals, nothing left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sev import status
from sev.abi import cpuid_page, kvm, kvm_sev
from sev.abi.kvm_vcpu import decode_cpuid
from sev.errors import (
    DeviceMissing,
    FirmwareError,
    KernelError,
    LimitReached,
    NotOffered,
    NotPermitted,
    SevError,
    UsageError,
    WrongState,
)
from sev.launch import Snp
from sev.launch.linux import LinuxKernel
from sev.measurement import snp_launch_digest
from sev.measurement.plan import LaunchPlan, snp_plan
from sev.measurement.sample import sample_firmware
from sev.measurement.vcpu_types import signature
from sevd.simulator import Simulator
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.process import Process
from tests.support.simulated import simulated_host
from tests.support.simulated_firmware import id_auth, id_block

PAGE = 4096
POLICY = 0x30000
FIRMWARE = 64 << 10
FIRMWARE_GPA = (4 << 30) - FIRMWARE
GENOA = 0xA10F10


def small(guest: Snp, vcpus: int = 1, **changes: int) -> None:
    """A guest with 16 MiB and a small firmware region."""
    guest.create(16 << 20, FIRMWARE, vcpus, GENOA, 0xFFFF1000 if vcpus > 1 else 0, **changes)


def launch(guest: Snp, plan: LaunchPlan, firmware: bytes, vcpus: int, features: int, cpu: int) -> None:
    guest.create(16 << 20, len(firmware), vcpus, cpu, plan.ap_reset_address, features)
    for region in plan.regions:
        if region.data is not None:
            guest.memory(region.gpa, region.size)[:] = region.data
    guest.start(POLICY)
    for region in plan.regions:
        guest.update(region.gpa, region.size, region.page_type)
    guest.finish()


def held(host: Simulator, process: Process) -> tuple[int, int, list[int]]:
    return host.asids()["sev_es"][1], host.guest_count(), process.descriptors()


FREE: tuple[int, int, list[int]] = (0, 0, [])


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


# Refusals, each as its own error with errno or status, command and remedy; and nothing is left.


def test_out_of_order_is_the_kernels_answer(host: Simulator, process: Process) -> None:
    with Snp(process) as guest:
        small(guest)
        steps: list[Callable[[], None]] = [lambda: guest.update(0, PAGE, 1), guest.finish]
        for step in steps:
            with pytest.raises(KernelError) as refused:
                step()
            assert (refused.value.errno, refused.value.firmware_status) == (errno.EINVAL, None)
            assert refused.value.remedy
        guest.start(POLICY)
        with pytest.raises(KernelError) as refused:
            guest.start(POLICY)
        assert (refused.value.errno, refused.value.command) == (errno.EINVAL, "SNP_LAUNCH_START")
        for page_type in (0, 2, 7):
            with pytest.raises(KernelError) as refused:
                guest.update(0, PAGE, page_type)
            assert refused.value.errno == errno.EINVAL
        guest.update(0, PAGE, 1)
        with pytest.raises(KernelError) as refused:
            guest.update(0, PAGE, 1)
        assert refused.value.errno == errno.EIO
        guest.finish()
        with pytest.raises(KernelError) as refused:
            guest.finish()
        assert (refused.value.errno, refused.value.command) == (errno.EINVAL, "SNP_LAUNCH_FINISH")
        with pytest.raises(FirmwareError) as late:
            guest.update(PAGE, PAGE, 1)
        assert late.value.firmware_status == status.INVALID_GUEST_STATE
        assert host.guest_report(process, guest.vm_fd, bytes(64), 0, 0)  # none of it harmed the guest
    assert held(host, process) == FREE


@pytest.mark.parametrize(
    ("policy", "kind", "number", "code"),
    [
        (POLICY | 0x0200, FirmwareError, errno.EIO, status.POLICY_FAILURE),
        (POLICY | 0x01FF, FirmwareError, errno.EIO, status.POLICY_FAILURE),
        (0x10000, KernelError, errno.EINVAL, None),
        (POLICY | 1 << 18, KernelError, errno.EINVAL, None),
        (POLICY | 1 << 40, KernelError, errno.EINVAL, None),
    ],
    ids=["abi major", "abi minor", "bit 17", "migration", "unknown bit"],
)
def test_policies_that_are_refused(
    host: Simulator, process: Process, policy: int, kind: type[SevError], number: int, code: int | None
) -> None:
    with Snp(process) as guest:
        small(guest)
        with pytest.raises(kind) as refused:
            guest.start(policy)
        assert (refused.value.errno, refused.value.firmware_status) == (number, code)
        assert refused.value.remedy
        assert host.guest_count() == 0
        guest.start(POLICY)
    assert held(host, process) == FREE


def signed(digest: bytes, *, spoil: bool = False) -> tuple[bytes, bytes]:
    block = id_block(digest)
    auth = bytearray(id_auth(block, ec.generate_private_key(ec.SECP384R1())))
    if spoil:
        auth[0x48] ^= 1
    return block, bytes(auth)


def test_an_id_block(host: Simulator, process: Process) -> None:
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        guest.update(FIRMWARE_GPA, FIRMWARE, 1)
        digest = predicted_end(host, process, guest)
        guest.finish(*signed(digest), host_data=b"\7" * 32)
        report = host.guest_report(process, guest.vm_fd, bytes(64), 0, 0)
        assert report[0xC0:0xE0] == b"\7" * 32
        assert any(report[0xE0:0x110])


def predicted_end(host: Simulator, process: Process, guest: Snp) -> bytes:
    """The digest after FINISH of this small guest: from a twin without an ID block."""
    with Snp(process) as twin:
        small(twin)
        twin.start(POLICY)
        twin.update(FIRMWARE_GPA, FIRMWARE, 1)
        twin.finish()
        assert twin.vm_fd != guest.vm_fd
        return host.launch_digest(process, twin.vm_fd)


@pytest.mark.parametrize("case", ["measurement", "signature", "author"])
def test_a_failed_finish_is_the_end(host: Simulator, process: Process, case: str) -> None:
    codes = {
        "measurement": status.BAD_MEASUREMENT,
        "signature": status.BAD_SIGNATURE,
        "author": status.INVALID_PARAM,
    }
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        guest.update(FIRMWARE_GPA, FIRMWARE, 1)
        digest = bytes(48) if case == "measurement" else predicted_end(host, process, guest)
        block, auth = signed(digest, spoil=case == "signature")
        with pytest.raises(FirmwareError) as refused:
            guest.finish(block, auth, auth_key_en=case == "author")
        assert (refused.value.errno, refused.value.firmware_status) == (errno.EIO, codes[case])
        assert refused.value.remedy
        steps: list[Callable[[], None]] = [
            guest.finish,
            lambda: guest.start(POLICY),
            lambda: guest.update(0, PAGE, 1),
            lambda: small(guest),
        ]
        for step in steps:
            with pytest.raises(WrongState, match="failed"):
                step()
        assert host.asids()["sev_es"][1] == 1
    assert held(host, process) == FREE


def test_a_full_host(host: Simulator, process: Process) -> None:
    guests = [Snp(process) for _ in range(host.asids()["sev_es"][0])]
    for guest in guests:
        guest.create(PAGE, PAGE, 1, GENOA)
    before = process.descriptors()
    with pytest.raises(LimitReached) as refused:
        small(Snp(process))
    assert (refused.value.errno, refused.value.firmware_status) == (errno.EBUSY, None)
    assert "ASID" in refused.value.remedy
    assert process.descriptors() == before
    guests[0].close()
    small(Snp(process))
    for guest in guests:
        guest.close()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"memory_bytes": 1}, "memory_bytes"),
        ({"memory_bytes": -PAGE}, "memory_bytes"),
        ({"memory_bytes": 1 << 60}, "memory_bytes"),
        ({"firmware_bytes": 17}, "firmware_bytes"),
        ({"firmware_bytes": 3 << 30}, "firmware_bytes"),
        ({"memory_bytes": 0, "firmware_bytes": 0}, "memory_bytes"),
        ({"vcpu_count": 0}, "vcpu_count"),
        ({"vcpu_count": -1}, "vcpu_count"),
        ({"vcpu_count": 1025}, "vcpu_count"),
        ({"vcpu_count": 2}, "ap_reset_address"),
        ({"vcpu_count": 2, "ap_reset_address": 1 << 32}, "ap_reset_address"),
        ({"cpuid_signature": 1 << 32}, "cpuid_signature"),
        ({"cpuid_signature": -1}, "cpuid_signature"),
    ],
    ids=str,
)
def test_guests_that_cannot_be(host: Simulator, process: Process, change: dict[str, int], field: str) -> None:
    values = {"memory_bytes": PAGE, "firmware_bytes": PAGE, "vcpu_count": 1, "cpuid_signature": GENOA} | change
    with pytest.raises(UsageError) as refused:
        Snp(process).create(**values)
    assert refused.value.field == field
    assert held(host, process) == FREE


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda guest: guest.start(POLICY, bytes(15)), "gosvw"),
        (lambda guest: guest.update(1, PAGE, 1), "gpa"),
        (lambda guest: guest.update(0, PAGE + 1, 1), "gpa"),
        (lambda guest: guest.update(1 << 50, PAGE, 1), "gpa"),
        (lambda guest: guest.finish(bytes(96)), "id_auth"),
        (lambda guest: guest.finish(bytes(95), bytes(4096)), "id_block"),
        (lambda guest: guest.finish(bytes(96), bytes(4095)), "id_auth"),
        (lambda guest: guest.finish(host_data=bytes(31)), "host_data"),
    ],
)
def test_arguments_that_cannot_be_harm_nothing(process: Process, call: Callable[[Snp], None], field: str) -> None:
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        with pytest.raises(UsageError) as refused:
            call(guest)
        assert refused.value.field == field
        guest.finish()


def test_features_that_are_not_offered(host: Simulator, process: Process) -> None:
    with pytest.raises(NotOffered) as refused:
        small(Snp(process), vmsa_features=0x1 | 1 << 14)
    assert "0x4000" in refused.value.message
    assert held(host, process) == FREE


def test_before_create_and_after_close(process: Process) -> None:
    guest = Snp(process)
    calls: list[Callable[[], object]] = [
        lambda: guest.start(POLICY), guest.finish, lambda: guest.memory(0, PAGE), lambda: guest.update(0, PAGE, 1),
        lambda: guest.vm_fd,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(WrongState) as refused:
            call()
        assert refused.value.metadata["allowed"] == "create"
    small(guest)
    with pytest.raises(WrongState):
        small(guest)
    guest.close()
    guest.close()
    for call in calls:
        with pytest.raises(WrongState):
            call()


@pytest.mark.parametrize(("sev", "kvm_path"), [("/dev/none", "/dev/kvm"), ("/dev/sev", "/dev/none")])
def test_a_device_that_is_not_there(host: Simulator, process: Process, sev: str, kvm_path: str) -> None:
    with pytest.raises(DeviceMissing, match="/dev/none") as refused:
        small(Snp(process, sev_path=sev, kvm_path=kvm_path))
    assert refused.value.errno == errno.ENOENT
    assert held(host, process) == FREE


def test_a_host_without_snp(tmp_path: Path, host: Simulator, process: Process) -> None:
    del tmp_path
    host._kvm.vm_types = 1
    with pytest.raises(NotOffered, match="type 4") as refused:
        small(Snp(process))
    assert refused.value.remedy
    assert held(host, process) == FREE


class Failing:
    """A kernel whose so-many-th call of a kind fails."""

    def __init__(self, process: Process, kind: str, number: int, at: int) -> None:
        self._process = process
        self._kind = kind
        self._number = number
        self._left = at
        self.calls = 0
        self.memory = process.memory

    def _count(self, kind: str) -> None:
        if kind == self._kind:
            self._left -= 1
            self.calls += 1
            if self._left < 0:
                raise OSError(self._number, os.strerror(self._number))

    def open(self, path: str, flags: int) -> int:
        self._count("open")
        return self._process.open(path, flags)

    def close(self, fd: int) -> None:
        self._process.close(fd)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        self._count("ioctl")
        return self._process.ioctl(fd, request, argument)

    def ioctls(self, fd: int, request: int, arguments: Sequence[int]) -> tuple[int, int]:
        return self._process.ioctls(fd, request, arguments)

    def map(self, fd: int, size: int) -> memoryview:
        return self._process.map(fd, size)

    def unmap(self, view: memoryview) -> None:
        self._process.unmap(view)

    def discard(self, fd: int, offset: int, size: int) -> None:
        self._process.discard(fd, offset, size)


def test_whichever_call_fails_nothing_is_left(host: Simulator, process: Process) -> None:
    """Every ioctl of `create` in turn."""
    calls = Failing(process, "ioctl", errno.ENOMEM, 1 << 30)
    with Snp(calls) as guest:
        small(guest, 2)
    count = calls.calls
    assert count > 20
    for at in range(count):
        with pytest.raises(KernelError) as refused:
            small(Snp(Failing(process, "ioctl", errno.ENOMEM, at)), 2)
        assert refused.value.errno == errno.ENOMEM
        assert refused.value.command
        assert held(host, process) == FREE


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, NotPermitted),
        (errno.EPERM, NotPermitted),
        (errno.ENODEV, DeviceMissing),
        (errno.ENXIO, DeviceMissing),
        (errno.EMFILE, KernelError),
    ],
)
@pytest.mark.parametrize("at", [0, 1], ids=["sev", "kvm"])
def test_devices_that_do_not_open(process: Process, number: int, kind: type[SevError], at: int) -> None:
    with pytest.raises(kind) as refused:
        small(Snp(Failing(process, "open", number, at)))
    assert refused.value.errno == number
    assert refused.value.remedy
    assert process.descriptors() == []


def test_eagain_is_tried_again(process: Process) -> None:
    class Shy(Failing):
        def __init__(self) -> None:
            super().__init__(process, "", 0, 0)
            self.tries = 0

        def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
            if request == kvm.KVM_MEMORY_ENCRYPT_OP and process.memory.read(argument, 4) == b"\x65\0\0\0":
                self.tries += 1
                if self.tries <= 3:
                    raise OSError(errno.EAGAIN, "again")
            return super().ioctl(fd, request, argument)

    kernel = Shy()
    with Snp(kernel) as guest:
        small(guest)
        guest.start(POLICY)
        guest.update(0, PAGE, 1)
    assert kernel.tries == 4


def test_a_firmware_that_fails_at_any_step(host: Simulator, process: Process) -> None:
    """Each command of a launch in turn fails once; the error names the status, and nothing is left."""
    commands: list[str] = []
    host.faults = commands.append
    run(process)
    for at, name in enumerate(list(commands)):
        if name in ("SNP_DECOMMISSION", "SNP_DF_FLUSH"):
            continue
        seen: list[str] = []

        def hook(command: str, seen: list[str] = seen, at: int = at) -> None:
            seen.append(command)
            if len(seen) == at + 1:
                raise FirmwareStatus(status.HWERROR_UNSAFE)

        host.faults = hook
        with pytest.raises(FirmwareError) as refused:
            run(process)
        assert refused.value.firmware_status == status.HWERROR_UNSAFE, name
        assert refused.value.errno in (errno.EIO, errno.ENOTTY)
        host.faults = lambda _command: None
        assert held(host, process) == FREE


def run(process: Process) -> None:
    with Snp(process) as guest:
        small(guest)
        guest.start(POLICY)
        guest.update(FIRMWARE_GPA, FIRMWARE, 1)
        guest.update(0x1000, PAGE, kvm_sev.PAGE_SECRETS)
        guest.finish()


def test_the_real_kernel_here(tmp_path: Path) -> None:
    """Where /dev/kvm is real and SNP is not: a precise no, and every descriptor closed again."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm here")
    kernel = LinuxKernel()
    sev = tmp_path / "sev"
    sev.write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(NotOffered, match="type 4"):
            small(Snp(kernel, sev_path=str(sev)))
    except BaseException:
        if Path("/sys/module/kvm_amd/parameters/sev_snp").exists():
            pytest.skip("this host may have SNP")
        raise
    finally:
        kernel.exit()
    assert len(os.listdir("/proc/self/fd")) == before
