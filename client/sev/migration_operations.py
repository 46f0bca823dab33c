"""The operations of an SEV guest that goes to another host, described once for the sync and asyncio clients.

`sev.migration` puts them together; see `sev.operations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.calls import DEVICE_SECONDS, Call, ask, device, new_request_id
from sev.guest_model import Guest
from sev.records import record
from sev.wire import fits, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sev.calls import Operation
    from sev.v1 import guest_pb2

    Page = guest_pb2.GuestPage


@record
class Departure:
    """What the receiving host needs to know: the guest as it is, and what a guest for it is created with.

    `session` is the launch blob for the receiving platform, `vcpus` the state of each vCPU, `shared` the memory that
    the guest shares with its host: (guest physical address, bytes).
    """

    guest: Guest
    session: bytes
    firmware_bytes: int
    cpuid_signature: int
    ap_reset_address: int
    vcpus: tuple[bytes, ...]
    shared: tuple[tuple[int, int], ...] = ()


def start_sending(
    guest_id: str, *, pdh: bytes, chain: bytes, authorities: bytes, validate_only: bool = False, request_id: str = ""
) -> Operation[Departure]:
    """SEND_START of one's own SEV guest, which is launched and does not run. State: ready or paused to sending.

    Args:
        guest_id: The guest.
        pdh: The receiving platform's PDH, 2084 bytes.
        chain: Its PEK, OCA and signed CEK, 6252 bytes; verify them first (`sev.certs.sev_chain`).
        authorities: ASK and ARK in a row.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.StartSendingGuestRequest(
        guest_id=text("guest_id", guest_id),
        pdh=pdh,
        chain=chain,
        authorities=authorities,
        validate_only=validate_only,
        request_id=request_id,
    )
    answer = yield from ask(device("GuestService/StartSendingGuest", request, pb.StartSendingGuestResponse, request_id))
    return Departure(
        Guest.from_message(answer.guest),
        answer.session,
        answer.firmware_bytes,
        answer.cpuid_signature,
        answer.ap_reset_address,
        tuple(answer.vcpus),
        tuple((one.gpa, one.size_bytes) for one in answer.shared),
    )


def send_pages(guest_id: str, position: int = 0, *, validate_only: bool = False) -> Operation[tuple[list[Page], int]]:
    """Pages of a guest that is being sent, at most 256 from a position on; and where to go on (0: that was all)."""
    from sev.v1 import guest_pb2 as pb

    fits("position", position, 64)
    request = pb.SendGuestPagesRequest(
        guest_id=text("guest_id", guest_id), position=position, validate_only=validate_only
    )
    call = Call("GuestService/SendGuestPages", request, pb.SendGuestPagesResponse, seconds=DEVICE_SECONDS)
    answer = yield from ask(call)
    return list(answer.pages), answer.next_position


def cancel_sending(guest_id: str, *, validate_only: bool = False, request_id: str = "") -> Operation[Guest]:
    """SEND_CANCEL: the guest stays whole. State: sending to paused."""
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.CancelSendingGuestRequest(
        guest_id=text("guest_id", guest_id), validate_only=validate_only, request_id=request_id
    )
    answer = yield from ask(
        device("GuestService/CancelSendingGuest", request, pb.CancelSendingGuestResponse, request_id)
    )
    return Guest.from_message(answer.guest)


def finish_sending(
    guest_id: str, *, confirm: bool, validate_only: bool = False, request_id: str = ""
) -> Operation[None]:
    """SEND_FINISH: the guest is away, and is deleted here; `confirm` must be true."""
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.FinishSendingGuestRequest(
        guest_id=text("guest_id", guest_id), confirm=confirm, validate_only=validate_only, request_id=request_id
    )
    yield from ask(device("GuestService/FinishSendingGuest", request, pb.FinishSendingGuestResponse, request_id))


def start_receiving(
    guest_id: str, *, policy: int, pdh: bytes, session: bytes, validate_only: bool = False, request_id: str = ""
) -> Operation[Guest]:
    """RECEIVE_START of a created SEV guest. State: created to receiving.

    Args:
        guest_id: The guest, as large as the one that comes.
        policy: Guest policy, as the sender says.
        pdh: The sending platform's PDH, 2084 bytes.
        session: The launch blob that the sender's firmware made, 128 bytes.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.v1 import guest_pb2 as pb

    fits("policy", policy, 64)
    request_id = request_id or new_request_id()
    request = pb.StartReceivingGuestRequest(
        guest_id=text("guest_id", guest_id),
        policy=policy,
        pdh=pdh,
        session=session,
        validate_only=validate_only,
        request_id=request_id,
    )
    answer = yield from ask(
        device("GuestService/StartReceivingGuest", request, pb.StartReceivingGuestResponse, request_id)
    )
    return Guest.from_message(answer.guest)


def receive_pages(guest_id: str, pages: Sequence[Page], *, validate_only: bool = False) -> Operation[None]:
    """Pages, at most 256, for a guest that is being received. Raises FirmwareError: BAD_MEASUREMENT: changed."""
    from sev.v1 import guest_pb2 as pb

    request = pb.ReceiveGuestPagesRequest(guest_id=text("guest_id", guest_id), pages=pages, validate_only=validate_only)
    yield from ask(
        Call("GuestService/ReceiveGuestPages", request, pb.ReceiveGuestPagesResponse, seconds=DEVICE_SECONDS)
    )


def finish_receiving(
    guest_id: str,
    vcpus: Sequence[bytes],
    shared: Sequence[tuple[int, int]] = (),
    *,
    validate_only: bool = False,
    request_id: str = "",
) -> Operation[Guest]:
    """RECEIVE_FINISH. State: receiving to ready, or failed.

    Args:
        guest_id: The guest.
        vcpus: The state of each vCPU.
        shared: The memory that it shares with its host, as it was told when it left; all else must have come.
        validate_only: Check everything, change nothing.
        request_id: Makes retries safe; one is made if empty.
    """
    from sev.v1 import guest_pb2 as pb

    request_id = request_id or new_request_id()
    request = pb.FinishReceivingGuestRequest(
        guest_id=text("guest_id", guest_id),
        vcpus=vcpus,
        shared=[pb.MemoryRange(gpa=gpa, size_bytes=size) for gpa, size in shared],
        validate_only=validate_only,
        request_id=request_id,
    )
    answer = yield from ask(
        device("GuestService/FinishReceivingGuest", request, pb.FinishReceivingGuestResponse, request_id)
    )
    return Guest.from_message(answer.guest)
