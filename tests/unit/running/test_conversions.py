"""Memory that changes sides: what is asked of KVM, what is freed, what the guest is answered."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from sev.abi import kvm, kvm_run
from sev.errors import UsageError
from sev.launch.memory import Range
from sevd.worker.conversions import Conversions

SIZE = 16 * 4096
GUEST_MEMFD, MEMFD, VM = 50, 60, 40


class Machine:
    """Private memory from address 0, at offset 0x10000 of the shared memfd."""

    vm_fd = VM

    on_conversion = None

    def __init__(self, *, private: bool = True) -> None:
        self._private = private
        self.guest_memory = self
        self.fd = MEMFD

    def find(self, gpa: int, size: int) -> Range:
        if not 0 <= gpa <= gpa + size <= SIZE:
            raise UsageError("outside")
        return Range(0, SIZE, 0x10000, None)  # type: ignore[arg-type]

    def private_pages(self, gpa: int, size: int) -> tuple[int, int]:
        if not self._private:
            raise UsageError("no private memory")
        return GUEST_MEMFD, gpa - self.find(gpa, size).gpa


class Kernel:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.memory = self
        self.asked: list[tuple[Any, ...]] = []
        self.refuse = 0
        self.refuse_discard = 0
        self._placed = b""

    def place(self, data: bytes) -> int:
        self._placed = bytes(data)
        return 1

    def release(self, address: int) -> None:
        assert address == 1

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        assert (fd, request, argument) == (VM, kvm.KVM_SET_MEMORY_ATTRIBUTES, 1)
        if self.refuse:
            raise OSError(self.refuse, "no")
        asked = kvm.MemoryAttributes.decode(self._placed)
        self.asked.append(("attributes", asked.address, asked.size_bytes, asked.attributes))
        return 0

    def discard(self, fd: int, offset: int, size: int) -> None:
        if self.refuse_discard:
            raise OSError(self.refuse_discard, "no")
        self.asked.append(("discard", fd, offset, size))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def made(kernel: Kernel, *, private: bool = True) -> Conversions:
    machine: Any = Machine(private=private)
    given: Any = kernel
    return Conversions(given, machine)


def call(gpa: int, pages: int, attributes: int, number: int = kvm.HC_MAP_GPA_RANGE) -> kvm_run.Hypercall:
    return kvm_run.Hypercall(number, (gpa, pages, attributes, 0, 0, 0))


def test_to_shared_frees_the_private_pages(kernel: Kernel) -> None:
    assert made(kernel).hypercall(call(0x2000, 3, 0)) == 0
    assert kernel.asked == [("attributes", 0x2000, 0x3000, 0), ("discard", GUEST_MEMFD, 0x2000, 0x3000)]


def test_to_private_frees_the_shared_pages(kernel: Kernel) -> None:
    assert made(kernel).hypercall(call(0x2000, 1, 0x10)) == 0
    assert kernel.asked == [("attributes", 0x2000, 0x1000, 8), ("discard", MEMFD, 0x12000, 0x1000)]


BAD: dict[str, Callable[[], kvm_run.Hypercall]] = {
    "unaligned": lambda: call(0x2001, 1, 0),
    "no pages": lambda: call(0x2000, 0, 0),
    "wraps": lambda: call(0x2000, 1 << 60, 0),
    "private where nothing is": lambda: call(SIZE, 1, 0x10),
    "private beyond the end": lambda: call(SIZE - 4096, 2, 0x10),
    "high": lambda: call(1 << 63, 1, 0x10),
    "another hypercall": lambda: call(0, 1, 0, number=5),
}


@pytest.mark.parametrize("asked", BAD.values(), ids=BAD)
def test_what_cannot_be_converted_is_einval(kernel: Kernel, asked: Callable[[], kvm_run.Hypercall]) -> None:
    assert made(kernel).hypercall(asked()) == errno.EINVAL
    assert kernel.asked == []


def test_sharing_what_is_no_memory_is_nothing(kernel: Kernel) -> None:
    assert made(kernel).hypercall(call(SIZE, 1, 0)) == 0
    assert kernel.asked == []


@pytest.mark.parametrize(
    ("number", "answer"),
    [(errno.EINVAL, errno.EINVAL), (errno.EAGAIN, errno.EAGAIN), (errno.ENOMEM, errno.EAGAIN), (errno.EINTR, errno.EAGAIN),
     (errno.ENOTTY, errno.EINVAL), (errno.EIO, errno.EINVAL)],
)  # fmt: skip
def test_only_three_answers_exist(kernel: Kernel, number: int, answer: int) -> None:
    kernel.refuse = number
    assert made(kernel).hypercall(call(0, 1, 0)) == answer


def test_pages_that_stay_held_are_no_error_of_the_guest(kernel: Kernel) -> None:
    kernel.refuse_discard = errno.EOPNOTSUPP
    assert made(kernel).hypercall(call(0, 1, 0)) == 0


def test_a_guest_without_private_memory_has_nothing_to_convert(kernel: Kernel) -> None:
    conversions = made(kernel, private=False)
    assert conversions.hypercall(call(0, 1, 0)) == 0
    assert conversions.hypercall(call(0, 1, 0x10)) == errno.EINVAL
    assert not conversions.fault(kvm_run.MemoryFault(0, 4096, True))
    assert kernel.asked == []


def test_faults_convert_whole_pages(kernel: Kernel) -> None:
    assert made(kernel).fault(kvm_run.MemoryFault(0x2010, 8, False))
    assert kernel.asked[0] == ("attributes", 0x2000, 0x1000, 0)
    assert not made(kernel).fault(kvm_run.MemoryFault(SIZE, 4096, True))
    kernel.refuse = errno.EINVAL
    assert not made(kernel).fault(kvm_run.MemoryFault(0, 4096, True))
