"""/dev/kvm as Linux answers it on a machine with SEV-SNP (virt/kvm/kvm_main.c, arch/x86/kvm), as far as launches go.

Offered are VMs of the types default, SEV, SEV-ES and SNP, with memory, vCPUs and SEV's commands. Not modelled:
interrupt controllers, running, dirty logging, MOVE and COPY of encryption contexts; their capabilities read 0 and their
ioctls fail as those of a kernel without them.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import threading
from typing import TYPE_CHECKING

from sev.abi import kvm, kvm_sev, kvm_vcpu
from sev.abi.sev_device import SNP_FEATURE_INFO, SnpStatus
from sev.abi.tcb import TcbVersion
from sevd.simulator import kvm_memory
from sevd.simulator.asids import AsidPool
from sevd.simulator.errnos import Reply, fail
from sevd.simulator.guest_ref import valid_name
from sevd.simulator.process import File, Process

if TYPE_CHECKING:
    from sev.products import Product
    from sevd.simulator.ccp import Ccp
    from sevd.simulator.hardware import Hardware
    from sevd.simulator.kvm_vm import Vm

MAX_VCPUS = 1024
MAX_VCPU_IDS = 4096
RECOMMENDED_VCPUS = 128

SEV_LEAF = 0x8000001F
_SEV, _SEV_ES, _SNP, _SECURE_TSC, _DEBUG_SWAP = 1 << 1, 1 << 3, 1 << 4, 1 << 8, 1 << 14
_INDEXED = frozenset({0x4, 0x7, 0xB, 0xD, 0xF, 0x10, 0x12, 0x14, 0x1D, 0x1E, 0x1F, 0x8000001D, 0x80000020, 0x80000026})
_COUNT = struct.Struct("<II")

_POLICY_ALWAYS = 0xFFFF | 1 << 16 | 1 << 17 | 1 << 19 | 1 << 20
_POLICY_BY_FEATURE = ((1 << 5, 1 << 21), (1 << 4, 1 << 22), (1 << 2, 1 << 23), (1 << 3, 1 << 24))
"""(bit of ECX of SNP_FEATURE_INFO 0, policy bit): CXL, AES-256-XTS, RAPL, ciphertext hiding."""
_POLICY_PAGE_SWAP = 1 << 25

_CAPABILITIES = {
    kvm.CAP_USER_MEMORY: 1,
    kvm.CAP_EXT_CPUID: 1,
    kvm.CAP_NR_VCPUS: RECOMMENDED_VCPUS,
    kvm.CAP_NR_MEMSLOTS: kvm_memory.USER_SLOTS,
    kvm.CAP_DEBUGREGS: 1,
    kvm.CAP_MAX_VCPUS: MAX_VCPUS,
    kvm.CAP_READONLY_MEM: 1,
    kvm.CAP_ENABLE_CAP_VM: 1,
    kvm.CAP_CHECK_EXTENSION_VM: 1,
    kvm.CAP_MAX_VCPU_ID: MAX_VCPU_IDS,
    kvm.CAP_EXIT_HYPERCALL: 1 << kvm.HC_MAP_GPA_RANGE,
    kvm.CAP_SYS_ATTRIBUTES: 1,
    kvm.CAP_USER_MEMORY2: 1,
    kvm.CAP_MEMORY_ATTRIBUTES: kvm.MEMORY_ATTRIBUTE_PRIVATE,
    kvm.CAP_GUEST_MEMFD: 1,
}


class Kvm:
    """The module: kvm and kvm_amd, loaded.

    Args:
        ccp: The secure processor's driver.
        hardware: The processor.
        product: Its line.

    Attributes:
        vms: The VMs that exist.
        asids: The pools of ASIDs, "sev" and "sev_es".
    """

    def __init__(self, ccp: Ccp, hardware: Hardware, product: Product) -> None:
        self.ccp = ccp
        self.hardware = hardware
        self.product = product
        eax, _, last, first_sev = hardware.registers(SEV_LEAF)
        self._features = eax
        self._last_asid, self._first_sev = last, first_sev
        self._names = threading.Lock()
        self.vms: set[Vm] = set()
        self.load()
        self._supported_cpuid = kvm_vcpu.encode_list(self._cpuid())

    def open(self, flags: int) -> File:
        """Opens the device: any access mode will do."""
        return KvmFile(self, flags)

    def name(self, vm: Vm, name: str) -> None:
        """Names the guest in a VM. Raises OSError: EINVAL: no name that a guest can have; EEXIST: taken."""
        if not valid_name(name):
            fail(errno.EINVAL)
        with self._names:
            if any(other.name == name for other in tuple(self.vms) if other is not vm):
                fail(errno.EEXIST)
            vm.name = name

    def extension(self, capability: int, vm_type: int | None = None) -> int:
        """KVM_CHECK_EXTENSION, for the device or for a VM of this type."""
        if capability == kvm.CAP_VM_TYPES:
            return self.vm_types
        if capability == kvm.CAP_MEMORY_ATTRIBUTES and vm_type not in (None, kvm.VM_TYPE_SNP):
            return 0
        if capability == kvm.CAP_GUEST_MEMFD_FLAGS:
            return kvm_memory.memfd_flags(vm_type)
        return _CAPABILITIES.get(capability, 0)

    def vmsa_features(self, vm_type: int) -> int:
        """SEV_FEATURES that INIT2 takes for a VM type."""
        if vm_type == kvm.VM_TYPE_SNP:
            return self.supported_features
        if vm_type == kvm.VM_TYPE_SEV_ES:
            return self.supported_features & ~kvm_sev.VMSA_SECURE_TSC
        return 0

    def attribute(self, group: int, number: int) -> int:
        """A device attribute of /dev/kvm. Raises OSError(ENXIO) if it does not exist."""
        if (group, number) == (0, 0):
            return self.hardware.registers(0xD)[0]  # KVM_X86_XCOMP_GUEST_SUPP
        if group == kvm.X86_GRP_SEV:
            if number == kvm.SEV_ATTR_VMSA_FEATURES:
                return self.supported_features
            if number == kvm.SEV_ATTR_SNP_POLICY_BITS:
                return self.policy_mask
            if number == kvm.SEV_ATTR_SNP_REQ_CERTS:
                return int(self.snp)
        return fail(errno.ENXIO)

    def supported_cpuid(self, process: Process, argument: int) -> int:
        """KVM_GET_SUPPORTED_CPUID. Raises OSError: EFAULT; E2BIG: no room for all entries."""
        memory = process.memory
        room, _ = _COUNT.unpack(memory.read(argument, _COUNT.size))
        (count, _) = _COUNT.unpack_from(self._supported_cpuid)
        if room < count:
            fail(errno.E2BIG)
        memory.write(argument, self._supported_cpuid)
        return 0

    def load(self) -> None:
        """What kvm_amd does when it is loaded: initialises SNP, and finds out what it can offer.

        VMs of before a power cycle are dead.
        """
        for vm in tuple(self.vms):
            vm.lose()
        self.vms.clear()
        self.asids = {
            "sev": AsidPool(self._first_sev, self._last_asid, self._flush),
            "sev_es": AsidPool(1, self._first_sev - 1, self._flush),
        }
        # Where it fails the kernel logs it and goes on without SNP; the device still answers.
        with contextlib.suppress(OSError):
            self.ccp.initialise(Reply())
        self.snp = bool(self._features & _SNP) and self.ccp.snp_initialised and self.asids["sev_es"].total > 0
        sev = bool(self._features & _SEV) and self.asids["sev"].total > 0
        es = bool(self._features & _SEV_ES) and self.asids["sev_es"].total > 0
        status = self._status() if self.snp else None
        if status is not None:
            es = es and not self._es_is_masked(status)
        self.vm_types = 1 << kvm.VM_TYPE_DEFAULT
        for offered, number in ((sev, kvm.VM_TYPE_SEV), (es, kvm.VM_TYPE_SEV_ES), (self.snp, kvm.VM_TYPE_SNP)):
            self.vm_types |= int(offered) << number
        self.sev = sev or es or self.snp
        self.es = bool(self._features & _SEV_ES) and self.asids["sev_es"].total > 0
        self.supported_features = kvm_sev.VMSA_DEBUG_SWAP if self.es and self._features & _DEBUG_SWAP else 0
        if self.snp and self._features & _SECURE_TSC:
            self.supported_features |= kvm_sev.VMSA_SECURE_TSC
        self.policy_mask = self._policy_mask(status) if status is not None else 0

    def _status(self) -> SnpStatus | None:
        """What the firmware says of itself; None where it does not answer."""
        try:
            return SnpStatus.decode(self.ccp.call(Reply(), self.ccp.firmware.snp_platform_status))
        except OSError:
            return None

    def _es_is_masked(self, status: SnpStatus) -> bool:
        family = self.product.sample_cpuid[0]
        floor = self.ccp.era.masks_es_at_snp_svn.get(family)
        svn = TcbVersion.from_int(status.current_tcb, self.product).snp
        return floor is not None and svn is not None and svn >= floor

    def _policy_mask(self, status: SnpStatus) -> int:
        mask = _POLICY_ALWAYS
        if status.bits & SNP_FEATURE_INFO:
            try:
                info = self.ccp.call(Reply(), lambda: self.ccp.firmware.snp_feature_info(0))
            except OSError:
                return mask
            ecx = int.from_bytes(info[8:12], "little")
            for feature, policy in _POLICY_BY_FEATURE:
                mask |= policy if ecx & feature else 0
            if (status.api_major, status.api_minor) >= (1, 58):
                mask |= _POLICY_PAGE_SWAP
        return mask

    def _cpuid(self) -> list[kvm_vcpu.CpuidEntry]:
        out = []
        for (leaf, subleaf), registers in sorted(self.hardware.cpuid.items()):
            eax, ebx, ecx, edx = registers
            if leaf == SEV_LEAF:
                eax, ebx, ecx, edx = (eax, ebx & 0x3F, ecx, edx) if self.sev else (0, 0, 0, 0)
            flags = kvm_vcpu.CPUID_FLAG_SIGNIFICANT_INDEX if leaf in _INDEXED else 0
            out.append(kvm_vcpu.CpuidEntry(leaf, subleaf, flags, eax, ebx, ecx, edx))
        return out

    def _flush(self) -> None:
        firmware = self.ccp.firmware
        self.ccp.call(Reply(), firmware.snp_df_flush if self.snp else firmware.df_flush)


class KvmFile(File):
    """An open /dev/kvm."""

    def __init__(self, module: Kvm, flags: int) -> None:
        super().__init__(flags)
        self.module = module

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """A system ioctl. Raises OSError with KVM's errno; unknown ones EINVAL."""
        from sevd.simulator.kvm_vm import Vm, VmFile

        if request == kvm.KVM_GET_API_VERSION:
            return kvm.API_VERSION if not argument else fail(errno.EINVAL)
        if request == kvm.KVM_GET_VCPU_MMAP_SIZE:
            return kvm.VCPU_MMAP_SIZE if not argument else fail(errno.EINVAL)
        if request == kvm.KVM_CHECK_EXTENSION:
            return self.module.extension(argument)
        if request == kvm.KVM_CREATE_VM:
            if argument >= 32 or not self.module.vm_types >> argument & 1:
                fail(errno.EINVAL)
            return process.install(VmFile(Vm(self.module, process, argument)))
        if request == kvm.KVM_GET_SUPPORTED_CPUID:
            return self.module.supported_cpuid(process, argument)
        if request in (kvm.KVM_GET_DEVICE_ATTR, kvm.KVM_HAS_DEVICE_ATTR):
            attr = kvm.DeviceAttr.decode(process.memory.read(argument, kvm.DeviceAttr.size()))
            value = self.module.attribute(attr.group, attr.attr)
            if request == kvm.KVM_GET_DEVICE_ATTR:
                process.memory.write(attr.addr, value.to_bytes(8, "little"))
            return 0
        return fail(errno.EINVAL)
