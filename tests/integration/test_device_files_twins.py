"""The file and the model in this process are one device: the same raw envelopes give the same bytes, whatever they are.

Two hosts with the same chip and seed get the same sequence of ioctls, good ones and bad ones; compared are the errno,
the envelope and every byte of all memory that it pointed to.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from sev.abi import sev_device as abi
from sev.launch.linux import LinuxKernel
from sevd.simulator import Simulator, kernel_era
from tests.support.device_files import device_files, prepare

PAGE = 4096
ARENA = 8 * PAGE
SAMPLE, ALL = 250, 2_500
"""Ioctls for each of the four kernel generations: a thousand in all, and ten thousand."""
WRITABLE, READABLE = 0, 1

COMMANDS = range(abi.COMMAND_MAX + 2)
LENGTHS = (0, 1, 12, 15, 16, 63, 64, 128, 432, 2083, 2084, 2085, 6252, 0x4000, 0x4001, 0xFFFFFFFF)
REQUESTS = (abi.SEV_ISSUE_CMD,) * 20 + (0x5401, 0xC0205300, 0x00005300)


class Device:
    """One of the two: memory to point into, the file opened for reading and writing, and for reading only.

    Args:
        address: Where the arena lies for the device.
        view: The arena itself.
        issue: Issues an ioctl on one of the two descriptors; answers the errno, 0 for success.
    """

    def __init__(self, address: int, view: memoryview, issue: Callable[[int, int, int], int]) -> None:
        self.address = address
        self.view = view
        self.issue = issue

    def play(self, step: Mapping[str, int], order: random.Random) -> tuple[int, bytes]:
        """One ioctl; errno and the whole arena afterwards, addresses taken out."""
        self.view[:] = order.randbytes(16) * (ARENA // 16)
        data, blob, second = (self.place(step[name]) for name in ("data", "blob", "second"))
        length, other = step["length"], step["other"]
        cmd = step["cmd"]
        if cmd in (abi.PEK_CSR, abi.GET_ID2):
            given = struct.pack("<QI", blob, length)
        elif cmd in (abi.PDH_CERT_EXPORT, abi.PEK_CERT_IMPORT):
            given = struct.pack("<QIQI", blob, length, second, other)
        elif cmd == abi.SNP_VLEK_LOAD:
            given = struct.pack("<IB3xQ", length if step["odd"] else 16, step["odd"], blob)
        elif cmd == abi.SNP_SET_CONFIG:
            given = struct.pack("<QI52x", step["tcb"], step["odd"])
        else:
            given = b""
        if 0 <= step["data"] <= ARENA - len(given):
            self.view[step["data"] : step["data"] + len(given)] = given
        self.view[:16] = struct.pack("<IQI", cmd, data, step["error"])
        number = self.issue(step["mode"], step["request"], self.place(step["envelope"]))
        after = bytearray(self.view)
        # The pointers themselves differ: as they were given they must have stayed.
        places = [(4, data)]
        if given and cmd != abi.SNP_SET_CONFIG and 0 <= step["data"] <= ARENA - len(given):
            start = step["data"]
            places.append((start + (8 if cmd == abi.SNP_VLEK_LOAD else 0), blob))
            if len(given) == 24:
                places.append((start + 12, second))
        for at, pointer in places:
            assert int.from_bytes(after[at : at + 8], "little") == pointer, "a pointer was changed"
            after[at : at + 8] = bytes(8)
        return number, bytes(after)

    def place(self, offset: int) -> int:
        """The address of an offset in the arena; -1 is the null pointer."""
        return 0 if offset < 0 else self.address + offset


@contextmanager
def outside(folder: Path, *options: str) -> Iterator[Device]:
    """The file. Behind the arena nothing is mapped."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    memory = mmap.mmap(-1, ARENA + PAGE)
    pin = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(pin)
    assert libc.mprotect(address + ARENA, PAGE, 0) == 0
    with device_files(folder, *options) as files:
        fds = [os.open(files.sev, flags) for flags in (os.O_RDWR, os.O_RDONLY)]

        def issue(mode: int, request: int, argument: int) -> int:
            return 0 if libc.ioctl(fds[mode], request, argument) >= 0 else ctypes.get_errno()

        try:
            yield Device(address, memoryview(memory)[:ARENA], issue)
        finally:
            for fd in fds:
                os.close(fd)
    libc.mprotect(address + ARENA, PAGE, 3)
    del pin


@contextmanager
def inside(folder: Path, era: str) -> Iterator[Device]:
    """The model in this process."""
    simulator = Simulator.open(folder / "state" / "simulator", product="genoa", seed=1, kernel_era_name=era)
    try:
        process = simulator.process()
        memory = bytearray(ARENA)
        address = process.memory.place(memory)
        fds = [process.open("/dev/sev", flags) for flags in (os.O_RDWR, os.O_RDONLY)]

        def issue(mode: int, request: int, argument: int) -> int:
            try:
                process.ioctl(fds[mode], request, argument)
            except OSError as error:
                return error.errno or -1
            return 0

        yield Device(address, memoryview(memory), issue)
    finally:
        simulator.close()


def step_of(order: random.Random) -> dict[str, int]:
    """A random ioctl: mostly of the right form, often with one thing wrong."""
    wrong = order.random() < 0.3
    far = (-1, ARENA, ARENA + 64)  # how much of what straddles the end is written is nobody's promise
    request = order.choice(REQUESTS)
    return {
        "cmd": order.choice(COMMANDS) if order.random() < 0.95 else order.getrandbits(32),
        "request": request,
        "mode": READABLE if order.random() < 0.2 else WRITABLE,
        # FUSE reads what the number claims before the driver could say that it does not know the number.
        "envelope": 0 if order.random() < 0.95 or request != abi.SEV_ISSUE_CMD else ARENA,
        "data": order.choice(far) if wrong and order.random() < 0.3 else 64 + order.randrange(64),
        "blob": order.choice(far) if wrong and order.random() < 0.3 else PAGE + order.randrange(64),
        "second": order.choice(far) if wrong and order.random() < 0.3 else 3 * PAGE + order.randrange(64),
        "length": order.choice(LENGTHS) if wrong else 2084,
        "other": order.choice(LENGTHS) if wrong else 6252,
        "odd": order.choice((0, 1, 2, 3, 4)) if wrong else 0,
        "tcb": order.choice((0, 1, order.getrandbits(64))),
        "error": order.getrandbits(32),
    }


def compare(tmp_path: Path, era: str, count: int, seed: int) -> None:
    for name in ("file", "model"):
        (tmp_path / name).mkdir()
        prepare(tmp_path / name)
    reached: dict[tuple[int, int], int] = {}
    with (
        outside(tmp_path / "file", "--seed", "1", "--kernel-era", era) as file,
        inside(tmp_path / "model", era) as model,
    ):
        for number in range(count):
            step = step_of(random.Random(f"{seed}/{number}"))
            one, other = (device.play(step, random.Random(number)) for device in (file, model))
            assert one[0] == other[0], f"{number}: errno of {step}"
            assert one[1] == other[1], f"{number}: memory after {step}"
            reached[step["cmd"], one[0]] = reached.get((step["cmd"], one[0]), 0) + 1
    succeeded = {cmd for cmd, number in reached if number == 0}
    assert len(reached) > 40, "the steps are of many kinds"
    assert succeeded >= {abi.PLATFORM_STATUS, abi.PEK_GEN, abi.PDH_GEN, abi.GET_ID, abi.SNP_PLATFORM_STATUS}


@pytest.mark.parametrize("era", sorted(kernel_era.ERAS))
def test_a_sample_of_raw_ioctls_gives_the_same_bytes_on_both(tmp_path: Path, era: str) -> None:
    compare(tmp_path, era, SAMPLE, 1)


@pytest.mark.long
@pytest.mark.parametrize("era", sorted(kernel_era.ERAS))
def test_ten_thousand_raw_ioctls_give_the_same_bytes_on_both(tmp_path: Path, era: str) -> None:
    compare(tmp_path, era, ALL, 2)


def test_the_typed_kernel_is_the_same_system_call(tmp_path: Path) -> None:
    """The Linux kernel of the library, which production uses, on the same file."""
    with device_files(tmp_path) as files:
        kernel = LinuxKernel()
        fd = kernel.open(str(files.sev), os.O_RDONLY)
        status, envelope = bytearray(12), bytearray(16)
        address = kernel.memory.place(status)
        envelope[:] = abi.IssueCmd(abi.PLATFORM_STATUS, address, 0xFFFFFFFF).encode()
        assert kernel.ioctl(fd, abi.SEV_ISSUE_CMD, kernel.memory.place(envelope)) == 0
        assert abi.IssueCmd.decode(envelope) == abi.IssueCmd(abi.PLATFORM_STATUS, address, 0)
        assert abi.PlatformStatus.decode(status).state == abi.STATE_INIT
        kernel.close(fd)
