"""Playing the guest: what software inside an SNP guest does with its VMPCKs. Simulated hosts only.

The messages are real ones: sealed with the guest's key and the next sequence number, answered by the firmware, opened
and checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sev import status
from sev.abi import guest_message as messages
from sev.abi.guest_message import Header, KeyRequest
from sev.errors import InternalError
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.gctx import RUNNING, VMPCKS, GuestContext
from sevd.simulator.guest_requests import seal, unseal

SELECT_MITIGATIONS = 1 << 6
"""GUEST_FIELD_SELECT: the launch mitigation vector, which makes the request one of version 2."""


class GuestKeyRequest(Protocol):
    """MSG_KEY_REQ as a guest sends it."""

    @property
    def root_key(self) -> int:
        """0: VCEK or VLEK; 1: VMRK."""

    @property
    def key_selection(self) -> int:
        """0: VLEK if one is loaded, else VCEK; 1: VCEK; 2: VLEK."""

    @property
    def guest_field_select(self) -> int:
        """Fields mixed in, bits 0 to 6."""

    @property
    def vmpl(self) -> int:
        """VMPL mixed in, 0 to 3."""

    @property
    def guest_svn(self) -> int:
        """Guest SVN mixed in, if selected."""

    @property
    def tcb_version(self) -> int:
        """TCB mixed in, if selected: the raw integer."""


def key_request(request: GuestKeyRequest) -> KeyRequest:
    """The message for a request. Raises UsageError for a number that does not fit its field."""
    return KeyRequest(
        root_key_select=request.root_key,
        key_selection=request.key_selection,
        guest_field_select=request.guest_field_select,
        vmpl=request.vmpl,
        guest_svn=request.guest_svn,
        tcb_version=request.tcb_version,
        launch_mit_vector=0 if request.guest_field_select & SELECT_MITIGATIONS else None,
    )


class GuestPlayer:
    """One guest's side of its conversation with the firmware."""

    def __init__(self, guest: GuestContext, send: Callable[[bytes], bytes]) -> None:
        """`send` is SNP_GUEST_REQUEST: an encrypted message to its encrypted response."""
        self._guest = guest
        self._send = send

    def exchange(self, message_type: int, payload: bytes, *, vmpck: int = 0, version: int = 1) -> bytes:
        """The response's payload in the clear; `payload` is padded to a multiple of 16 bytes.

        Raises:
            FirmwareStatus: The command was refused.
        """
        if self._guest.state != RUNNING:
            raise FirmwareStatus(status.INVALID_GUEST_STATE)
        if not 0 <= vmpck < VMPCKS:
            raise FirmwareStatus(status.INVALID_PARAM)
        payload = payload.ljust(-(-len(payload) // 16) * 16, b"\0")
        sequence = self._guest.counts[vmpck] + 1
        key = self._guest.vmpck[vmpck]
        response = self._send(seal(key, Header(b"", sequence, message_type, version, len(payload), vmpck), payload))
        header = Header.decode(response)
        clear = unseal(key, header, response)
        if clear is None or (header.sequence, header.message_type) != (sequence + 1, message_type + 1):
            raise InternalError("the simulated firmware's response does not belong to the request")
        return clear


def report(player: GuestPlayer, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
    """An attestation report, 1184 bytes, asked for by software at privilege level `vmpl`.

    Raises:
        FirmwareStatus: The command's status, or with `in_response` the request's.
    """
    request = messages.report_request(report_data, vmpl, key_selection)
    code, found = messages.report_response(player.exchange(messages.REPORT_REQ, request, vmpck=min(vmpl, 3)))
    if code:
        raise FirmwareStatus(code, in_response=True)
    return found


def key(player: GuestPlayer, request: KeyRequest) -> bytes:
    """A derived key, 32 bytes, asked for by software at the request's privilege level.

    Raises:
        FirmwareStatus: The command's status, or with `in_response` the request's.
    """
    code, found = messages.key_response(
        player.exchange(messages.KEY_REQ, request.encode(), vmpck=min(request.vmpl, 3), version=request.message_version)
    )
    if code:
        raise FirmwareStatus(code, in_response=True)
    return found
