"""/dev/sev-guest as Linux answers it inside an SNP guest (drivers/virt/coco/sev-guest): three ioctls, nothing else.

The caller's structure is written back where `exitinfo2` is not zero, and only there. It is 0xFF until the request is
sent, so refusals before that show 255; a key that was given up and numbers that are used up show nothing at all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sev.abi import cert_table
from sev.abi import guest_device as abi
from sev.abi import guest_message as messages
from sevd.simulator.errnos import fail
from sevd.simulator.guest_channel import INVALID_LEN, Call, GuestChannel, Patience
from sevd.simulator.guest_host import GuestHost, GuestRef
from sevd.simulator.process import File
from sevd.simulator.svsm import GUEST_VMPL, Svsm

if TYPE_CHECKING:
    from sevd.simulator.process import Process

USER_END = (1 << 47) - 4096
"""First address that no program has."""

_REQUEST_SIZE = abi.GuestRequestIoctl.size()
_EXITINFO2 = abi.GuestRequestIoctl.offsets()["exitinfo2"][0]
_TABLE = (
    (("vlek", cert_table.VLEK), ("asvk", cert_table.ASK), ("ark", cert_table.ARK)),
    (("vcek", cert_table.VCEK), ("ask", cert_table.ASK), ("ark", cert_table.ARK)),
)
"""The entries of a host's table where a VLEK is loaded, and where not."""


class CallerMemory(Protocol):
    """The memory of the calling process."""

    def read(self, address: int, size: int) -> bytes:
        """Raises OSError(EFAULT)."""

    def write(self, address: int, data: bytes) -> None:
        """Raises OSError(EFAULT)."""


class Caller(Protocol):
    """The calling process: a simulated one, or one that lives outside."""

    @property
    def memory(self) -> CallerMemory:
        """Its memory, which pointers refer to."""


def certificate_table(endorsements: dict[str, bytes]) -> bytes:
    """The certificate table that a host gives its guests: the certificate behind a report's default signer, where one
    fits, with its chain. `endorsements` as Simulator.endorsements gives them, DER by kind."""
    entries = _TABLE[0] if "asvk" in endorsements else _TABLE[1]
    return cert_table.build((guid, endorsements[kind]) for kind, guid in entries if kind in endorsements)


class SevGuestDevice:
    """The driver in one guest; it lives as long as the guest does.

    Args:
        guest: The guest.
        certificates: Gives the host's certificate table for guests; empty: it has none.
        faults: What may go wrong when the guest asks its host (see GuestHost); None: nothing.
        svsm: The guest runs under an SVSM, at another privilege level and with that level's VMPCK.
        patience: How long a busy host is asked again.
    """

    def __init__(
        self,
        guest: GuestRef,
        certificates: Callable[[], bytes],
        *,
        faults: Callable[[str], None] | None = None,
        svsm: bool = False,
        patience: Patience | None = None,
    ) -> None:
        self._guest = guest
        patience = patience or Patience()
        host = GuestHost(guest, certificates, faults or _nothing)
        self.channel = GuestChannel(guest, host, GUEST_VMPL if svsm else 0, patience)
        self.svsm = Svsm(GuestChannel(guest, host, 0, patience), guest.vmpck(0)) if svsm else None

    @property
    def running(self) -> bool:
        """Its guest runs."""
        return self._guest.running

    def close(self) -> None:
        """The guest has ended."""
        self.channel.end()
        if self.svsm is not None:
            self.svsm.channel.end()

    def open(self, flags: int) -> SevGuestFile:
        """Opens the device: nothing is checked."""
        return SevGuestFile(self, flags)

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        """An ioctl. Raises OSError with the driver's errno."""
        if not self.running:
            fail(errno.ENODEV)
        memory = caller.memory
        raw = memory.read(argument, _REQUEST_SIZE)
        given = abi.GuestRequestIoctl.decode(raw)
        if not given.msg_version:
            fail(errno.EINVAL)
        state = _State()
        try:
            self._dispatch(memory, request, given, state)
        finally:
            if state.exitinfo2:
                # A structure that went away meanwhile turns the result into EFAULT.
                memory.write(argument, raw[:_EXITINFO2] + state.exitinfo2.to_bytes(8, "little"))
        return 0

    def ext_report(self, request: bytes, pages: int) -> tuple[bytes, bytes]:
        """An extended report for the kernel itself: the response (status first), and the certificate pages.

        Args:
            request: abi.ReportRequest, 96 bytes.
            pages: Room for certificates.

        Raises:
            OSError: As GuestChannel.send.
        """
        call = Call(messages.REPORT_REQ, abi.MESSAGE_VERSION, request, abi.REPORT_RESPONSE_SIZE, pages)
        response = self.channel.send(call)
        return response.ljust(abi.REPORT_RESPONSE_SIZE, b"\0"), call.certificates

    def _dispatch(self, memory: CallerMemory, request: int, given: abi.GuestRequestIoctl, state: _State) -> None:
        if request not in abi.IOCTL_NAMES:
            fail(errno.ENOTTY)
        if not given.req_data or not given.resp_data:
            fail(errno.EINVAL)
        version = given.msg_version
        if request == abi.SNP_GET_EXT_REPORT:
            self._ext_report(memory, given, state)
            return
        if request == abi.SNP_GET_REPORT:
            payload = memory.read(given.req_data, abi.ReportRequest.size())
            call = Call(messages.REPORT_REQ, version, payload, abi.REPORT_RESPONSE_SIZE)
        else:
            payload = memory.read(given.req_data, abi.DerivedKeyRequest.size())
            call = Call(messages.KEY_REQ, version, payload, abi.KEY_RESPONSE_SIZE)
        memory.write(given.resp_data, self._send(call, state))

    def _ext_report(self, memory: CallerMemory, given: abi.GuestRequestIoctl, state: _State) -> None:
        raw = memory.read(given.req_data, abi.ExtReportRequest.size())
        request = abi.ExtReportRequest.decode(raw)
        pages = 0
        if request.certs_len and request.certs_address:
            if request.certs_len > abi.CERTS_MAX or request.certs_len % abi.CERTS_PAGE:
                fail(errno.EINVAL)
            if request.certs_address > USER_END - request.certs_len:
                fail(errno.EFAULT)
            pages = request.certs_len // abi.CERTS_PAGE
        payload = raw[: abi.ReportRequest.size()]
        call = Call(messages.REPORT_REQ, given.msg_version, payload, abi.REPORT_RESPONSE_SIZE, pages)
        try:
            response = self._send(call, state)
        finally:
            if state.exitinfo2 == INVALID_LEN:
                needed = (call.pages or 0) * abi.CERTS_PAGE & 0xFFFFFFFF
                at = abi.CERTS_LEN_OFFSET
                memory.write(given.req_data, raw[:at] + needed.to_bytes(4, "little") + raw[at + 4 :])
        if pages:
            memory.write(request.certs_address, call.certificates.ljust(request.certs_len, b"\0"))
        memory.write(given.resp_data, response)

    def _send(self, call: Call, state: _State) -> bytes:
        """The response, filled up with zeros to the size that the caller's buffer must have."""
        try:
            return self.channel.send(call).ljust(call.response_size, b"\0")
        finally:
            state.exitinfo2 = call.exitinfo2


def _nothing(_hypercall: str) -> None:
    """The fault hook where there are none."""


class _State:
    """The driver's copy of `exitinfo2`."""

    __slots__ = ("exitinfo2",)

    def __init__(self) -> None:
        self.exitinfo2 = abi.EXITINFO2_UNSET


class SevGuestFile(File):
    """An open /dev/sev-guest."""

    def __init__(self, device: SevGuestDevice, flags: int) -> None:
        super().__init__(flags)
        self.device = device

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """An ioctl from this process. Raises OSError with the driver's errno."""
        return self.device.ioctl(process, request, argument)
