"""Certificates that endorse this chip: a store on disk, and the certificate table that guests receive."""

from __future__ import annotations

from sevd.endorsements.model import ChipIdentity, Endorsement, EndorsementKind, EndorsementSet
from sevd.endorsements.service import Endorsements

__all__ = ["ChipIdentity", "Endorsement", "EndorsementKind", "EndorsementSet", "Endorsements"]
