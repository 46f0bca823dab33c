"""A program inside a simulated guest that uses /dev/sev-guest by raw ioctls, and a guest for it to run in."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sev.abi import guest_device as abi
from sevd.simulator import Simulator
from sevd.simulator.guest_device import SevGuestDevice
from sevd.simulator.guest_ref import GuestRef
from sevd.simulator.process import Process
from tests.support.caller import Machine, attempt, launching

PATH = "/dev/sev-guest"
UNTOUCHED = 0x5A5A5A5A_A5A5A5A5
"""What the caller has in `exitinfo2` before the call."""
NONCE = bytes(range(64))


@contextlib.contextmanager
def running_guest(host: Simulator, name: str = "") -> Iterator[GuestRef]:
    """A guest with one measured page that runs; afterwards it is gone."""
    process = host.process()
    try:
        yield launch(process, name)
    finally:
        process.exit()


def launch(process: Process, name: str = "") -> GuestRef:
    """A guest that runs, of this process."""
    machine: Machine = launching(process)
    assert machine.update().name == "ok"
    assert machine.finish().name == "ok"
    file = process.take(machine.vm)
    try:
        vm = file.vm  # type: ignore[attr-defined]
        if name:
            vm.module.name(vm, name)
        guest = vm.guest
        assert isinstance(guest, GuestRef)
        return guest
    finally:
        file.drop()


class Nowhere:
    """A guest whose host answers nothing."""

    running = True
    lock = contextlib.nullcontext()

    def vmpck(self, number: int) -> bytes:
        return bytes([number]) * 32

    def messages(self, number: int) -> int:
        return number * 0

    def send(self, message: bytes) -> bytes:
        raise OSError(errno.EIO, f"{len(message)} bytes to nobody")


def nowhere(*, svsm: bool = False) -> SevGuestDevice:
    """The driver of such a guest."""
    return SevGuestDevice(Nowhere(), lambda: b"", svsm=svsm)


class Outcome(NamedTuple):
    """errno's name ("ok"), `exitinfo2` as the driver left it, the request structure, the response, the certificates."""

    name: str
    exitinfo2: int
    request: bytes
    response: bytes
    certificates: bytes

    @property
    def status(self) -> int:
        """The firmware's status in the response."""
        return int.from_bytes(self.response[:4], "little")

    @property
    def report(self) -> bytes:
        """The report in the response."""
        size = int.from_bytes(self.response[4:8], "little")
        return self.response[abi.REPORT_OFFSET : abi.REPORT_OFFSET + size]

    @property
    def certs_len(self) -> int:
        """certs_len of the request structure, as the driver left it."""
        return int.from_bytes(self.request[abi.CERTS_LEN_OFFSET : abi.CERTS_LEN_OFFSET + 4], "little")


@dataclass
class GuestProgram:
    """A process with the device open."""

    device: SevGuestDevice
    process: Process = field(init=False)
    fd: int = field(init=False)

    def __post_init__(self) -> None:
        self.process = Process({PATH: self.device.open})
        self.fd = self.process.open(PATH, 0)

    def ioctl(
        self,
        request: int,
        data: bytes | int,
        *,
        response: int = abi.REPORT_RESPONSE_SIZE,
        version: int = 1,
        resp_data: int | None = None,
        certificates: bytearray | None = None,
    ) -> Outcome:
        """One ioctl. `data` is the request structure, or an address itself; `response` the size of the buffer that is
        placed, `resp_data` an address in its place."""
        memory = self.process.memory
        buffer = bytearray(data) if isinstance(data, bytes) else bytearray()
        req_data = memory.place(buffer) if isinstance(data, bytes) else data
        answer = bytearray(b"\xee" * response)
        address = memory.place(answer) if resp_data is None else resp_data
        envelope = bytearray(abi.GuestRequestIoctl(version, req_data, address, UNTOUCHED).encode())
        number, _ = attempt(self.process, self.fd, request, memory.place(envelope))
        name = errno.errorcode.get(number, str(number)) if number else "ok"
        left = abi.GuestRequestIoctl.decode(envelope).exitinfo2
        return Outcome(name, left, bytes(buffer), bytes(answer), bytes(certificates or b""))

    def report(self, nonce: bytes = NONCE, vmpl: int = 0, version: int = 1) -> Outcome:
        """SNP_GET_REPORT."""
        return self.ioctl(abi.SNP_GET_REPORT, abi.ReportRequest(nonce, vmpl).encode(), version=version)

    def ext_report(self, size: int, *, nonce: bytes = NONCE, shift: int = 0) -> Outcome:
        """SNP_GET_EXT_REPORT with a buffer of that size, `shift` bytes behind a page's start; 0: without a buffer."""
        room = bytearray(b"\xdd" * (size + shift))
        address = self.process.memory.place(room) + shift if size else 0
        request = abi.ExtReportRequest(abi.ReportRequest(nonce), address, size).encode()
        outcome = self.ioctl(abi.SNP_GET_EXT_REPORT, request)
        return outcome._replace(certificates=bytes(room[shift:]))

    def key(self, version: int = 1, **fields: int) -> Outcome:
        """SNP_GET_DERIVED_KEY."""
        request = abi.DerivedKeyRequest(**fields).encode()
        return self.ioctl(abi.SNP_GET_DERIVED_KEY, request, response=abi.KEY_RESPONSE_SIZE, version=version)
