"""The state of a vCPU as KVM has it, taken and given: what an SEV guest takes along to another host.

Each part is what one ioctl carries. Parts that a kernel does not know are left out when they are taken, and refused
when they are given. The vCPU must stand still, and its last exit be completed: KVM_RUN ends what it began.
"""

from __future__ import annotations

import errno
import struct

from sev.abi import kvm, kvm_vcpu
from sev.errors import MalformedInput
from sev.launch.refusals import refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.launch.seam import Kernel

_PARTS = (
    ("sregs", kvm.KVM_GET_SREGS, kvm.KVM_SET_SREGS, 312),
    ("regs", kvm.KVM_GET_REGS, kvm.KVM_SET_REGS, 144),
    ("xcrs", kvm.KVM_GET_XCRS, kvm.KVM_SET_XCRS, 392),
    ("xsave", kvm.KVM_GET_XSAVE, kvm.KVM_SET_XSAVE, 4096),
    ("fpu", kvm.KVM_GET_FPU, kvm.KVM_SET_FPU, 416),
    ("debugregs", kvm.KVM_GET_DEBUGREGS, kvm.KVM_SET_DEBUGREGS, 128),
    ("events", kvm.KVM_GET_VCPU_EVENTS, kvm.KVM_SET_VCPU_EVENTS, 64),
)
"""Name, ioctls and bytes, in the order in which they are given."""

_MSRS = (
    0x10, 0x174, 0x175, 0x176, 0x1D9, 0x277, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102, 0xC0000103,
)  # fmt: skip
"""TSC, SYSENTER_*, DEBUGCTL, PAT, STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, TSC_AUX."""

_ABSENT = (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP)
_HEAD = struct.Struct("<8sI")
MAGIC = b"SEVVCPU1"


def take(kernel: Kernel, fd: int) -> bytes:
    """The state of a vCPU: for each part its name, 8 bytes, its size as u32 (little-endian), and what it is.

    Raises:
        KernelError: The kernel refused what every one knows.
    """
    memory, out = kernel.memory, bytearray(MAGIC)
    for name, request, _, size in _PARTS:
        place = memory.place(bytes(size))
        try:
            kernel.ioctl(fd, request, place)
            out += _HEAD.pack(name.encode()[:8], size) + memory.read(place, size)
        except OSError as error:
            if name in ("sregs", "regs") or error.errno not in _ABSENT:
                raise refused(error, f"KVM_GET_{name.upper()}") from None
        finally:
            memory.release(place)
    for index in _MSRS:
        entry = kvm_vcpu.encode_list((kvm_vcpu.MsrEntry(index),))
        place = memory.place(bytes(entry))
        try:
            if kernel.ioctl(fd, kvm.KVM_GET_MSRS, place) == 1:
                out += _HEAD.pack(b"msr", len(entry)) + memory.read(place, len(entry))
        except OSError as error:
            raise refused(error, "KVM_GET_MSRS") from None
        finally:
            memory.release(place)
    return bytes(out)


def give(kernel: Kernel, fd: int, state: bytes) -> None:
    """Gives a vCPU a state that `take` answered.

    Raises:
        MalformedInput: It is none.
        KernelError: The kernel does not take it.
    """
    for name, data in parse(state):
        request = kvm.KVM_SET_MSRS if name == "msr" else _SET[name]
        place = kernel.memory.place(data)
        try:
            done = kernel.ioctl(fd, request, place)
            if name == "msr" and done != 1:
                raise OSError(errno.EINVAL, "an MSR")
        except OSError as error:
            raise refused(error, f"KVM_SET_{name.upper()}") from None
        finally:
            kernel.memory.release(place)


def parse(state: bytes) -> list[tuple[str, bytes]]:
    """The parts of a state, in the order in which they are given. Raises MalformedInput."""
    if state[: len(MAGIC)] != MAGIC:
        raise MalformedInput("a vCPU's state: it does not begin as one", field="vcpus")
    offset, found, msrs = len(MAGIC), dict[str, bytes](), list[tuple[str, bytes]]()
    while offset < len(state):
        if offset + _HEAD.size > len(state):
            raise MalformedInput(f"a vCPU's state: offset {offset}: it ends in a head", field="vcpus")
        raw, size = _HEAD.unpack_from(state, offset)
        name = _NAMES.get(raw)
        data = state[offset + _HEAD.size : offset + _HEAD.size + size]
        if name is None or size != _SIZES[name] or len(data) != size or name in found or len(msrs) > 256:
            raise MalformedInput(f"a vCPU's state: offset {offset}: no part that is known, or twice", field="vcpus")
        if name == "msr":
            msrs.append((name, bytes(data)))
        else:
            found[name] = bytes(data)
        offset += _HEAD.size + size
    if not {"sregs", "regs"} <= found.keys():
        raise MalformedInput("a vCPU's state: no registers", field="vcpus")
    return [(name, found[name]) for name, *_ in _PARTS if name in found] + msrs


_SET = {name: give for name, _, give, _ in _PARTS}
_SIZES = {**{name: size for name, _, _, size in _PARTS}, "msr": 24}
_NAMES = {name.encode()[:8].ljust(8, b"\0"): name for name in _SIZES}
