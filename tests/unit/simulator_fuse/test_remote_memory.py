"""The memory and descriptors of another process: a child that this test starts and looks into."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevd.simulator.process import File
from sevd.simulator.remote import FIRST_DESCRIPTOR, DescriptorsOf, RemoteMemory, RemoteProcess

PAGE = mmap.PAGESIZE

CHILD = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
size = mmap.PAGESIZE
base = libc.mmap(None, 4 * size, 3, 0x22, -1, 0)
ctypes.memset(base, 7, 4 * size)
libc.mprotect(base + 2 * size, size, 1)
libc.munmap(base + 3 * size, size)
files = [os.open(sys.argv[1], flags) for flags in (os.O_RDONLY, os.O_RDWR, os.O_PATH)]
print(base, *files, os.open("/dev/null", os.O_RDONLY), flush=True)
sys.stdin.read()
"""
"""Two pages to write, one to read, nothing behind; and descriptors of the file that it is given."""


class Child:
    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.base, self.reading, self.writing, self.path_only, self.null = map(
            int, self.process.stdout.readline().split()
        )
        self.pid = self.process.pid
        self.memory = RemoteMemory(self.pid)

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    path = tmp_path_factory.mktemp("child") / "file"
    path.touch()
    made = Child(path)
    try:
        made.memory.read(made.base, 1)
    except PermissionError:
        made.end()
        pytest.skip("this user may not look into its own children (ptrace_scope)")
    yield made
    made.end()


def test_bytes_arrive_there_and_come_back(child: Child) -> None:
    child.memory.write(child.base, b"hello")
    assert child.memory.read(child.base, 6) == b"hello\x07"
    assert bytes(child.memory.view(child.base + 1, 4)) == b"ello"
    child.memory.write(child.base + 10, bytearray(b"array"))
    child.memory.write(child.base + 15, memoryview(b"view"))
    assert child.memory.read(child.base + 10, 9) == b"arrayview"
    assert child.memory.read(child.base, 0) == b""
    child.memory.write(0, b"")


BAD = {
    "nothing there": (3 * PAGE, 1),
    "the end runs out": (3 * PAGE - 4, 8),
    "negative size": (0, -1),
}


@pytest.mark.parametrize(("offset", "size"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_read_is_efault(child: Child, offset: int, size: int) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
        child.memory.read(child.base + offset, size)


@pytest.mark.parametrize("address", [0, 1 << 47, (1 << 63) + 8, (1 << 64) - 8, 1 << 64, -8])
def test_addresses_that_no_process_has_are_efault(child: Child, address: int) -> None:
    for operation in (lambda: child.memory.read(address, 16), lambda: child.memory.write(address, bytes(16))):
        with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
            operation()
    assert child.memory.available(address) == 0


def test_what_cannot_be_written_is_efault_and_what_lies_before_it_is_written(child: Child) -> None:
    edge = child.base + 2 * PAGE
    with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
        child.memory.write(edge, b"x")
    with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
        child.memory.write(edge - 2, b"abcd")
    assert child.memory.read(edge - 2, 4) in (b"ab\x07\x07", b"\x07" * 4)


def test_how_much_can_be_read_is_known_from_the_map(child: Child) -> None:
    assert child.memory.available(child.base) == 3 * PAGE
    assert child.memory.available(child.base + 3 * PAGE - 1) == 1
    assert child.memory.available(child.base + 3 * PAGE) == 0


def test_nothing_is_placed_in_another_process(child: Child) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        child.memory.place(b"x")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        child.memory.release(child.base)
    child.memory.clear()
    assert child.memory.read(child.base + 2 * PAGE, 1) == b"\x07"


@given(st.integers(0, PAGE), st.binary(max_size=PAGE))
def test_any_piece_is_read_as_it_was_written(child: Child, offset: int, data: bytes) -> None:
    child.memory.write(child.base + offset, data)
    assert child.memory.read(child.base + offset, len(data)) == data


def test_a_process_that_is_gone_has_no_memory(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    gone = Child(tmp_path / "f")
    gone.end()
    for memory in (gone.memory, RemoteMemory(0)):
        with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
            memory.read(gone.base, 1)
        assert memory.available(gone.base) == 0


def test_its_own_memory_is_a_process_like_any_other() -> None:
    buffer = ctypes.create_string_buffer(b"0123456789", 10)
    memory = RemoteMemory(os.getpid())
    memory.write(ctypes.addressof(buffer) + 2, b"ab")
    assert buffer.raw == b"01ab456789"


class Opened(File):
    """The model's file, counting its references."""

    dropped = 0

    def released(self) -> None:
        type(self).dropped += 1


def test_descriptors_of_the_process_are_told_by_the_file_and_its_flags(child: Child, tmp_path: Path) -> None:
    found = os.stat(f"/proc/{child.pid}/fd/{child.reading}")
    process = RemoteProcess(child.pid, own=DescriptorsOf((found.st_dev, found.st_ino), Opened))
    for fd, writable, path_only in (
        (child.reading, False, False),
        (child.writing, True, False),
        (child.path_only, False, True),
    ):
        file = process.take(fd)
        assert (file.writable, file.path_only) == (writable, path_only)
        before = Opened.dropped
        file.drop()
        assert Opened.dropped == before + 1
    for fd in (child.null, 999, -1, FIRST_DESCRIPTOR):
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            process.take(fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        RemoteProcess(child.pid).take(child.reading)


def test_descriptors_that_the_model_gives_do_not_meet_the_processs_own(child: Child) -> None:
    process = RemoteProcess(child.pid, {"/dev/x": Opened})
    first, second = process.open("/dev/x", os.O_RDWR), process.open("/dev/x", os.O_RDWR)
    assert (first, second) == (FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + 1)
    process.close(first)
    assert process.open("/dev/x", os.O_RDWR) == first
    process.exit()
    assert process.descriptors() == []


def test_what_an_image_of_memory_lets_be_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    child = Child(tmp_path / "f")
    try:
        image = os.open(f"/proc/{child.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        child.end()
        pytest.skip("this user may not look into its own children (ptrace_scope)")
    memory, page = RemoteMemory(child.pid, image=image), mmap.PAGESIZE
    memory.write(child.base + 10, b"hello")
    assert memory.read(child.base + 9, 7) == b"\x07hello\x07"
    memory.write(child.base + 100, bytes(range(256)) * 20)
    assert memory.read(child.base + 100, 5120) == bytes(range(256)) * 20
    assert memory.read(child.base + 2 * page, page) == b"\x07" * page
    for refused in (
        lambda: memory.write(child.base + 2 * page, b"x"),
        lambda: memory.write(child.base + 2 * page - 1, b"xx"),
        lambda: memory.read(child.base + 3 * page, 1),
        lambda: memory.read(0, 1),
        lambda: memory.read((1 << 64) - 1, 1),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
            refused()
    child.end()
    with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
        memory.read(child.base, 1)
    os.close(image)


def test_a_number_that_is_no_longer_the_process_s_is_nobody_s_memory(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    child, other = Child(tmp_path / "f"), Child(tmp_path / "f")
    pidfd = os.pidfd_open(child.pid)
    child.end()
    # The number of the one that ended has come to mean the other.
    memory = RemoteMemory(other.pid, pidfd)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
            memory.read(other.base, 1)
        with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
            memory.write(other.base, b"x")
        assert memory.available(other.base) == 0
        assert memory.fill(other.base, memoryview(bytearray(8))) == 0
    finally:
        os.close(pidfd)
        other.end()
