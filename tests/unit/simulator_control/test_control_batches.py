"""Many ioctls of one process in one request, with memory that it lends for them: as one after the other."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.abi import kvm, kvm_sev
from sev.abi import kvm_sev_legacy as abi
from sev.errors import MalformedInput, UsageError
from sevd.simulator.control_client import COPY, IOCTLS_MAX, LENT_MAX, LENT_RANGES, SEAL
from sevd.simulator.lent import LentMemory
from sevd.simulator.overlay import OverlayKernel
from tests.support.control import NO_KVM, Served

PAGE = 4096
OP = kvm.KVM_MEMORY_ENCRYPT_OP


class Guest:
    """An SEV guest of this process on the served host, and memory for many commands."""

    def __init__(self, served: Served) -> None:
        self.kernel: OverlayKernel = served.kernel()
        memory = self.kernel.memory
        self.sev = self.kernel.open(served.sev, os.O_RDONLY)
        self.vm = self.kernel.ioctl(self.kernel.open(NO_KVM, os.O_RDWR), kvm.KVM_CREATE_VM, kvm.VM_TYPE_SEV)
        self.ram, self.area = mmap.mmap(-1, 8 * PAGE), mmap.mmap(-1, PAGE)
        self.address, self.base = (memory.place(memoryview(one)) for one in (self.ram, self.area))
        assert self.issue((kvm_sev.SEV_INIT2, kvm_sev.SevInit().encode())) == (1, 0)

    def issue(self, *commands: tuple[int, bytes], lend: bool = False) -> tuple[int, int]:
        """The commands in one request."""
        places = []
        for index, (number, data) in enumerate(commands):
            at = index * 256
            self.area[at : at + len(data)] = data
            envelope = kvm_sev.SevCmd(number, self.base + at if data else 0, 0, self.sev).encode()
            self.area[at + 128 : at + 128 + len(envelope)] = envelope
            places.append(self.base + at + 128)
        lent = [(self.base, PAGE), (self.address, 8 * PAGE)] if lend else []
        return self.kernel.control.ioctls(self.vm, OP, places, lent=lent)

    def error(self, index: int) -> int:
        """The envelope's status of a command."""
        at = index * 256 + 128
        return kvm_sev.SevCmd.decode(self.area[at : at + kvm_sev.SevCmd.size()]).error


@pytest.fixture
def guest(served: Served) -> Iterator[Guest]:
    made = Guest(served)
    yield made
    made.kernel.exit()


def update(guest: Guest, page: int, size: int = PAGE) -> tuple[int, bytes]:
    return kvm_sev.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(guest.address + page * PAGE, size).encode()


@pytest.mark.parametrize("lend", [False, True])
def test_until_one_is_refused(guest: Guest, lend: bool) -> None:
    start = kvm_sev.LAUNCH_START, abi.LaunchStart(0, 0).encode()
    steps = (start, update(guest, 0), update(guest, 1), update(guest, 2, 8), update(guest, 3))
    assert guest.issue(*steps, lend=lend) == (3, errno.EIO)
    assert guest.error(3) == 4  # INVALID_LENGTH
    pages = [guest.ram[at : at + PAGE] != bytes(PAGE) for at in range(0, 5 * PAGE, PAGE)]
    assert pages == [True, True, False, False, False]
    assert int.from_bytes(guest.area[:4], "little") > 0  # the handle of LAUNCH_START


def test_lent_or_not_the_guest_is_the_same(guest: Guest) -> None:
    guest.ram[:] = bytes(range(256)) * 128
    content = guest.ram[:]
    assert guest.issue((kvm_sev.LAUNCH_START, abi.LaunchStart(0, 0).encode()), update(guest, 0, 3 * PAGE)) == (2, 0)
    assert guest.issue(update(guest, 4, 3 * PAGE), lend=True) == (1, 0)
    read = abi.Debug(guest.address + 4 * PAGE, guest.address + 7 * PAGE, PAGE).encode()
    assert guest.issue((kvm_sev.DBG_DECRYPT, read), lend=True) == (1, 0)
    assert guest.ram[7 * PAGE :] == content[4 * PAGE : 5 * PAGE]
    read = abi.Debug(guest.address, guest.address + 7 * PAGE, PAGE).encode()
    assert guest.issue((kvm_sev.DBG_DECRYPT, read)) == (1, 0)
    assert guest.ram[7 * PAGE :] == content[:PAGE]


def test_memory_is_moved_before(guest: Guest) -> None:
    assert guest.issue((kvm_sev.LAUNCH_START, abi.LaunchStart(0, 0).encode())) == (1, 0)
    guest.ram[:PAGE] = b"p" * PAGE
    control = guest.kernel.control
    moves = [(guest.address, guest.address + PAGE, PAGE), (guest.address, guest.address + 2 * PAGE, PAGE)]
    assert control.ioctls(guest.vm, OP, [], change=SEAL, moves=moves) == (0, 0)
    sealed = guest.ram[PAGE : 2 * PAGE]
    assert sealed not in (b"p" * PAGE, guest.ram[2 * PAGE : 3 * PAGE])
    assert control.ioctls(guest.vm, OP, [], change=COPY, moves=[(guest.address, guest.address + 3 * PAGE, 5)]) == (0, 0)
    assert guest.ram[3 * PAGE : 3 * PAGE + 6] == b"ppppp\0"
    with pytest.raises(OSError, match="Bad address"):
        control.ioctls(guest.vm, OP, [guest.base], change=COPY, moves=[(0x1000, guest.address, 16)])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"arguments": "all"}, MalformedInput),
        ({"arguments": [-1]}, MalformedInput),
        ({"arguments": [True]}, MalformedInput),
        ({"arguments": [0] * (IOCTLS_MAX + 1)}, MalformedInput),
        ({"moves": [[1, 2]]}, MalformedInput),
        ({"moves": [[1, 2, 3]], "change": "turn"}, MalformedInput),
        ({"moves": [[1, 2, 3]], "change": SEAL}, UsageError),
        ({"moves": [[-16, 16, 16]], "change": COPY}, UsageError),
        ({"lent": [[0, LENT_MAX + 1]]}, MalformedInput),
        ({"lent": [[0, -1]]}, MalformedInput),
        ({"lent": [[0, 1]] * (LENT_RANGES + 1)}, MalformedInput),
        ({"lent": [["a", 1]]}, MalformedInput),
    ],
    ids=str,
)
def test_what_makes_no_sense(guest: Guest, fields: dict[str, object], error: type[Exception]) -> None:
    whole: dict[str, object] = {"arguments": [], "moves": [], "lent": [], "change": COPY, **fields}
    with pytest.raises(error):
        guest.kernel.control.call("ioctls", fd=guest.vm, request=OP, **whole)
    assert guest.kernel.control.ioctls(guest.vm, OP, []) == (0, 0)


def test_ranges_that_cannot_be_lent_are_used_where_they_are(guest: Guest) -> None:
    guest.kernel.control.ioctls(guest.vm, OP, [], lent=[(0x1000, PAGE), (0, 0), ((1 << 64) - 8, 64)])
    start = kvm_sev.LAUNCH_START, abi.LaunchStart(0, 0).encode()
    assert guest.issue(start, lend=True) == (1, 0)


@given(
    ranges=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=4),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.binary(min_size=1, max_size=40)), max_size=30),
)
def test_lent_memory_is_memory(ranges: list[tuple[int, int]], steps: list[tuple[bool, int, bytes]]) -> None:
    """As long as whoever works on it gives back what a range touches in part."""
    expected, real = bytearray(range(256)) + bytearray(64), bytearray(range(256)) + bytearray(64)

    def write(address: int, data: bytearray) -> None:
        real[address : address + len(data)] = data

    lent = LentMemory(write)
    for address, size in ranges:
        lent.add(address, bytearray(real[address : address + size]))
    for writes, address, data in steps:
        end = address + len(data)
        if writes:
            expected[address:end] = data
            if not lent.write(address, data):
                if lent.touches(address, len(data)):
                    lent.give_back()
                real[address:end] = data
            continue
        found = lent.read(address, len(data))
        if found is None:
            if lent.touches(address, len(data)):
                lent.give_back()
            found = bytes(real[address:end])
        assert found == expected[address:end]
    lent.give_back()
    assert real == expected
    assert not lent
