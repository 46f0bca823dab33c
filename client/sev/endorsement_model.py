"""Certificates that endorse a chip, as plain values; JSON forms as in `sev.model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.records import record
from sev.wire import rfc3339, tcb, time, word

if TYPE_CHECKING:
    from datetime import datetime

    from sev.abi.tcb import TcbVersion
    from sev.v1 import endorsement_pb2


@record
class Endorsement:
    """One certificate or list: `kind` is ark, ask, asvk, vcek, vlek or crl; `tcb` for VCEK and VLEK only.

    `origin` is simulator, import, offline, kds or kept; `fetched_at` when it was taken, `expires_at` when it runs out,
    None where the daemon does not say.
    """

    kind: str
    der: bytes
    tcb: TcbVersion | None
    origin: str
    fetched_at: datetime | None = None
    expires_at: datetime | None = None

    @classmethod
    def from_message(cls, message: endorsement_pb2.Endorsement) -> Endorsement:
        """The certificate in a message."""
        from sev.v1 import endorsement_pb2

        return cls(
            kind=word(endorsement_pb2.EndorsementKind, "ENDORSEMENT_KIND_", message.kind),
            der=message.der,
            tcb=tcb(message.tcb) if message.HasField("tcb") else None,
            origin=message.origin,
            fetched_at=time(message.fetched_at) if message.HasField("fetched_at") else None,
            expires_at=time(message.expires_at) if message.HasField("expires_at") else None,
        )

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "kind": self.kind,
            "tcb": self.tcb.document() if self.tcb else None,
            "origin": self.origin,
            "bytes": len(self.der),
            "fetched_at": rfc3339(self.fetched_at),
            "expires_at": rfc3339(self.expires_at),
        }


@record
class RefreshItem:
    """One thing that is needed: `what` is ca, vcek, vlek-ca, vlek, crl, cek or offline.

    `result` is at_hand, fetched, unchanged, failed, waiting or missing; `message` says why something did not come,
    `next_at` when it is asked for next.
    """

    what: str
    result: str
    message: str
    next_at: datetime | None

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "what": self.what,
            "result": self.result,
            "message": self.message or None,
            "next_at": rfc3339(self.next_at),
        }


@record
class RefreshState:
    """How it stands with keeping certificates current; `service` is empty where none is asked."""

    service: str
    last_at: datetime | None
    next_at: datetime | None
    items: tuple[RefreshItem, ...]

    @classmethod
    def from_message(cls, message: endorsement_pb2.RefreshState) -> RefreshState:
        """The state in a message."""
        from sev.v1 import endorsement_pb2

        items = tuple(
            RefreshItem(
                what=item.what,
                result=word(endorsement_pb2.RefreshResult, "REFRESH_RESULT_", item.result),
                message=item.message,
                next_at=time(item.next_at) if item.HasField("next_at") else None,
            )
            for item in message.items
        )
        return cls(
            message.service,
            time(message.last_at) if message.HasField("last_at") else None,
            time(message.next_at) if message.HasField("next_at") else None,
            items,
        )

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "service": self.service or None,
            "last_at": rfc3339(self.last_at),
            "next_at": rfc3339(self.next_at),
            "items": [item.document() for item in self.items],
        }


@record
class Endorsements:
    """The certificates at hand for a chip, its certificate table for guests, and what is missing for a chain."""

    endorsements: tuple[Endorsement, ...]
    certificate_table: bytes
    missing: tuple[str, ...]
    simulated: bool
    refresh: RefreshState | None = None

    @classmethod
    def from_message(cls, message: endorsement_pb2.GetEndorsementsResponse) -> Endorsements:
        """The certificates in a message."""
        return cls(
            tuple(Endorsement.from_message(one) for one in message.endorsements),
            message.certificate_table,
            tuple(message.missing),
            message.simulated,
            RefreshState.from_message(message.refresh) if message.HasField("refresh") else None,
        )

    def of_kind(self, kind: str) -> Endorsement | None:
        """The first of this kind; None if there is none."""
        return next((one for one in self.endorsements if one.kind == kind), None)

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "endorsements": [one.document() for one in self.endorsements],
            "certificate_table_bytes": len(self.certificate_table),
            "missing": list(self.missing),
            "simulated": self.simulated,
            "refresh": self.refresh.document() if self.refresh is not None else None,
        }
