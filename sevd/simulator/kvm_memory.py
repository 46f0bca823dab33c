"""Memory of a simulated VM: slots, guest_memfd, private attribute (virt/kvm/kvm_main.c, virt/kvm/guest_memfd.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sev.abi import kvm
from sevd.simulator.address_space import TASK_SIZE
from sevd.simulator.errnos import fail
from sevd.simulator.guest_memory import PAGE, FrameSet, GuestMemory
from sevd.simulator.process import File, Process

if TYPE_CHECKING:
    from sevd.simulator.kvm_vm import Vm

USER_SLOTS = 32764
_ALL_SLOTS = 32767
_SLOT_PAGES_MAX = (1 << 31) - 1
_U64 = 1 << 64


def memfd_flags(vm_type: int | None) -> int:
    """Flags that KVM_CREATE_GUEST_MEMFD takes for a VM type; None: for any VM."""
    shared = kvm.GUEST_MEMFD_INIT_SHARED if vm_type != kvm.VM_TYPE_SNP else 0
    return kvm.GUEST_MEMFD_MMAP | shared


class MemfdFile(File):
    """A guest_memfd: memory that only its guest can see, and a reference to the VM.

    Attributes:
        pages: Its size.
        memory: Its contents and page states.

    Args:
        vm: The VM.
        pages: Its size.
        shared: The contents lie in a memfd that the owner gets too.
    """

    def __init__(self, vm: Vm, pages: int, *, shared: bool = False) -> None:
        super().__init__()
        self.vm = vm
        self.pages = pages
        self.memory = GuestMemory(pages, shared=shared)
        vm.hold()

    def discard(self, offset: int, size: int) -> None:
        """fallocate(2) with PUNCH_HOLE: the pages are the host's again. Raises OSError(EINVAL) but for whole pages."""
        if offset < 0 or size <= 0 or offset % PAGE or size % PAGE:
            fail(errno.EINVAL)
        with self.vm.lock:
            self.memory.discard(offset // PAGE, size // PAGE)

    def released(self) -> None:
        """Slots that were bound to it lose their private memory; the VM loses a reference."""
        for slot in self.vm.memory.slots.values():
            if slot.memfd is self:
                slot.memfd = None
        self.memory.close()
        self.vm.drop()


class Slot:
    """One memory slot. Its memfd is None without private memory, and after the file was closed."""

    __slots__ = ("flags", "gfn", "memfd", "memfd_page", "pages", "userspace_addr")

    def __init__(self, region: kvm.UserMemoryRegion2, memfd: MemfdFile | None) -> None:
        self.flags = region.flags
        self.gfn = region.guest_phys_addr // PAGE
        self.pages = region.memory_size // PAGE
        self.userspace_addr = region.userspace_addr
        self.memfd = memfd
        self.memfd_page = region.guest_memfd_offset // PAGE

    @property
    def end(self) -> int:
        """The frame after the last."""
        return self.gfn + self.pages


class VmMemory:
    """Slots and attributes of one VM; the VM's lock is held by the callers."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.slots: dict[int, Slot] = {}
        self.private = FrameSet()

    def slot_of(self, gfn: int) -> Slot | None:
        """The slot that a guest frame lies in."""
        for slot in self.slots.values():
            if slot.gfn <= gfn < slot.end:
                return slot
        return None

    def set_region(self, process: Process, region: kvm.UserMemoryRegion2, *, old_form: bool = False) -> None:
        """KVM_SET_USER_MEMORY_REGION(2): creates, moves or deletes a slot. Raises OSError with KVM's errno."""
        self._check_region(region, old_form)
        old = self.slots.get(region.slot)
        if not region.memory_size:
            if old is None:
                fail(errno.EINVAL)
            del self.slots[region.slot]
            return
        slot = Slot(region, None)
        if old is not None:
            if region.flags & kvm.MEM_GUEST_MEMFD or old.flags & kvm.MEM_GUEST_MEMFD:
                fail(errno.EINVAL)
            changed = (region.flags ^ old.flags) & kvm.MEM_READONLY
            if slot.userspace_addr != old.userspace_addr or slot.pages != old.pages or changed:
                fail(errno.EINVAL)
        for number, other in self.slots.items():
            if number != region.slot and slot.gfn < other.end and other.gfn < slot.end:
                fail(errno.EEXIST)
        if region.flags & kvm.MEM_GUEST_MEMFD:
            slot.memfd = self._bind(process, region, slot)
        self.slots[region.slot] = slot

    def create_memfd(self, process: Process, request: kvm.CreateGuestMemfd) -> int:
        """KVM_CREATE_GUEST_MEMFD: a descriptor. Raises OSError(EINVAL, EMFILE, ENOMEM)."""
        if request.flags & ~memfd_flags(self._vm.type):
            fail(errno.EINVAL)
        if not 0 < request.size_bytes < _U64 // 2 or request.size_bytes % PAGE:
            fail(errno.EINVAL)
        file = MemfdFile(self._vm, request.size_bytes // PAGE, shared=process.SHARES_MEMORY)
        return process.install(file)

    def set_attributes(self, request: kvm.MemoryAttributes) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES. Raises OSError(EINVAL)."""
        supported = kvm.MEMORY_ATTRIBUTE_PRIVATE if self._vm.type == kvm.VM_TYPE_SNP else 0
        if request.flags or request.attributes & ~supported:
            fail(errno.EINVAL)
        end = request.address + request.size_bytes
        if not request.size_bytes or end >= _U64:
            fail(errno.EINVAL)
        if request.address % PAGE or request.size_bytes % PAGE:
            fail(errno.EINVAL)
        change = self.private.add if request.attributes else self.private.remove
        change(request.address // PAGE, end // PAGE)

    def _check_region(self, region: kvm.UserMemoryRegion2, old_form: bool) -> None:
        """Flags, then sizes and addresses, in the kernel's order; each EINVAL."""
        valid = kvm.MEM_LOG_DIRTY_PAGES | kvm.MEM_READONLY
        if not old_form:
            valid |= kvm.MEM_GUEST_MEMFD
            if region.flags & kvm.MEM_GUEST_MEMFD:
                valid = kvm.MEM_GUEST_MEMFD
        size, address = region.memory_size, region.userspace_addr
        wrong = (
            region.flags & ~valid
            or size % PAGE
            or region.guest_phys_addr % PAGE
            or address % PAGE
            or address + size > TASK_SIZE
            or (
                (region.flags & kvm.MEM_GUEST_MEMFD)
                and (region.guest_memfd_offset % PAGE or region.guest_memfd_offset + size >= _U64)
            )
            or region.slot >> 16
            or region.slot & 0xFFFF >= _ALL_SLOTS
            or region.slot >= USER_SLOTS
            or region.guest_phys_addr + size >= _U64
            or size // PAGE > _SLOT_PAGES_MAX
        )
        if wrong:
            fail(errno.EINVAL)

    def _bind(self, process: Process, region: kvm.UserMemoryRegion2, slot: Slot) -> MemfdFile:
        file = process.take(region.guest_memfd)
        try:
            if not isinstance(file, MemfdFile) or file.vm is not self._vm:
                fail(errno.EINVAL)
            if slot.memfd_page + slot.pages > file.pages:
                fail(errno.EINVAL)
            for other in self.slots.values():
                first, last = other.memfd_page, other.memfd_page + other.pages
                if other.memfd is file and slot.memfd_page < last and first < slot.memfd_page + slot.pages:
                    fail(errno.EEXIST)
            return file
        finally:
            file.drop()
