"""A simulated process: descriptors and memory."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevd.simulator import Simulator
from sevd.simulator.address_space import BASE, PAGE, AddressSpace
from sevd.simulator.guest_memory import FrameSet
from sevd.simulator.process import NOFILE, File, Process

if TYPE_CHECKING:
    from sev.launch.seam import Kernel


def errno_of(call: Callable[..., object], *args: object) -> str:
    try:
        call(*args)
    except OSError as refused:
        return errno.errorcode[refused.errno or 0]
    return "ok"


def test_a_process_is_a_kernel(process: Process) -> None:
    kernel: Kernel = process
    fd = kernel.open("/dev/kvm", os.O_RDWR)
    assert kernel.ioctl(fd, 0xAE00) == 12
    kernel.close(fd)


def test_descriptors_are_the_lowest_free(process: Process) -> None:
    fds = [process.open("/dev/sev", os.O_RDONLY) for _ in range(4)]
    assert fds == [0, 1, 2, 3]
    process.close(2)
    process.close(0)
    assert [process.open("/dev/kvm", os.O_RDWR) for _ in range(3)] == [0, 2, 4]
    assert process.descriptors() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("path", "flags", "expected"),
    [
        ("/dev/nothing", os.O_RDWR, "ENOENT"),
        ("", os.O_RDWR, "ENOENT"),
        ("/dev/sev", os.O_CREAT | os.O_EXCL, "EEXIST"),
        ("/dev/sev", os.O_DIRECTORY, "ENOTDIR"),
    ],
)
def test_opening_refused(process: Process, path: str, flags: int, expected: str) -> None:
    assert errno_of(process.open, path, flags) == expected
    assert process.descriptors() == []


@pytest.mark.parametrize("fd", [-1, 0, 99, 1 << 40])
def test_bad_descriptors(process: Process, fd: int) -> None:
    assert errno_of(process.close, fd) == "EBADF"
    assert errno_of(process.ioctl, fd, 0xAE00) == "EBADF"
    assert errno_of(process.dup, fd) == "EBADF"


def test_path_only_descriptors_take_no_ioctl(process: Process) -> None:
    for path in ("/dev/sev", "/dev/kvm"):
        assert errno_of(process.ioctl, process.open(path, os.O_PATH), 0xAE00) == "EBADF"


def test_the_table_is_full(process: Process) -> None:
    file = File()
    for _ in range(NOFILE):
        process.install(file)
    assert errno_of(process.open, "/dev/sev", os.O_RDONLY) == "EMFILE"
    process.close(7)
    assert process.open("/dev/sev", os.O_RDONLY) == 7


def test_a_file_is_released_with_its_last_reference(host: Simulator) -> None:
    released = []

    class Watched(File):
        def released(self) -> None:
            released.append(self)

    one, two = host.process(), host.process()
    fd = one.install(Watched())
    copy, sent = one.dup(fd), two.receive(one, fd)
    one.close(fd)
    two.close(sent)
    assert released == []
    assert errno_of(one.ioctl, copy, 0) == "ENOTTY"
    one.exit()
    assert len(released) == 1
    two.exit()


def test_nothing_works_after_exit(host: Simulator) -> None:
    process = host.process()
    fd = process.open("/dev/kvm", os.O_RDWR)
    address = process.memory.place(b"data")
    process.exit()
    process.exit()
    assert errno_of(process.ioctl, fd, 0xAE00) == "EBADF"
    assert errno_of(process.open, "/dev/kvm", os.O_RDWR) == "ESRCH"
    assert errno_of(process.memory.read, address, 1) == "EFAULT"


def test_memory_is_shared_or_copied() -> None:
    memory = AddressSpace()
    shared, copied = bytearray(b"abcd"), b"abcd"
    window = bytearray(b"0123456789")
    at, there = memory.place(shared), memory.place(copied)
    part = memory.place(memoryview(window)[2:6])
    memory.write(at, b"WX")
    memory.write(there, b"YZ")
    memory.write(part + 1, b"--")
    assert (shared, copied, memory.read(there, 4)) == (bytearray(b"WXcd"), b"abcd", b"YZcd")
    assert window == b"012--56789"
    shared[3:] = b"!"
    assert memory.read(at, 4) == b"WXc!"
    memory.release(part)
    del window[5:]  # nobody holds it any more


def test_read_only_memory_is_copied() -> None:
    memory = AddressSpace()
    data = bytes(range(16))
    at = memory.place(memoryview(data))
    memory.write(at, b"\xff")
    assert data[0] == 0


def test_wide_memory_is_bytes() -> None:
    memory = AddressSpace()
    words = memoryview(bytearray(16)).cast("I")
    at = memory.place(words)
    memory.write(at + 4, b"\1\0\0\0")
    assert words[1] == 1


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 3 * 4096])
def test_addresses_are_at_pages_and_guarded(size: int) -> None:
    memory = AddressSpace()
    first, second = memory.place(bytes(size)), memory.place(bytes(size))
    assert first >= BASE
    assert first % PAGE == second % PAGE == 0
    assert second >= first + size + PAGE
    assert errno_of(memory.read, first, size + 1) == "EFAULT"
    assert errno_of(memory.read, first + size, 1) == "EFAULT"
    assert errno_of(memory.read, first - 1, 2) == "EFAULT"
    assert errno_of(memory.write, first + size - 1, b"ab") == "EFAULT"
    assert (memory.available(first), memory.available(first + size - 1), memory.available(first + size)) == (size, 1, 0)


@pytest.mark.parametrize("address", [0, 1, BASE - 1, (1 << 64) - 1])
def test_what_is_not_placed_faults(address: int) -> None:
    memory = AddressSpace()
    memory.place(bytes(8))
    assert errno_of(memory.read, address, 1) == "EFAULT"
    assert errno_of(memory.release, address) == "EINVAL"


def test_released_addresses_are_not_given_again() -> None:
    memory = AddressSpace()
    first = memory.place(bytes(8))
    memory.release(first)
    assert errno_of(memory.read, first, 1) == "EFAULT"
    assert errno_of(memory.release, first) == "EINVAL"
    assert memory.place(bytes(8)) != first


def test_views_are_the_memory_itself() -> None:
    memory = AddressSpace()
    data = bytearray(8192)
    at = memory.place(data)
    memory.view(at + 4096, 4096)[:] = b"\7" * 4096
    assert data[4095:4097] == b"\0\7"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 12)), max_size=30))
def test_frame_sets_against_plain_sets(steps: list[tuple[bool, int, int]]) -> None:
    frames, model = FrameSet(), set[int]()
    for add, start, length in steps:
        numbers = range(start, start + length)
        if not length:
            continue
        (frames.add if add else frames.remove)(start, start + length)
        model = model | set(numbers) if add else model - set(numbers)
        assert {n for first, end in frames for n in range(first, end)} == model
        ranges = list(frames)
        assert ranges == sorted(ranges)
        assert all(one[1] < two[0] for one, two in itertools.pairwise(ranges))
        for at in range(55):
            run = 0
            while at + run in model and run < 5:
                run += 1
            assert frames.run(at, 5) == run
