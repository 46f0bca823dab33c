"""Who uses the platform: what must end before its keys may be taken away, or SNP be shut down.

Guests are counted three times: those of this daemon by name, others' by their ASIDs, and those that the firmware knows.
The last count is made on the worker, directly before a command.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sev.abi import sev_device as abi
from sev.errors import NotNow, SevError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sev.launch.platform import SevDevice
    from sev.products import Product

NAMED = 8
"""Occupants that a refusal names; the others it counts."""

LISTED = 64
"""Occupants in its metadata."""

_ASIDS = {"sev": "SEV", "sev_es": "SEV-ES and SEV-SNP"}

log = logging.getLogger(__name__)


class Occupancy:
    """Who is there.

    Args:
        product: Processor line; None if it is unknown.
        occupants: Guests and leases of this daemon, a phrase each.
        asids: (total, in use) of "sev" and "sev_es" ASIDs, whoever uses them.
    """

    def __init__(
        self,
        product: Product | None,
        occupants: Callable[[], Sequence[str]] = tuple,
        asids: Callable[[], Mapping[str, tuple[int, int]]] = dict,
    ) -> None:
        self._product = product
        self._occupants = occupants
        self._asids = asids

    def need_nobody(self, command: str) -> None:
        """Raises NotNow while there are guests or leases, and says which; metadata `occupants` has a line for each."""
        there = list(self._occupants())
        if not there:
            # None of ours is there: whatever is in use is others'.
            used = {name: in_use for name, (_, in_use) in self._asids().items() if in_use}
            there = [
                f"{_many(count, _ASIDS.get(name, name), 'ASID')} of another program" for name, count in used.items()
            ]
        if there:
            raise _occupied(command, there)

    def need_no_guest(self, device: SevDevice, command: str) -> None:
        """The same for guests that the firmware knows. Runs on the worker."""
        counts = {"SEV or SEV-ES": abi.PlatformStatus.decode(device.platform_status()).guest_count}
        snp = self.snp(device)
        if snp is not None:
            counts["SEV-SNP"] = snp.guest_count
        there = [f"{_many(count, kind, 'guest')} of another program" for kind, count in counts.items() if count]
        if there:
            raise _occupied(command, there)

    def snp(self, device: SevDevice) -> abi.SnpStatus | None:
        """SNP_PLATFORM_STATUS; None where there is no SNP, or it does not tell. Runs on the worker."""
        if self._product is not None and not self._product.has_snp:
            return None
        try:
            return abi.SnpStatus.decode(device.snp_status())
        except SevError as error:
            log.debug("SNP does not tell its status: %s", error.message)
            return None


def _many(count: int, kind: str, noun: str) -> str:
    return f"{count} {kind} {noun}" + ("" if count == 1 else "s")


def _occupied(command: str, there: Sequence[str]) -> NotNow:
    shown = [*there[:NAMED], *([f"{len(there) - NAMED} more"] if len(there) > NAMED else [])]
    return NotNow(
        f"{command} would take the platform from what uses it: {', '.join(shown)}",
        command=command,
        remedy="End these first (sev guest list, sev guest delete ID), then ask again.",
        metadata={"occupants": "\n".join(there[:LISTED])},
    )
