"""Which certificates fit a chip as it reports now, the table made of them, and what a full chain lacks.

The table holds VCEK, ASK and ARK, or VLEK, ASVK and ARK where a VLEK signs. Where reports are not signed at all (the
chip's key is masked, and no VLEK is loaded) it is empty. No certificate at all fits reports that are signed by the VLEK
of another TCB than they show: then the leaf is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.abi import cert_table
from sevd.endorsements.check import tcb_of
from sevd.endorsements.model import EndorsementKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sevd.endorsements.entries import Stored
    from sevd.endorsements.model import ChipIdentity, Endorsement

_TABLE = {
    False: ((EndorsementKind.VCEK, cert_table.VCEK), (EndorsementKind.ASK, cert_table.ASK)),
    True: ((EndorsementKind.VLEK, cert_table.VLEK), (EndorsementKind.ASVK, cert_table.ASK)),
}
"""Kinds and GUIDs of the table's entries before the ARK's, by whether a VLEK signs."""


def fits(stored: Stored, identity: ChipIdentity) -> bool:
    """Whether a certificate or list is for this product, chip and reported TCB, and for the key that signs."""
    if stored.product is not identity.product or stored.kind is EndorsementKind.UNSPECIFIED:
        return False
    if stored.certificate is None or stored.certificate.is_ca:
        return True
    if stored.kind is EndorsementKind.VCEK:
        size = identity.product.chip_id_bytes
        if (stored.certificate.hwid or b"")[:size] != identity.chip_id[:size]:
            return False
    elif identity.vlek_loaded and not identity.vlek_fits:
        return False  # each TCB has a VLEK of its own
    return tcb_of(stored.certificate).components() == identity.reported_tcb.components()


def table(chosen: Mapping[EndorsementKind, Endorsement], identity: ChipIdentity | None) -> bytes:
    """The certificate table for guests (GHCB specification, certificate data)."""
    if identity is None or _unsigned(identity):
        return cert_table.build(())
    entries = [*_TABLE[identity.vlek_loaded], (EndorsementKind.ARK, cert_table.ARK)]
    return cert_table.build([(guid, chosen[kind].der) for kind, guid in entries if kind in chosen])


def missing(
    chosen: Mapping[EndorsementKind, Endorsement], identity: ChipIdentity | None, service: str = ""
) -> list[str]:
    """What a full chain lacks, one sentence each.

    Args:
        chosen: What fits.
        identity: This chip; None if it is not known.
        service: The key distribution service that is asked by itself; empty for none.
    """
    if identity is None:
        return ["The chip is not known: its device is missing, or it has no SEV-SNP."]
    if _unsigned(identity):
        return ["The chip's key is masked and no VLEK is loaded: reports have no signature, and guests get no table."]
    if identity.vlek_loaded and not identity.vlek_fits:
        loaded, reported = identity.vlek_tcb, identity.reported_tcb
        return [f"The loaded VLEK is for the TCB {loaded}, and reports show {reported}: load that one's."]
    out = []
    for kind in (*(kind for kind, _ in _TABLE[identity.vlek_loaded]), EndorsementKind.ARK):
        if kind in chosen:
            continue
        what = f"There is no {kind.name} of {identity.product.kds_name}"
        if kind in (EndorsementKind.VCEK, EndorsementKind.VLEK):
            what = f"There is no {kind.name} for the reported TCB ({identity.reported_tcb}) of this chip"
        if service:
            out.append(f"{what}: sevd fetches it from {service} by itself; sev certs refresh says how that goes.")
        else:
            out.append(
                f"{what}: no service is asked for it (endorsements.kds); fetch it from AMD's key distribution service "
                "(sev certs fetch) and import it (sev certs import)."
            )
    return out


def _unsigned(identity: ChipIdentity) -> bool:
    return identity.vcek_masked and not identity.vlek_loaded
