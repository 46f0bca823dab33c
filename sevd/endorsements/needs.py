"""What a chip needs to be endorsed in full, and when each of it is to be asked for.

What is at hand and valid is not asked for again, with two exceptions: a certificate is renewed when its end is near,
and a revocation list is looked at once a day, since what it says matters before it runs out. A service may have nothing
newer for as long as it likes: what came from it is let be for a while, also where it is due as it comes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sev.records import record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sev.products import Product
    from sevd.endorsements.entries import Stored
    from sevd.endorsements.model import ChipIdentity

RENEW = timedelta(days=30)
"""How long before its end a certificate is asked for again: AMD issues the same key anew, with other dates."""

LIST_EVERY = timedelta(days=1)
"""How often a revocation list is looked at."""

AGAIN = timedelta(days=1)
"""How long what the service gave is let be at least, where that is not too near its end."""

_NEVER = datetime(9999, 1, 1, tzinfo=UTC)

VCEK, VLEK, CA, VLEK_CA, CRL, CEK = "vcek", "vlek", "ca", "vlek-ca", "crl", "cek"

ORDER = (CA, VCEK, VLEK_CA, VLEK, CRL, CEK)
"""Authorities come before what they sign."""


@record
class Need:
    """Something to have.

    Attributes:
        what: One of ORDER.
        names: The names it has in the store.
        product: Processor line.
        due: When to ask for it; None: now.
        at_hand: It is there and speaks now.
        chip_id: Of which chip a CEK is, 64 bytes.
    """

    what: str
    names: tuple[str, ...]
    product: Product
    due: datetime | None
    at_hand: bool
    chip_id: bytes = b""

    @property
    def key(self) -> str:
        """What tells it from other needs: another TCB's certificate is another need."""
        return " ".join(self.names)


def needs(
    identity: ChipIdentity | None,
    product: Product | None,
    chip_ids: Sequence[bytes],
    kept: Callable[[str], Stored | None],
    now: datetime,
) -> list[Need]:
    """What is needed, in the order in which it is to be asked for.

    Args:
        identity: This chip as it reports now; None where it has no SNP, or is not there.
        product: Processor line; None: not known.
        chip_ids: Chips whose CEK is wanted, 64 bytes each.
        kept: What the store has under a name.
        now: The time.
    """
    out: list[Need] = []
    if identity is not None:
        line, tcb = identity.product, f"{identity.reported_tcb.raw:016x}"
        chip = identity.chip_id[: line.chip_id_bytes].hex()
        wanted: list[tuple[str, tuple[str, ...]]] = [(CA, (f"{line.name}/ask", f"{line.name}/ark"))]
        if any(identity.chip_id):
            wanted.append((VCEK, (f"{line.name}/{chip}/vcek-{tcb}",)))
        if identity.vlek_loaded:
            wanted.append((VLEK_CA, (f"{line.name}/asvk", f"{line.name}/ark")))
            if identity.vlek_fits:
                wanted.append((VLEK, (f"{line.name}/vlek-{tcb}",)))
        wanted.append((CRL, (f"{line.name}/crl",)))
        for what, names in wanted:
            due, at_hand = _due([kept(name) for name in names], now)
            out.append(Need(what, names, line, due, at_hand))
    if product is not None:
        for chip_id in chip_ids:
            name = f"{product.name}/{chip_id.hex()}/cek"
            there = kept(name) is not None  # it has no dates
            out.append(Need(CEK, (name,), product, _NEVER if there else None, there, chip_id))
    return out


def _due(found: Sequence[Stored | None], now: datetime) -> tuple[datetime | None, bool]:
    """When to ask for these; None: now. And whether all are there, and speak."""
    moments: list[datetime] = []
    for stored in found:
        if stored is None:
            return None, False
        if stored.certificate is not None:
            begin, end = stored.certificate.not_before, stored.certificate.not_after
            if not begin <= now <= end:
                return None, False
            moments.append(_before_end(stored, end, min(RENEW, (end - begin) / 4), now))
        elif stored.crl is not None:
            begin, end = stored.crl.this_update, stored.crl.next_update
            if not begin <= now < end:
                return None, False
            before_end = _before_end(stored, end, (end - begin) / 4, now)
            moments.append(min(before_end, (stored.fetched or begin) + LIST_EVERY))
    return min(moments, default=None), True


def _before_end(stored: Stored, end: datetime, margin: timedelta, now: datetime) -> datetime:
    """A margin before the end, but not at once after it was asked for: several times within the margin, or daily."""
    due = end - margin
    if stored.origin == "kds" and stored.fetched is not None and stored.fetched <= now:
        due = max(due, stored.fetched + min(AGAIN, margin / 4))
    return due
