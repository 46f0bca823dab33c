"""One program on two faces of the same simulated host: in this process, and through files and the control socket.

A program is a list of steps, made once and done on both. Its memory is one arena, at the same address on both; before
every step it is filled anew, afterwards compared. What a step answers is its errno, or its result with descriptors
replaced by the order in which they were made.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from pathlib import Path
from typing import NamedTuple

from sev import packets
from sev.errors import UsageError
from sevd.simulator import Simulator
from sevd.simulator.address_space import BASE, AddressSpace
from sevd.simulator.control_client import ControlClient
from sevd.simulator.guest_nodes import GuestDevices
from sevd.simulator.overlay import OverlayKernel
from sevd.simulator.process import Process

PAGE = 4096
ENVELOPE, DATA, BUFFERS, RAM = 0, 0x1000, 0x2000, 0x20000
RAM_PAGES = 64
SIZE = RAM + RAM_PAGES * PAGE
NOBODY = 999_999
"""A descriptor that is not open."""
REFUSED = -2
"""In the place of an errno: a name that cannot be given."""
NO_KVM = "/nonexistent/kvm"
NAME = "the-guest"

_FIXED_NOREPLACE = 0x100000


class Write(NamedTuple):
    """Bytes that a step puts into the arena; `handle` puts a descriptor there instead (4 bytes)."""

    at: int
    data: bytes = b""
    handle: int | None = None


class Step(NamedTuple):
    """One step.

    Attributes:
        kind: open, close, ioctl, discard, name or drop (the process ends, another goes on).
        handle: Which descriptor, by the order in which they were made.
        number: The ioctl, or flags, or the offset.
        argument: A value or an address, or the size.
        path: What is opened, or the name.
        writes: What is put into the arena before.
        makes: The result is a descriptor.
    """

    kind: str
    handle: int = -1
    number: int = 0
    argument: int = 0
    path: str = ""
    writes: tuple[Write, ...] = ()
    makes: bool = False


class Outcome(NamedTuple):
    """errno (0: success), the result, and the arena, descriptors blanked."""

    errno: int
    value: int
    arena: bytes


BLANK = bytes((index * 7 + index // 256 * 13) & 0xFF for index in range(RAM_PAGES * PAGE))
"""What RAM is filled with before every step."""


class Face:
    """A face: what a process of its host can do."""

    arena: memoryview

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.reset()

    def reset(self) -> None:
        """A new process."""
        raise NotImplementedError

    def kernel(self) -> Process | OverlayKernel:
        """What the process calls."""
        raise NotImplementedError

    def open(self, path: str, flags: int) -> int:
        """Opens sev, kvm or guest."""
        raise NotImplementedError

    def name(self, fd: int, name: str) -> None:
        """Names a guest."""
        raise NotImplementedError

    def fd(self, handle: int | None) -> int:
        """A descriptor by its handle."""
        return NOBODY if handle is None or not 0 <= handle < len(self.fds) else self.fds[handle]

    def do(self, step: Step) -> Outcome:
        """One step."""
        arena = self.arena
        arena[:RAM] = bytes(RAM)
        arena[RAM:] = BLANK
        for write in step.writes:
            data = write.data if write.handle is None else (self.fd(write.handle) & 0xFFFFFFFF).to_bytes(4, "little")
            arena[write.at : write.at + len(data)] = data
        try:
            value, number = self._do(step), 0
        except OSError as error:
            value, number = -1, error.errno or -1
        except UsageError:
            value, number = -1, REFUSED
        seen = bytearray(arena)
        for write in step.writes:
            if write.handle is not None:
                seen[write.at : write.at + 4] = bytes(4)
        if step.makes and not number:
            self.fds.append(value)
            value = len(self.fds) - 1
        return Outcome(number, value, bytes(seen))

    def _do(self, step: Step) -> int:
        kernel, fd = self.kernel(), self.fd(step.handle)
        if step.kind == "open":
            return self.open(step.path, step.number)
        if step.kind == "ioctl":
            return kernel.ioctl(fd, step.number, step.argument)
        if step.kind == "close":
            kernel.close(fd)
            self.fds[step.handle] = NOBODY
        elif step.kind == "discard":
            kernel.discard(fd, step.number, step.argument)
        elif step.kind == "name":
            self.name(fd, step.path)
        elif step.kind == "drop":
            self.fds.clear()
            self.reset()
        return 0


class _Fixed(AddressSpace):
    """Memory whose place, which the cipher of older guests depends on, is what its addresses say."""

    def location(self, address: int) -> int:
        return address


class InProcess(Face):
    """The model in this process."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._process: Process | None = None
        self.arena = memoryview(bytearray(SIZE))
        super().__init__()

    def reset(self) -> None:
        if self._process is not None:
            self._process.exit()
        self._process = self.simulator.process()
        self._process.memory = _Fixed()
        assert self._process.memory.place(self.arena) == BASE
        assert self._process.open("/dev/kvm", 0) == 0  # elsewhere 0 is no secure processor either

    def kernel(self) -> Process:
        assert self._process is not None
        return self._process

    def open(self, path: str, flags: int) -> int:
        if path == "guest":
            device = GuestDevices.of(self.simulator).devices().get(NAME)
            if device is None:
                raise FileNotFoundError(2, path)
            return self.kernel().install(device.open(flags))
        return self.kernel().open(f"/dev/{path}", flags)

    def name(self, fd: int, name: str) -> None:
        self.simulator.name(self.kernel(), fd, name)

    def close(self) -> None:
        if self._process is not None:
            self._process.exit()


class ThroughFiles(Face):
    """Files served by another process, and its control socket."""

    def __init__(self, devices: Path) -> None:
        self._devices = devices
        self._kernel: OverlayKernel | None = None
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _FIXED_NOREPLACE
        address = libc.mmap(BASE, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert address == BASE, f"the arena cannot be had at its address: errno {ctypes.get_errno()}"
        self._unmap = libc.munmap
        self.arena = memoryview((ctypes.c_char * SIZE).from_address(BASE)).cast("B")
        super().__init__()

    def reset(self) -> None:
        if self._kernel is not None:
            self._kernel.exit()
            self._wait()
        self._kernel = OverlayKernel(self._devices, NO_KVM)

    def _wait(self) -> None:
        """Until the simulator is done with the process that ended: it hears of that, as a kernel's exit does not."""
        with ControlClient.connect(self._devices / "control.sock") as control:
            until = time.monotonic() + 10
            while any(pair != [pair[0], 0] for pair in _pairs(control.call("host"))):
                assert time.monotonic() < until, "an ASID was not given back"
                time.sleep(0.001)

    def kernel(self) -> OverlayKernel:
        assert self._kernel is not None
        return self._kernel

    def open(self, path: str, flags: int) -> int:
        where = {"kvm": NO_KVM, "sev": f"{self._devices}/sev", "guest": f"{self._devices}/sev-guest/{NAME}"}[path]
        return self.kernel().open(where, flags)

    def name(self, fd: int, name: str) -> None:
        self.kernel().name(fd, name)

    def close(self) -> None:
        if self._kernel is not None:
            self._kernel.exit()
        self.arena.release()
        self._unmap(BASE, SIZE)


def _pairs(answer: dict[str, object]) -> list[list[int]]:
    asids = packets.table(answer, "asids")
    return [list(pair) for pair in asids.values() if isinstance(pair, list)]
