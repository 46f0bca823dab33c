"""Memory of a real VM that shows what a simulated one measured.

A slot with private memory is one range of addresses here, in which every page is a mapping of either the guest_memfd's
memory (private pages) or the slot's shared view. The processor runs what lies there, so that private pages are the
measured ones, and a page that changes sides changes its mapping under the guest's feet.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from sev.abi import kvm
from sevd.simulator.guest_memory import PAGE, FrameSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.launch.linux import LinuxKernel

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MREMAP_MAYMOVE_FIXED = 0x3
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_mremap = _libc.mremap
_mremap.restype = ctypes.c_void_p
_mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class Window:
    """A range of addresses of this process whose pages show private or shared memory.

    Args:
        size: Bytes, whole pages.
        shared: Address of the shared view; a shared mapping, of one file.

    Raises:
        OSError: ENOMEM.
    """

    def __init__(self, size: int, shared: int) -> None:
        self.size = size
        self._shared = shared
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        address = _mmap(None, size, 0, flags, -1, 0)
        if address == _FAILED:
            raise _failure()
        self.address: int = address

    def show_private(self, at: int, size: int) -> None:
        """Maps the private memory of a part, by its bytes from the start. Raises OSError."""
        raise NotImplementedError

    def show_shared(self, at: int, size: int) -> None:
        """Maps the shared view of a part. Raises OSError: EINVAL: the view is no shared mapping."""
        self._show(self._shared, at, size)

    def close(self) -> None:
        """Gives the addresses back."""
        if self.address:
            _munmap(self.address, self.size)
            self.address = 0

    def _show(self, base: int, at: int, size: int) -> None:
        # An old size of 0 makes a second mapping of the same pages; only shared mappings have such.
        if _mremap(base + at, 0, size, _MREMAP_MAYMOVE_FIXED, self.address + at) == _FAILED:
            raise _failure()


class FileWindow(Window):
    """One whose private memory lies in a file, of which the window has a descriptor of its own.

    Args:
        size: Bytes, whole pages.
        fd: What holds the private memory.
        offset: Byte in it that belongs to the first byte here.
        shared: Address of the shared view.
    """

    def __init__(self, size: int, fd: int, offset: int, shared: int) -> None:
        super().__init__(size, shared)
        self._fd = os.dup(fd)
        self._offset = offset

    def show_private(self, at: int, size: int) -> None:
        """Maps the file."""
        flags = mmap.MAP_SHARED | _MAP_FIXED
        if _mmap(self.address + at, size, _READ_WRITE, flags, self._fd, self._offset + at) == _FAILED:
            raise _failure()

    def close(self) -> None:
        """Closes the descriptor too."""
        if self.address:
            os.close(self._fd)
        super().close()


class OwnWindow(Window):
    """One with private memory of its own, which takes room only where it is written.

    Attributes:
        private: Where that lies.
    """

    def __init__(self, size: int, shared: int) -> None:
        super().__init__(size, shared)
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        private = _mmap(None, size, _READ_WRITE, flags, -1, 0)
        if private == _FAILED:
            error = _failure()
            super().close()
            raise error
        self.private: int = private

    def show_private(self, at: int, size: int) -> None:
        """Maps it a second time."""
        self._show(self.private, at, size)

    def close(self) -> None:
        """Gives that memory back too."""
        if self.address:
            _munmap(self.private, self.size)
        super().close()


class Slot:
    """A slot of the real VM; without a window it is the caller's memory itself.

    Attributes:
        region: As the caller made it.
        gfn: Its first frame.
        end: The frame after its last.
        window: What the real VM has in place of the caller's memory.
    """

    __slots__ = ("end", "gfn", "region", "window")

    def __init__(self, region: kvm.UserMemoryRegion2, window: Window | None) -> None:
        self.region = region
        self.gfn = region.guest_phys_addr // PAGE
        self.end = self.gfn + region.memory_size // PAGE
        self.window = window


class OverlayMemory:
    """The slots of one real VM.

    Args:
        kernel: The real kernel.
        vm_fd: The real VM.
    """

    def __init__(self, kernel: LinuxKernel, vm_fd: int) -> None:
        self._kernel = kernel
        self._vm_fd = vm_fd
        self._slots: dict[int, Slot] = {}
        self._private = FrameSet()

    def set_region(self, region: kvm.UserMemoryRegion2, memory_fd: int) -> None:
        """What the model accepted: makes, moves or deletes a slot; `memory_fd` holds its private memory, -1: none.

        Raises:
            OSError: The kernel refuses what the model took.
        """
        if not region.memory_size:
            self._set(kvm.UserMemoryRegion(region.slot, 0, 0, 0, 0))
            slot = self._slots.pop(region.slot)
            if slot.window is not None:
                slot.window.close()
            if isinstance(slot.window, OwnWindow):
                self._private.remove(slot.gfn, slot.end)
            return
        window: Window | None = None
        flags, address = region.flags, region.userspace_addr
        before = self._slots.get(region.slot)
        if memory_fd >= 0:
            window = FileWindow(region.memory_size, memory_fd, region.guest_memfd_offset, region.userspace_addr)
            flags, address = 0, window.address
        elif before is not None and before.window is not None:
            window, address = before.window, before.window.address
        slot = Slot(region, window)
        try:
            self._show(slot, slot.gfn, slot.end)
            self._set(kvm.UserMemoryRegion(region.slot, flags, region.guest_phys_addr, region.memory_size, address))
        except BaseException:
            if window is not None and before is None:
                window.close()
            raise
        self._slots[region.slot] = slot

    def slots(self) -> list[Slot]:
        """The slots that there are."""
        return list(self._slots.values())

    def private_run(self, gfn: int, most: int) -> int:
        """How many frames from `gfn` on, at most so many, are private."""
        return self._private.run(gfn, most)

    def give_window(self, slot: Slot) -> OwnWindow:
        """The window of a slot whose private memory is this process's own; made if there is none, all shared.

        The real VM's slot is made anew then: nothing may run meanwhile. Raises OSError: EINVAL: its memory is no
        shared mapping.
        """
        if isinstance(slot.window, OwnWindow):
            return slot.window
        region = slot.region
        window = OwnWindow(region.memory_size, region.userspace_addr)
        try:
            window.show_shared(0, region.memory_size)
            self._set(kvm.UserMemoryRegion(region.slot, 0, 0, 0, 0))
            self._set(
                kvm.UserMemoryRegion(
                    region.slot, region.flags, region.guest_phys_addr, region.memory_size, window.address
                )
            )
        except BaseException:
            window.close()
            raise
        slot.window = window
        return window

    def change(self, slot: Slot, first: int, end: int, *, private: bool) -> None:
        """Frames of a slot with a window become private or shared. Raises OSError if they cannot be mapped so."""
        (self._private.add if private else self._private.remove)(first, end)
        self._show(slot, first, end)

    def set_attributes(self, request: kvm.MemoryAttributes) -> None:
        """Pages become private or shared. Raises OSError if they cannot be mapped so."""
        first, end = request.address // PAGE, (request.address + request.size_bytes) // PAGE
        change = self._private.add if request.attributes & kvm.MEMORY_ATTRIBUTE_PRIVATE else self._private.remove
        change(first, end)
        for slot in self._slots.values():
            self._show(slot, max(first, slot.gfn), min(end, slot.end))

    def close(self) -> None:
        """Gives all addresses back; the VM is gone before."""
        for slot in self._slots.values():
            if slot.window is not None:
                slot.window.close()
        self._slots.clear()

    def _show(self, slot: Slot, first: int, end: int) -> None:
        """Maps the frames first to end - 1 as they are now: runs of private and of shared ones."""
        window = slot.window
        while window is not None and first < end:
            private = self._private.run(first, end - first)
            count = private or self._private.gap(first, end - first)
            show = window.show_private if private else window.show_shared
            show((first - slot.gfn) * PAGE, count * PAGE)
            first += count

    def _set(self, region: kvm.UserMemoryRegion) -> None:
        memory = self._kernel.memory
        address = memory.place(region.encode())
        try:
            self._kernel.ioctl(self._vm_fd, kvm.KVM_SET_USER_MEMORY_REGION, address)
        finally:
            memory.release(address)


def _failure() -> OSError:
    number = ctypes.get_errno() or errno.ENOMEM
    return OSError(number, os.strerror(number))
