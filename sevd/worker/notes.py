"""What a worker remembers of its guest for a daemon that starts again, as JSON objects and back."""

from __future__ import annotations

from datetime import datetime

from sev.errors import MalformedInput
from sevd.guests.model import CreateGuest, GuestState, GuestType
from sevd.guests.port import Card, Progress
from sevd.worker import wire

FORMAT = 1
"""Format number of a guest's card; one without has the first. A larger one was written by a newer version."""

_NUMBERS = ("memory_bytes", "firmware_bytes", "vcpu_count", "cpuid_signature", "ap_reset_address", "vmsa_features")


class NewerCard(MalformedInput):
    """A guest's card that a newer version wrote: its guest is not ours to judge."""


def card_document(card: Card) -> dict[str, object]:
    """A card as a JSON object."""
    request = card.request
    out: dict[str, object] = {name: getattr(request, name) for name in _NUMBERS}
    out.update(type=int(request.type), label=request.label, wanted=request.guest_id)
    return {
        "format": FORMAT,
        "guest_id": card.guest_id,
        "owner": card.owner,
        "create_time": card.create_time.isoformat(),
        "simulated": card.simulated,
        "request": out,
    }


def card_from(document: dict[str, object]) -> Card:
    """The card in a JSON object. Raises NewerCard, MalformedInput."""
    found = wire.whole(document, "format") if "format" in document else FORMAT
    if found > FORMAT:
        raise NewerCard(f"a guest's card of format {found}; this version knows up to {FORMAT}", field="format")
    request = wire.table(document, "request")
    try:
        kind = GuestType(wire.whole(request, "type"))
        time = datetime.fromisoformat(wire.text(document, "create_time"))
    except ValueError as error:
        raise MalformedInput(f"a guest's card: {error}", field="card") from None
    if time.tzinfo is None:
        raise MalformedInput("create_time: a time without its zone", field="create_time")
    numbers = {name: wire.whole(request, name) for name in _NUMBERS}
    return Card(
        guest_id=wire.text(document, "guest_id"),
        owner=wire.text(document, "owner"),
        create_time=time,
        simulated=document.get("simulated") is True,
        request=CreateGuest(
            **numbers, type=kind, label=wire.text(request, "label"), guest_id=wire.text(request, "wanted")
        ),
    )


def progress_document(progress: Progress) -> dict[str, object]:
    """A guest's progress as a JSON object, without the ranges that were taken."""
    return {
        "state": int(progress.state),
        "policy": progress.policy,
        "launch_digest": progress.launch_digest.hex(),
        "failure": progress.failure,
        "updated_pages": progress.updated_pages,
        "measurement": progress.measurement.hex(),
    }


def progress_from(document: dict[str, object], taken: tuple[tuple[int, int], ...]) -> Progress:
    """The progress in a JSON object. Raises MalformedInput."""
    try:
        state = GuestState(wire.whole(document, "state"))
    except ValueError as error:
        raise MalformedInput(f"state: {error}", field="state") from None
    return Progress(
        state=state,
        policy=wire.whole(document, "policy"),
        launch_digest=wire.octets(document, "launch_digest"),
        failure=wire.text(document, "failure"),
        updated_pages=wire.whole(document, "updated_pages"),
        taken=taken,
        # A worker of an earlier version has no guest that could be measured.
        measurement=wire.octets(document, "measurement") if "measurement" in document else b"",
    )
