"""Certificates that endorse a chip, as plain values; JSON forms as in `sev.model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.records import record
from sev.wire import tcb, word

if TYPE_CHECKING:
    from sev.abi.tcb import TcbVersion
    from sev.v1 import endorsement_pb2


@record
class Endorsement:
    """One certificate or list: `kind` is ark, ask, asvk, vcek, vlek or crl; `tcb` for VCEK and VLEK only."""

    kind: str
    der: bytes
    tcb: TcbVersion | None
    origin: str

    @classmethod
    def from_message(cls, message: endorsement_pb2.Endorsement) -> Endorsement:
        """The certificate in a message."""
        from sev.v1 import endorsement_pb2

        return cls(
            kind=word(endorsement_pb2.EndorsementKind, "ENDORSEMENT_KIND_", message.kind),
            der=message.der,
            tcb=tcb(message.tcb) if message.HasField("tcb") else None,
            origin=message.origin,
        )

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "kind": self.kind,
            "tcb": self.tcb.document() if self.tcb else None,
            "origin": self.origin,
            "bytes": len(self.der),
        }


@record
class Endorsements:
    """The certificates at hand for a chip, its certificate table for guests, and what is missing for a chain."""

    endorsements: tuple[Endorsement, ...]
    certificate_table: bytes
    missing: tuple[str, ...]
    simulated: bool

    @classmethod
    def from_message(cls, message: endorsement_pb2.GetEndorsementsResponse) -> Endorsements:
        """The certificates in a message."""
        return cls(
            tuple(Endorsement.from_message(one) for one in message.endorsements),
            message.certificate_table,
            tuple(message.missing),
            message.simulated,
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
        }
