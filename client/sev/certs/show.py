"""What a file of certificates holds, for programs and for people. Nothing here decides about trust."""

from __future__ import annotations

from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sev.certs.crl import Crl
    from sev.certs.x509 import Certificate

_BASE64_MAX = 1 << 16
_LONGEST, _WRAPPED = 160, 114
"""Columns: lines above the first are cut at the second."""


def describe(data: bytes) -> list[dict[str, object]]:
    """One JSON object for each certificate and revocation list in DER, PEM or a certificate table, in order.

    So too for SEV's own certificates and AMD's older ones, in a row or in base64.

    Entries of a table carry `guid`; one that cannot be read has kind "unreadable" and says why in `error`.

    Raises:
        MalformedInput: The data is none of these.
    """
    row = sev_row(bytes(data))
    if row is not None:
        from sev.certs import show_sev

        return show_sev.describe(row)
    from sev.abi import cert_table
    from sev.certs.files import load_all

    try:
        entries = cert_table.parse(data)
    except MalformedInput:
        entries = []
    if entries:
        return [document for guid, content in entries for document in _entry(guid, content)]
    try:
        certificates, crls = load_all(bytes(data))
    except MalformedInput as error:
        raise MalformedInput(
            f"neither certificates, revocation lists nor a certificate table: {error.message}", field=error.field
        ) from None
    return [certificate_document(one) for one in certificates] + [crl_document(one) for one in crls]


def sev_row(data: bytes) -> bytes | None:
    """The bytes, decoded if base64, that begin like a certificate of SEV's own or AMD's older form; else None."""
    if _is_sev(data):
        return data
    if 100 < len(data) <= _BASE64_MAX and b"-" not in data:
        from binascii import Error, a2b_base64

        try:
            decoded = a2b_base64(data)
        except Error:
            return None
        if _is_sev(decoded):
            return decoded
    return None


def _is_sev(data: bytes) -> bool:
    """Version 1, and a usage of a platform's keys at 8 or of AMD's at 36."""
    usages = int.from_bytes(data[8:12], "little"), int.from_bytes(data[36:40], "little")
    return len(data) >= 64 and data[:4] == b"\1\0\0\0" and (0x1001 <= usages[0] <= 0x1004 or usages[1] in (0, 0x13))


def _entry(guid: bytes, content: bytes) -> list[dict[str, object]]:
    from uuid import UUID

    from sev.abi import cert_table
    from sev.certs.files import load_all

    name = str(UUID(bytes=guid))
    try:
        certificates, crls = load_all(content)
    except MalformedInput as error:
        kind = "unreadable" if guid in cert_table.NAMES else "unknown"
        return [{"kind": kind, "guid": name, "bytes": len(content), "error": error.message}]
    found = [certificate_document(one) for one in certificates] + [crl_document(one) for one in crls]
    return [{**document, "guid": name} for document in found]


def certificate_document(certificate: Certificate) -> dict[str, object]:
    """One certificate as a JSON object; None where it has no such thing."""
    own = certificate.extensions
    product = certificate.product
    tcb = certificate.tcb_version()
    return {
        "kind": certificate.kind,
        "subject": certificate.subject_text,
        "issuer": certificate.issuer_text,
        "serial": f"{certificate.serial:x}",
        "not_before": _time(certificate.not_before),
        "not_after": _time(certificate.not_after),
        "product": product.name if product is not None else None,
        "product_name": own.product_name or None,
        "struct_version": own.struct_version,
        "tcb": tcb.document() if tcb is not None else (own.levels or None),
        "hwid": certificate.hwid.hex() if certificate.hwid is not None else None,
        "csp_id": certificate.csp_id,
        "is_ca": certificate.is_ca,
        "key": "EC P-384" if certificate.key_is_p384 else "RSA",
        "crl_url": own.crl_url or None,
        "sha256": certificate.fingerprint(),
    }


def crl_document(crl: Crl) -> dict[str, object]:
    """One revocation list as a JSON object."""
    from hashlib import sha256

    return {
        "kind": "crl",
        "issuer": crl.issuer_text,
        "number": crl.number,
        "this_update": _time(crl.this_update),
        "next_update": _time(crl.next_update),
        "revoked": [{"serial": f"{serial:x}", "revoked_at": _time(when)} for serial, when in crl.revoked.items()],
        "sha256": sha256(crl.der).hexdigest(),
    }


def text(documents: Iterable[dict[str, object]]) -> str:
    """The same for people: one block each, absent things left out."""
    blocks = []
    for document in documents:
        lines = [str(document["kind"]).upper()]
        for name, value in document.items():
            if name != "kind" and value is not None and value != []:
                lines.append(_wrapped(f"  {name.replace('_', ' ') + ':':16}{_shown(value)}"))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _wrapped(line: str) -> str:
    """A line that no terminal holds, such as the numbers of a key, in several."""
    if len(line) <= _LONGEST:
        return line
    from textwrap import wrap

    return "\n".join(wrap(line, _WRAPPED, subsequent_indent=" " * 18))


def _shown(value: object) -> str:
    if isinstance(value, dict):
        parts = [f"{name} {part}" for name, part in value.items() if name != "raw"]
        return ", ".join(parts) + (f" ({value['raw']})" if "raw" in value else "")
    if isinstance(value, list):
        return "; ".join(_shown(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
