"""The memory of a guest as its host sees it: one memfd, with each range of guest physical addresses at an offset in it.

RAM starts at address 0; what does not fit below 2 GiB goes on at 4 GiB; the firmware region ends at 4 GiB. Whoever is
given the memfd can map it and fill it: it is sealed, so that nobody can make it grow or shrink under another's feet,
and nobody can seal it further. A process that keeps its guest's memory to itself has no memfd: the kernel then gives
it large pages at once, where those of a memfd come one by one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os

from sev.errors import UsageError

PAGE = 4096
LOW_RAM_END = 2 << 30
FOUR_GIB = 4 << 30
_ADDRESS_LIMIT = 1 << 52

SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
"""The seals of a guest's memfd."""

_MFD_NOEXEC_SEAL = 0x8


class Range:
    """One range of guest memory, mapped.

    Attributes:
        gpa: Guest physical address of its first byte.
        size: Bytes.
        offset: Where it lies in the memfd.
        pages: The mapping.
    """

    __slots__ = ("gpa", "offset", "pages", "size")

    def __init__(self, gpa: int, size: int, offset: int, pages: mmap.mmap) -> None:
        self.gpa = gpa
        self.size = size
        self.offset = offset
        self.pages = pages


def layout(memory_bytes: int, firmware_bytes: int) -> list[tuple[int, int, int]]:
    """(guest physical address, bytes, offset in the memfd) of every range.

    Raises:
        UsageError: Sizes that are not whole pages, or that do not fit the address space.
    """
    for name, size in (("memory_bytes", memory_bytes), ("firmware_bytes", firmware_bytes)):
        if size < 0 or size % PAGE or size > _ADDRESS_LIMIT - FOUR_GIB:
            raise UsageError(f"{name}: {size} is not a possible size in whole pages of {PAGE}", field=name)
    if not memory_bytes + firmware_bytes:
        raise UsageError("a guest needs memory", field="memory_bytes")
    if firmware_bytes > FOUR_GIB - LOW_RAM_END:
        raise UsageError(f"firmware_bytes: {firmware_bytes} does not fit between 2 and 4 GiB", field="firmware_bytes")
    low = min(memory_bytes, LOW_RAM_END)
    out: list[tuple[int, int, int]] = []
    offset = 0
    for gpa, size in ((0, low), (FOUR_GIB - firmware_bytes, firmware_bytes), (FOUR_GIB, memory_bytes - low)):
        if size:
            out.append((gpa, size, offset))
            offset += size
    return out


class GuestMemory:
    """A guest's memory, made and mapped here.

    Args:
        memory_bytes: RAM, whole pages.
        firmware_bytes: The firmware region, whole pages.
        shared: It is to be mapped by others too.

    Attributes:
        fd: The memfd; -1 where the memory is this process's alone.
        ranges: What lies where.

    Raises:
        UsageError: It cannot be had from this machine, or its sizes are none that a guest can have.
    """

    def __init__(self, memory_bytes: int, firmware_bytes: int, *, shared: bool = True) -> None:
        wanted = layout(memory_bytes, firmware_bytes)
        self.ranges: list[Range] = []
        self.fd = -1
        try:
            if shared:
                self.fd = _memfd()
                os.ftruncate(self.fd, memory_bytes + firmware_bytes)
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
            for gpa, size, offset in wanted:
                if shared:
                    pages = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
                else:
                    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self.ranges.append(Range(gpa, size, offset, pages))
                if gpa < FOUR_GIB <= gpa + size:
                    # The firmware fills its region; RAM is touched here and there, and stays in small pages.
                    with contextlib.suppress(OSError):
                        pages.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, ValueError, OverflowError) as error:
            self.close()
            size = memory_bytes + firmware_bytes
            raise UsageError(
                f"memory_bytes: {size} bytes cannot be had from this machine: {error}", field="memory_bytes"
            ) from None

    def find(self, gpa: int, size: int) -> Range:
        """The range that holds an address range. Raises UsageError if none does."""
        for one in self.ranges:
            if size >= 0 and one.gpa <= gpa and gpa + size <= one.gpa + one.size:
                return one
        raise UsageError(f"0x{gpa:x} and {size} bytes are not inside one region of guest memory", field="gpa")

    def view(self, gpa: int, size: int) -> memoryview:
        """The bytes of an address range, writable. Raises UsageError if it is not inside one range."""
        one = self.find(gpa, size)
        return memoryview(one.pages)[gpa - one.gpa : gpa - one.gpa + size]

    def close(self) -> None:
        """Closes the memfd. A mapping whose views are still in somebody's hands is freed with the last of them."""
        for one in self.ranges:
            with contextlib.suppress(BufferError):
                one.pages.close()
        self.ranges.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _memfd() -> int:
    """A memfd that takes seals; never executable where the kernel can promise that (Linux 6.3)."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("guest", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("guest", flags)
