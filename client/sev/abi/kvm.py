"""KVM: ioctl numbers, capabilities and the structures of system and VM ioctls (include/uapi/linux/kvm.h, x86-64).

Little-endian; addresses are of the calling process. SEV's own commands are in sev.abi.kvm_sev, vCPU state in
sev.abi.kvm_vcpu.
"""

from __future__ import annotations

from typing import ClassVar

from sev.abi.io import io, ior, iow, iowr
from sev.abi.record import Record
from sev.records import record

KVMIO = 0xAE
API_VERSION = 12
PAGE_SIZE = 4096
VCPU_MMAP_SIZE = 3 * PAGE_SIZE

# On /dev/kvm.
KVM_GET_API_VERSION = io(KVMIO, 0x00)
KVM_CREATE_VM = io(KVMIO, 0x01)
KVM_CHECK_EXTENSION = io(KVMIO, 0x03)
KVM_GET_VCPU_MMAP_SIZE = io(KVMIO, 0x04)
KVM_GET_SUPPORTED_CPUID = iowr(KVMIO, 0x05, 8)
KVM_GET_DEVICE_ATTR = iow(KVMIO, 0xE2, 24)
KVM_HAS_DEVICE_ATTR = iow(KVMIO, 0xE3, 24)

# On a VM.
KVM_CREATE_VCPU = io(KVMIO, 0x41)
KVM_SET_USER_MEMORY_REGION = iow(KVMIO, 0x46, 32)
KVM_SET_USER_MEMORY_REGION2 = iow(KVMIO, 0x49, 160)
KVM_ENABLE_CAP = iow(KVMIO, 0xA3, 104)
KVM_MEMORY_ENCRYPT_OP = iowr(KVMIO, 0xBA, 8)
"""Declared with `unsigned long`; the argument is the address of a sev.abi.kvm_sev.SevCmd."""
KVM_MEMORY_ENCRYPT_REG_REGION = ior(KVMIO, 0xBB, 16)
KVM_MEMORY_ENCRYPT_UNREG_REGION = ior(KVMIO, 0xBC, 16)
KVM_SET_MEMORY_ATTRIBUTES = iow(KVMIO, 0xD2, 32)
KVM_CREATE_GUEST_MEMFD = iowr(KVMIO, 0xD4, 64)

# On a vCPU.
KVM_RUN = io(KVMIO, 0x80)
KVM_GET_REGS = ior(KVMIO, 0x81, 144)
KVM_SET_REGS = iow(KVMIO, 0x82, 144)
KVM_GET_SREGS = ior(KVMIO, 0x83, 312)
KVM_SET_SREGS = iow(KVMIO, 0x84, 312)
KVM_GET_MSRS = iowr(KVMIO, 0x88, 8)
KVM_SET_MSRS = iow(KVMIO, 0x89, 8)
KVM_GET_FPU = ior(KVMIO, 0x8C, 416)
KVM_SET_FPU = iow(KVMIO, 0x8D, 416)
KVM_SET_CPUID2 = iow(KVMIO, 0x90, 8)
KVM_GET_CPUID2 = iowr(KVMIO, 0x91, 8)
KVM_GET_DEBUGREGS = ior(KVMIO, 0xA1, 128)
KVM_SET_DEBUGREGS = iow(KVMIO, 0xA2, 128)
KVM_GET_VCPU_EVENTS = ior(KVMIO, 0x9F, 64)
KVM_SET_VCPU_EVENTS = iow(KVMIO, 0xA0, 64)
KVM_GET_XSAVE = ior(KVMIO, 0xA4, 4096)
KVM_SET_XSAVE = iow(KVMIO, 0xA5, 4096)
KVM_GET_XCRS = ior(KVMIO, 0xA6, 392)
KVM_SET_XCRS = iow(KVMIO, 0xA7, 392)
KVM_PRE_FAULT_MEMORY = iowr(KVMIO, 0xD5, 64)

CAP_USER_MEMORY = 3
CAP_EXT_CPUID = 7
CAP_NR_VCPUS = 9
CAP_NR_MEMSLOTS = 10
CAP_DEBUGREGS = 50
CAP_ENABLE_CAP = 54
CAP_XCRS = 56
CAP_MAX_VCPUS = 66
CAP_READONLY_MEM = 81
CAP_ENABLE_CAP_VM = 98
CAP_CHECK_EXTENSION_VM = 105
CAP_MAX_VCPU_ID = 128
CAP_IMMEDIATE_EXIT = 136
CAP_VM_COPY_ENC_CONTEXT_FROM = 197
CAP_EXIT_HYPERCALL = 201
CAP_VM_MOVE_ENC_CONTEXT_FROM = 206
CAP_SYS_ATTRIBUTES = 209
CAP_USER_MEMORY2 = 231
CAP_MEMORY_FAULT_INFO = 232
CAP_MEMORY_ATTRIBUTES = 233
CAP_GUEST_MEMFD = 234
CAP_VM_TYPES = 235
CAP_PRE_FAULT_MEMORY = 236
CAP_GUEST_MEMFD_FLAGS = 244

VM_TYPE_DEFAULT = 0
VM_TYPE_SW_PROTECTED = 1
VM_TYPE_SEV = 2
VM_TYPE_SEV_ES = 3
VM_TYPE_SNP = 4
VM_TYPE_TDX = 5

HC_MAP_GPA_RANGE = 12
"""Hypercall by which a guest asks for page-state changes; its bit in the argument of CAP_EXIT_HYPERCALL is 1 << 12."""

MEM_LOG_DIRTY_PAGES = 1 << 0
MEM_READONLY = 1 << 1
MEM_GUEST_MEMFD = 1 << 2

MEMORY_ATTRIBUTE_PRIVATE = 1 << 3

GUEST_MEMFD_MMAP = 1 << 0
GUEST_MEMFD_INIT_SHARED = 1 << 1

X86_GRP_SEV = 1
"""Group of device attributes on /dev/kvm."""
SEV_ATTR_VMSA_FEATURES = 0
SEV_ATTR_SNP_POLICY_BITS = 1
SEV_ATTR_SNP_REQ_CERTS = 2


@record
class EnableCap(Record):
    """struct kvm_enable_cap, 104 bytes; the arguments are u64."""

    cap: int
    flags: int = 0
    arg0: int = 0
    arg1: int = 0
    arg2: int = 0
    arg3: int = 0

    FORMAT: ClassVar[str] = "I I Q Q Q Q 64x"


@record
class DeviceAttr(Record):
    """struct kvm_device_attr, 24 bytes; a u64 goes to `addr`."""

    flags: int
    group: int
    attr: int
    addr: int

    FORMAT: ClassVar[str] = "I I Q Q"


@record
class UserMemoryRegion(Record):
    """struct kvm_userspace_memory_region, 32 bytes. memory_size 0 deletes the slot."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int

    FORMAT: ClassVar[str] = "I I Q Q Q"


@record
class UserMemoryRegion2(Record):
    """struct kvm_userspace_memory_region2, 160 bytes: a slot with a shared view and, if flagged, a guest_memfd."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    guest_memfd_offset: int = 0
    guest_memfd: int = 0

    FORMAT: ClassVar[str] = "I I Q Q Q Q I 4x 112x"


@record
class CreateGuestMemfd(Record):
    """struct kvm_create_guest_memfd, 64 bytes; size in bytes, whole pages."""

    size_bytes: int
    flags: int = 0

    FORMAT: ClassVar[str] = "Q Q 48x"


@record
class MemoryAttributes(Record):
    """struct kvm_memory_attributes, 32 bytes: guest physical address and bytes, whole pages."""

    address: int
    size_bytes: int
    attributes: int
    flags: int = 0

    FORMAT: ClassVar[str] = "Q Q Q Q"


@record
class PreFaultMemory(Record):
    """struct kvm_pre_fault_memory, 64 bytes: guest physical address and bytes still to do; both come back advanced."""

    gpa: int
    size_bytes: int
    flags: int = 0

    FORMAT: ClassVar[str] = "Q Q Q 40x"


@record
class EncRegion(Record):
    """struct kvm_enc_region, 16 bytes: user virtual address and bytes."""

    addr: int
    size_bytes: int

    FORMAT: ClassVar[str] = "Q Q"
