"""Takes into the store what the offline directory has for this host, whenever something there, or the host, changed.

A directory may serve many hosts: what is for another chip or processor line is passed over in silence.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sev.attestation.errors import ChipIdMismatch, ProductMismatch
from sev.certs import Certificate
from sev.errors import DeviceMissing, SevError
from sevd.endorsements.check import product_of
from sevd.endorsements.entries import Stored, entry

if TYPE_CHECKING:
    from sev.certs import Crl
    from sevd.endorsements.model import ChipIdentity
    from sevd.endorsements.offline import Fingerprint, Offline
    from sevd.endorsements.service import Endorsements

log = logging.getLogger(__name__)


class Watch:
    """What was last seen in a directory.

    Args:
        offline: The directory.
        endorsements: Where what it has is taken.
    """

    def __init__(self, offline: Offline, endorsements: Endorsements) -> None:
        self._offline = offline
        self._endorsements = endorsements
        self._seen: tuple[Fingerprint, ChipIdentity | None] | None = None
        self._problems: list[str] = []

    async def take(self, *, anew: bool = False) -> tuple[int, list[str]]:
        """Takes what is new; answers how many, and a sentence about each file that cannot be used.

        Args:
            anew: Look at everything, whether something changed or not.
        """
        seen = (await asyncio.to_thread(self._offline.fingerprint), self._endorsements.identity)
        if seen == self._seen and not anew:
            return 0, self._problems
        certificates, lists, problems = await asyncio.to_thread(self._offline.read)
        taken = 0
        # Authorities first: what they sign is decided by them.
        found: list[Certificate | Crl] = [*sorted(certificates, key=lambda one: not one.is_ca), *lists]
        for one in found:
            taken += await self._take(one, problems)
        for sentence in problems:
            if sentence not in self._problems:
                log.warning("%s", sentence)
        self._seen, self._problems = seen, problems
        if taken:
            log.info("took %d certificates and lists from %s", taken, self._offline.directory)
        return taken, problems

    async def _take(self, one: Certificate | Crl, problems: list[str]) -> bool:
        if self._known(one):
            return False
        try:
            if isinstance(one, Certificate):
                await self._endorsements.take([one], [], "offline")
            else:
                await self._endorsements.take([], [one], "offline")
        except (ChipIdMismatch, ProductMismatch, DeviceMissing) as error:
            log.debug("%s: %s", self._offline.directory, error.message)
            return False
        except SevError as error:
            problems.append(f"{self._offline.directory}: {error.message}")
            return False
        return True

    def _known(self, one: Certificate | Crl) -> bool:
        """Whether it, or something that speaks later, is kept."""
        identity = self._endorsements.identity
        try:
            if isinstance(one, Certificate):
                stored = entry(one, product_of(one))
            elif identity is None:
                return False
            else:
                stored = entry(one, identity.product)
        except SevError:
            return False
        before = self._endorsements.kept(stored.name)
        return before is not None and (before.der == stored.der or _later(before, stored))


def _later(one: Stored, other: Stored) -> bool:
    if one.certificate is not None and other.certificate is not None:
        return one.certificate.not_before > other.certificate.not_before
    return one.crl is not None and other.crl is not None and one.crl.this_update > other.crl.this_update
