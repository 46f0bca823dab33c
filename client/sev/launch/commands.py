"""KVM_MEMORY_ENCRYPT_OP as a call: structures placed, the envelope sent, refusals as typed errors."""

from __future__ import annotations

import errno
import os

from sev.abi import kvm, kvm_sev
from sev.errors import LimitReached
from sev.launch.refusals import number_of, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sev.abi.record import Record
    from sev.launch.seam import Kernel

_INITS = frozenset({kvm_sev.SEV_INIT, kvm_sev.SEV_ES_INIT, kvm_sev.SEV_INIT2})
_FULL = "Every ASID of this kind is in use on this host: end a guest, or raise the number in the BIOS setup."


def issue(
    kernel: Kernel,
    vm_fd: int,
    number: int,
    request: Record | None,
    *,
    sev_fd: int,
    remedies: dict[int, str] | None = None,
    data: bytearray | None = None,
) -> bytearray:
    """One command; answers its structure as the kernel left it, empty for a command without one.

    Args:
        kernel: The kernel as this process sees it.
        vm_fd: The VM.
        number: An id of `sev.abi.kvm_sev`.
        request: Its structure, if it has one.
        sev_fd: Descriptor of the SEV device.
        remedies: What to do about an errno, where this command knows better than the general table.
        data: Where the structure is to be put, for callers that want it also after a refusal.

    Raises:
        LimitReached: An initialisation found no free ASID (EBUSY).
        FirmwareError, KernelError: Refused.
    """
    memory = kernel.memory
    name = kvm_sev.command_name(number)
    data = bytearray() if data is None else data
    data[:] = request.encode() if request is not None else b""
    address = memory.place(data) if data else 0
    envelope = bytearray(kvm_sev.SevCmd(number, address, 0, sev_fd).encode())
    place = memory.place(envelope)
    try:
        kernel.ioctl(vm_fd, kvm.KVM_MEMORY_ENCRYPT_OP, place)
    except OSError as error:
        status = kvm_sev.SevCmd.decode(envelope).error
        if number in _INITS and not status and number_of(error) == errno.EBUSY:
            raise LimitReached(f"{name}: no free ASID", remedy=_FULL, command=name, errno=errno.EBUSY) from None
        raise refused(error, name, status, remedies=remedies) from None
    finally:
        memory.release(place)
        if address:
            memory.release(address)
    return data


def issue_each(
    kernel: Kernel, vm_fd: int, number: int, envelopes: Sequence[int], *, remedies: dict[int, str] | None = None
) -> None:
    """The same command with one envelope after the other, which lie in memory with their structures already.

    Args:
        kernel: The kernel as this process sees it.
        vm_fd: The VM.
        number: The id in the envelopes.
        envelopes: Their addresses.
        remedies: As of `issue`.

    Raises:
        FirmwareError, KernelError: One was refused; those before it are done, those after it were not begun.
    """
    done, code = kernel.ioctls(vm_fd, kvm.KVM_MEMORY_ENCRYPT_OP, envelopes)
    if done < len(envelopes):
        status = kvm_sev.SevCmd.decode(kernel.memory.read(envelopes[done], kvm_sev.SevCmd.size())).error
        raise refused(OSError(code, os.strerror(code)), kvm_sev.command_name(number), status, remedies=remedies)
