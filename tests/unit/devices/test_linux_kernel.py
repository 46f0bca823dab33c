"""The real kernel behind the seam, on devices that every Linux has."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sev.errors import UsageError
from sev.launch.linux import LinuxKernel

FIONREAD = 0x541B


@contextmanager
def refused(number: int) -> Iterator[None]:
    """The kernel's own errno, as OSError."""
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        yield
    assert caught.value.errno == number


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [1, 5, 16, 4095, 4096, 8192])
def test_bytes_are_copied(size: int) -> None:
    memory = LinuxKernel().memory
    data = bytes(range(256)) * 32
    address = memory.place(data[:size])
    assert memory.read(address, size) == data[:size]
    memory.write(address, b"\xff")
    assert memory.read(address, 1) == b"\xff"
    assert data[0] == 0
    if size % 4096 == 0:
        assert address % 4096 == 0
    memory.release(address)
    with refused(errno.EFAULT):
        memory.read(address, 1)


def test_writable_memory_is_shared() -> None:
    memory = LinuxKernel().memory
    data = bytearray(16)
    address = memory.place(data)
    memory.write(address + 4, b"abcd")
    assert data[4:8] == b"abcd"
    data[0] = 7
    assert memory.read(address, 1) == b"\x07"
    memory.release(address)
    data.extend(b"free again")  # a bytearray that is still exported cannot grow


def test_an_mmap_is_shared_at_its_page() -> None:
    memory = LinuxKernel().memory
    pages = mmap.mmap(-1, 8192)
    view = memoryview(pages)
    address = memory.place(view)
    assert address % 4096 == 0
    memory.write(address + 4096, b"second")
    assert pages[4096:4102] == b"second"
    memory.release(address)
    view.release()
    pages.close()  # raises BufferError if anything still points into it


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (memoryview(mmap.mmap(-1, 12288))[100 : 100 + 4096], "multiple of 4096"),
        (memoryview(bytearray(16))[::2], "contiguous"),
        (bytearray(), "empty"),
    ],
    ids=["whole pages off a page", "strided", "empty"],
)
def test_memory_that_cannot_be_shared(data: bytearray | memoryview, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LinuxKernel().memory.place(data)


@pytest.mark.parametrize(("start", "size"), [(0, 17), (16, 1), (-1, 1), (0, -1), (8, 9)])
def test_nothing_is_read_outside_what_was_placed(start: int, size: int) -> None:
    memory = LinuxKernel().memory
    address = memory.place(bytes(16))
    with refused(errno.EFAULT):
        memory.read(address + start, size)


def test_release_of_a_foreign_address() -> None:
    with refused(errno.EFAULT):
        LinuxKernel().memory.release(0x1000)


def test_ioctl_writes_where_the_argument_points() -> None:
    kernel = LinuxKernel()
    read_end, write_end = os.pipe()
    os.write(write_end, b"12345")
    address = kernel.memory.place(bytes(4))
    assert kernel.ioctl(read_end, FIONREAD, address) == 0
    assert struct.unpack("<i", kernel.memory.read(address, 4)) == (5,)
    os.close(read_end)
    os.close(write_end)


def test_errors_are_the_kernels() -> None:
    kernel = LinuxKernel()
    with refused(errno.ENOENT):
        kernel.open("/dev/there-is-no-such-device", os.O_RDONLY)
    fd = kernel.open("/dev/null", os.O_RDWR)
    with refused(errno.ENOTTY):
        kernel.ioctl(fd, termios.TCGETS, kernel.memory.place(bytes(64)))
    kernel.close(fd)
    with refused(errno.EBADF):
        kernel.close(fd)


def test_descriptors_do_not_outlive_exec_nor_exit() -> None:
    before = descriptors()
    kernel = LinuxKernel()
    fd = kernel.open("/dev/zero", os.O_RDONLY)
    kernel.open("/dev/null", os.O_RDONLY)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    kernel.memory.place(bytes(4096))
    kernel.exit()
    assert descriptors() == before


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm that may be opened")
def test_kvm_of_this_machine_answers() -> None:
    kernel = LinuxKernel()
    fd = kernel.open("/dev/kvm", os.O_RDWR)
    assert kernel.ioctl(fd, 0xAE00) == 12  # KVM_GET_API_VERSION
    with refused(errno.EINVAL):
        kernel.ioctl(fd, 0xAE01, 77)  # KVM_CREATE_VM of a type that does not exist
    kernel.exit()
