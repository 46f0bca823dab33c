"""What a file of SEV's own certificates holds: OCA, PEK, PDH, CEK, and AMD's ASK and ARK in their older form.

Nothing here decides about trust: a key that cannot be used and a signature that is none are shown for what they are.
"""

from __future__ import annotations

from sev.abi import amd_certificate, id_block
from sev.abi import sev_certificate as abi
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.abi.amd_certificate import AmdCertificate
    from sev.abi.sev_certificate import SevCertificate, Signature


def describe(data: bytes) -> list[dict[str, object]]:
    """One JSON object for each certificate in a row, SEV's first.

    Raises:
        MalformedInput: A part is neither form.
    """
    from sev.certs.sev_chain import split

    certificates, authorities = split(data)
    return [certificate_document(one) for one in certificates] + [authority_document(one) for one in authorities]


def certificate_document(certificate: SevCertificate) -> dict[str, object]:
    """An SEV certificate as a JSON object; numbers of keys and signatures in hex, most significant digit first."""
    return {
        "kind": certificate.name.lower(),
        "version": certificate.version,
        "api": f"{certificate.api_major}.{certificate.api_minor}",
        "algorithm": _algorithm(certificate.algorithm),
        "key": _key(certificate),
        "key_sha256": _sha256(certificate.key),
        "signatures": [
            _signature(number, each) for number, each in enumerate(certificate.signatures, 1) if not each.free
        ],
        "sha256": _sha256(certificate.encode()),
    }


def authority_document(certificate: AmdCertificate) -> dict[str, object]:
    """An ASK or ARK as a JSON object; `product` where it is one of AMD's keys that are built in."""
    from sev.certs.sev_roots import SevRoots

    return {
        "kind": certificate.name.lower(),
        "version": amd_certificate.VERSION,
        "product": SevRoots.amd().product.get(certificate.modulus),
        "key_id": certificate.key_id.hex(),
        "issuer_key_id": certificate.certifying_id.hex(),
        "key": {
            "bits": certificate.bits,
            "exponent": certificate.exponent,
            "modulus": f"{certificate.modulus:x}",
        },
        "signature": certificate.signature[::-1].hex() or None,
        "sha256": _sha256(certificate.encode()),
    }


def _key(certificate: SevCertificate) -> dict[str, object]:
    try:
        x, y = id_block.decode_key(certificate.key)
    except MalformedInput as error:
        return {"error": error.message, "raw": certificate.key.hex()}
    found: dict[str, object] = {"curve": "P-384", "x": f"{x:096x}", "y": f"{y:096x}"}
    try:
        certificate.public_key()
    except MalformedInput as error:
        found["error"] = error.message
    return found


def _signature(number: int, signature: Signature) -> dict[str, object]:
    found: dict[str, object] = {
        "slot": number,
        "usage": abi.USAGE_NAMES.get(signature.usage, f"0x{signature.usage:x}"),
        "algorithm": _algorithm(signature.algorithm),
    }
    if signature.algorithm in (abi.RSA_SHA256, abi.RSA_SHA384):
        return found | {"value": f"{int.from_bytes(signature.data, 'little'):x}"}
    try:
        r, s = id_block.decode_signature(signature.data)
    except MalformedInput as error:
        return found | {"error": error.message}
    return found | {"r": f"{r:096x}", "s": f"{s:096x}"}


def _algorithm(number: int) -> str:
    return abi.ALGORITHM_NAMES.get(number, f"0x{number:x}")


def _sha256(data: bytes) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()
