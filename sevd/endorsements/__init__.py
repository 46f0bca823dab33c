"""Certificates that endorse this chip: a store on disk, and the certificate table that guests receive."""

from __future__ import annotations

from sevd.endorsements.model import Endorsement, EndorsementKind, EndorsementSet

__all__ = ["Endorsement", "EndorsementKind", "EndorsementSet"]
