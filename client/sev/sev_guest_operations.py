"""The operations that SEV and SEV-ES guests alone have, described once for the sync and asyncio clients.

See `sev.operations`; what all guests have is in `sev.guest_operations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.calls import DEVICE_SECONDS, READ_SECONDS, Call, ask, device, new_request_id
from sev.errors import UsageError
from sev.guest_model import Guest
from sev.wire import fits, text

if TYPE_CHECKING:
    from sev.calls import Operation
    from sev.session.secret import Packet

DEBUG_CHUNK = 1 << 20
"""Bytes of guest memory in one message."""


def measure_guest(guest_id: str, *, validate_only: bool = False, request_id: str = "") -> Operation[Guest]:
    """LAUNCH_MEASURE of an SEV or SEV-ES guest, whose `measurement` then goes to its owner. State: measured, or failed.

    Args:
        guest_id: The guest.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.MeasureGuestRequest(
        guest_id=text("guest_id", guest_id), validate_only=validate_only, request_id=request_id
    )
    answer = yield from ask(device("GuestService/MeasureGuest", request, pb.MeasureGuestResponse, request_id))
    return Guest.from_message(answer.guest)


def inject_secret(
    guest_id: str, packet: Packet, *, gpa: int, validate_only: bool = False, request_id: str = ""
) -> Operation[Guest]:
    """LAUNCH_SECRET: what the guest's owner packed for this measurement. State stays measured.

    Args:
        guest_id: The guest.
        packet: Header (52 bytes) and encrypted payload: `sev.session.secret.seal`.
        gpa: Where it goes: what the firmware image names (`LegacyPlan.secret_gpa`), or another place.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.

    Raises:
        FirmwareError: BAD_MEASUREMENT: it was packed for another launch.
    """
    from sev.v1 import guest_pb2 as pb

    fits("gpa", gpa, 64)
    request_id = request_id or new_request_id()
    request = pb.InjectGuestSecretRequest(
        guest_id=text("guest_id", guest_id),
        header=packet.header,
        payload=packet.payload,
        gpa=gpa,
        validate_only=validate_only,
        request_id=request_id,
    )
    answer = yield from ask(device("GuestService/InjectGuestSecret", request, pb.InjectGuestSecretResponse, request_id))
    return Guest.from_message(answer.guest)


def attestation_report(guest_id: str, mnonce: bytes) -> Operation[bytes]:
    """GET_ATTESTATION_REPORT of an SEV or SEV-ES guest: 208 bytes that repeat a nonce of 16, signed by the PEK."""
    from sev.v1 import guest_pb2 as pb

    request = pb.GetGuestAttestationReportRequest(guest_id=text("guest_id", guest_id), mnonce=mnonce)
    call = Call(
        "GuestService/GetGuestAttestationReport", request, pb.GetGuestAttestationReportResponse, seconds=READ_SECONDS
    )
    return (yield from ask(call)).report


def read_guest_memory(guest_id: str, gpa: int, size: int, *, validate_only: bool = False) -> Operation[bytes]:
    """DBG_DECRYPT: memory of one's own SEV or SEV-ES guest in plain, where its policy allows debugging.

    Args:
        guest_id: The guest.
        gpa: Guest physical address.
        size: Bytes.
        validate_only: Check everything, read nothing.
    """
    from sev.v1 import guest_pb2 as pb

    fits("gpa", gpa + max(size, 0), 64)
    if size <= 0:
        raise UsageError(f"size is {size}, expected at least 1", field="size")
    out = bytearray()
    for at in range(0, size, DEBUG_CHUNK):
        request = pb.ReadGuestMemoryRequest(
            guest_id=text("guest_id", guest_id),
            gpa=gpa + at,
            size_bytes=min(DEBUG_CHUNK, size - at),
            validate_only=validate_only,
        )
        call = Call("GuestService/ReadGuestMemory", request, pb.ReadGuestMemoryResponse, seconds=DEVICE_SECONDS)
        out += (yield from ask(call)).data
    return bytes(out)


def write_guest_memory(guest_id: str, gpa: int, data: bytes, *, validate_only: bool = False) -> Operation[None]:
    """DBG_ENCRYPT: replaces memory of one's own SEV or SEV-ES guest, where its policy allows debugging.

    Args:
        guest_id: The guest.
        gpa: Guest physical address.
        data: The new bytes, in plain.
        validate_only: Check everything, change nothing.
    """
    from sev.v1 import guest_pb2 as pb

    fits("gpa", gpa + len(data), 64)
    if not data:
        raise UsageError("data is empty, expected at least one byte", field="data")
    for at in range(0, len(data), DEBUG_CHUNK):
        request_id = new_request_id()
        request = pb.WriteGuestMemoryRequest(
            guest_id=text("guest_id", guest_id),
            gpa=gpa + at,
            data=data[at : at + DEBUG_CHUNK],
            validate_only=validate_only,
            request_id=request_id,
        )
        yield from ask(device("GuestService/WriteGuestMemory", request, pb.WriteGuestMemoryResponse, request_id))
