"""Certificates that endorse this chip: a store on disk, and the certificate table that guests receive.

The store is loaded when first used: it brings the whole of certificate checking along, the values do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevd.endorsements.model import ChipIdentity, Endorsement, EndorsementKind, EndorsementSet

if TYPE_CHECKING:
    from sevd.endorsements.service import Endorsements

__all__ = ["ChipIdentity", "Endorsement", "EndorsementKind", "EndorsementSet", "Endorsements"]


def __getattr__(name: str) -> object:
    """The store (PEP 562)."""
    if name == "Endorsements":
        from sevd.endorsements.service import Endorsements

        return Endorsements
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
