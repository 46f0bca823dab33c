"""User memory of SEV and SEV-ES guests: pinning it, registering it, and blobs that go to the firmware.

A page's physical address is the model's idea of one (`AddressSpace.location`), and what lies in one piece of a
process's memory is physically contiguous. Nothing is really locked, but counted as locked: pages of registered regions
for as long as they are registered, those of commands while they run, for each VM by itself. More than RLIMIT_MEMLOCK of
the process that asks is refused, unless it has CAP_IPC_LOCK.

Source: arch/x86/kvm/svm/sev.c, sev_pin_memory and sev_mem_enc_register_region.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sev.abi import kvm
from sev.abi.kvm_sev_legacy import BLOB_MAX
from sevd.simulator.errnos import fail

if TYPE_CHECKING:
    from sevd.simulator.kvm_vm import Vm
    from sevd.simulator.process import Process

PAGE = 4096
TOTAL_RAM = 1 << 40
"""Bytes of memory that the simulated host says it has."""

RUN = 2 << 20
"""Memory is physically contiguous in runs of at most so many bytes, aligned to themselves."""

_U64 = 1 << 64
_INT_MAX = (1 << 31) - 1


def pin(vm: Vm, process: Process, address: int, size: int, *, write: bool = True) -> None:
    """The pin rule for a range of user memory.

    Raises:
        OSError: EINVAL: empty, past the end of addresses, or more than there can be; ENOMEM: more than the process may
            lock, or not all of it is there.
    """
    if not size or address + size >= _U64:
        fail(errno.EINVAL)
    pages = _pages(address, size)
    if pages > _INT_MAX or (vm.module.ccp.era.pins_within_ram and pages > TOTAL_RAM // PAGE):
        fail(errno.EINVAL)
    need_lockable(vm, process, pages)
    if process.memory.available(address, writable=write) < size:
        fail(errno.ENOMEM)


def need_lockable(vm: Vm, process: Process, pages: int) -> None:
    """Raises OSError(ENOMEM) if so many pages more than are locked for the VM are too many for the process."""
    most = process.lockable()
    if most is not None and sum(_pages(*region) for region in vm.sev.regions) + pages > most // PAGE:
        fail(errno.ENOMEM)


def pin_page(vm: Vm, process: Process, address: int, size: int, *, others: int = 0) -> bytes:
    """The content of a piece of a page that is pinned, while `others` are. Raises OSError(ENOMEM): it cannot be."""
    need_lockable(vm, process, others + 1)
    try:
        return process.memory.read(address, size)
    except OSError:
        return fail(errno.ENOMEM)


def _pages(address: int, size: int) -> int:
    """How many pages a range touches."""
    return (address + size - 1) // PAGE - address // PAGE + 1


def runs(address: int, size: int) -> Iterator[tuple[int, int]]:
    """(address, size) of the physically contiguous pieces of a range."""
    end = address + size
    while address < end:
        step = min(RUN - address % RUN, end - address)
        yield address, step
        address += step


def blob(process: Process, address: int, size: int) -> bytes:
    """psp_copy_user_blob. Raises OSError: EINVAL: no address, no length, or more than 16 KiB; EFAULT."""
    if not address or not size or size > BLOB_MAX:
        fail(errno.EINVAL)
    return process.memory.read(address, size)


def change_region(vm: Vm, process: Process, argument: int, *, add: bool) -> None:
    """KVM_MEMORY_ENCRYPT_REG_REGION and UNREG_REGION. Raises OSError with KVM's errno."""
    if not vm.module.sev:
        fail(errno.ENOTTY)
    region = kvm.EncRegion.decode(process.memory.read(argument, kvm.EncRegion.size()))
    if not vm.sev.active:
        fail(errno.ENOTTY)
    key = (region.addr, region.size_bytes)
    if add:
        pin(vm, process, *key)
        vm.sev.regions.append(key)
    elif key in vm.sev.regions:
        vm.sev.regions.remove(key)
    else:
        fail(errno.EINVAL)
