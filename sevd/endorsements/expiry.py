"""Certificates and lists whose end is near: told once a day, in the log and as an event, as long as there is time."""

from __future__ import annotations

import logging
from datetime import date, timedelta
from typing import TYPE_CHECKING

from sevd.endorsements.model import EndorsementKind

if TYPE_CHECKING:
    from datetime import datetime

    from sevd.endorsements.model import Endorsement, EndorsementSet
    from sevd.events import Publisher

LIST_DAYS = 3
"""Days before a list runs out from which it is warned of at the earliest; lists live for weeks, and are looked at
daily."""

log = logging.getLogger(__name__)


class Expiry:
    """Warns.

    Args:
        events: Where to say it.
        days: How long before its end a certificate is warned of.
    """

    def __init__(self, events: Publisher, days: int) -> None:
        self._events = events
        self._days = days
        self._told: dict[EndorsementKind, tuple[bytes, date]] = {}

    def look(self, found: EndorsementSet, now: datetime) -> list[Endorsement]:
        """Warns of what runs out soon; answers it, told today or not."""
        out = []
        for each in found.endorsements:
            days = min(self._days, LIST_DAYS) if each.kind is EndorsementKind.CRL else self._days
            if each.ends is None or each.ends - now > timedelta(days=days):
                continue
            out.append(each)
            if self._told.get(each.kind) == (each.der, now.date()):
                continue
            self._told[each.kind] = (each.der, now.date())
            when = f"{each.ends:%Y-%m-%dT%H:%M:%SZ}"
            log.warning("the %s runs out on %s", each.kind.name, when)
            self._events.publish(
                "endorsements.expiring",
                f"the {each.kind.name} runs out on {when}",
                details={"kind": each.kind.name.lower(), "ends": when},
            )
        return out
