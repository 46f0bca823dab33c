"""X.509 certificates of AMD's SNP system: ARK, ASK, ASVK, VCEK, VLEK, and whatever is shaped like them.

Source: RFC 5280 for the frame, AMD's VCEK/VLEK specification (57230) for names and extensions. The reader is strict:
version 3, RSASSA-PSS with SHA-384 in either spelling, RSA or P-384 keys, no extension twice, none critical that is not
understood, nothing left over. Leaf certificates have serial number 0, which is why pyca's X.509 loader is not used.
"""

from __future__ import annotations

from functools import lru_cache

from sev.certs import der, names, signatures
from sev.certs.extensions import LEVEL_NUMBERS, RESERVED_LEVELS, Extensions
from sev.errors import MalformedInput
from sev.products import by_kds_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from sev.abi.tcb import TcbVersion
    from sev.products import Product

MAX_SIZE = 16384
"""Larger certificates are refused, in bytes; real ones have under 2000."""

_EC_P384 = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
_EC_POINT_AT = len(_EC_P384) - 1
_RSA = bytes.fromhex("300d06092a864886f70d0101010500")
_VERSION_3 = bytes.fromhex("a003020102")

LEAF_NAMES = {"SEV-VCEK": "vcek", "SEV-VLEK": "vlek"}


class Certificate:
    """One certificate, read once; immutable in use. Equal if the DER is.

    Attributes:
        der: The whole certificate.
        tbs: The signed part, as it stands in `der`.
        signature: The signature, big-endian.
        serial: Serial number; 0 for every real VCEK and VLEK.
        issuer, subject: DER of the names; these are what chains are built by.
        issuer_cn, subject_cn: Their common names, "" if there is none.
        issuer_text, subject_text: The names as text.
        not_before, not_after: First and last second of validity, in UTC.
        spki: DER of the public key.
        extensions: The extensions, decoded.
        kind: What it is by its name and form: "ark", "ask", "asvk", "vcek", "vlek", or "other".
        product: The processor line of `product_name`; None if it is of none.
    """

    __slots__ = (
        "_hash", "_key", "der", "extensions", "issuer", "issuer_cn", "issuer_text", "kind", "not_after", "not_before",
        "product", "serial", "signature", "spki", "subject", "subject_cn", "subject_text", "tbs",
    )  # fmt: skip

    der: bytes
    tbs: bytes
    signature: bytes
    serial: int
    issuer: bytes
    issuer_cn: str
    issuer_text: str
    subject: bytes
    subject_cn: str
    subject_text: str
    not_before: datetime
    not_after: datetime
    spki: bytes
    extensions: Extensions
    kind: str
    product: Product | None

    @staticmethod
    def parse(data: bytes | bytearray | memoryview) -> Certificate:
        """Reads one DER certificate. The last thousand or so that were read are remembered.

        Raises:
            MalformedInput: Not such a certificate; says which element, at which offset.
        """
        return _parse(bytes(data))

    @property
    def is_ca(self) -> bool:
        """basicConstraints says that it may issue certificates."""
        return self.extensions.is_ca

    @property
    def product_name(self) -> str:
        """productName of a leaf ("Milan-B0"), the last part of the name of an authority ("Milan"); else ""."""
        if self.extensions.product_name:
            return self.extensions.product_name
        prefix, dash, last = self.subject_cn.rpartition("-")
        return last if dash and prefix in ("ARK", "SEV", "SEV-VLEK") else ""

    @property
    def tcb(self) -> dict[str, int]:
        """Security patch levels by component, as the extensions give them; empty for authorities."""
        return self.extensions.levels

    def tcb_version(self) -> TcbVersion | None:
        """The TCB that a leaf is for; None for authorities, and where product and patch levels do not fit together."""
        raw = self.tcb_raw()
        if raw is None or self.product is None:
            return None
        from sev.abi.tcb import TcbVersion

        return TcbVersion.from_int(raw, self.product)

    def tcb_raw(self) -> int | None:
        """The same as a 64-bit number; None in the same cases, and where a reserved patch level is not zero."""
        product, levels = self.product, self.extensions.level_numbers
        if product is None or not product.has_snp:
            return None
        raw = 0
        known = 0
        for name, place in product.tcb_bytes:
            level = levels.get(LEVEL_NUMBERS[name])
            if level is None:
                return None
            raw |= level << 8 * place
            known += 1
        reserved = [levels[number] for number in RESERVED_LEVELS if number in levels]
        return None if any(reserved) or known + len(reserved) != len(levels) else raw

    @property
    def hwid(self) -> bytes | None:
        """hwID extension: 64 bytes, or 8 from Turin on; None for VLEKs and authorities."""
        return self.extensions.hwid

    @property
    def csp_id(self) -> str | None:
        """cspID extension of a VLEK; None for all others."""
        return self.extensions.csp_id

    def public_key(self) -> Any:
        """The key as pyca's RSAPublicKey or EllipticCurvePublicKey; built once.

        Raises:
            MalformedInput: The numbers are no key.
        """
        if self._key is None:
            self._key = _public_key(self.spki)
        return self._key

    @property
    def key_is_p384(self) -> bool:
        """Whether the key is a P-384 key (the other possibility is RSA)."""
        return self.spki.startswith(_EC_P384)

    def fingerprint(self) -> str:
        """SHA-256 of the DER, hexadecimal."""
        from hashlib import sha256

        return sha256(self.der).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Certificate) and self.der == other.der)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<Certificate {self.kind} {self.subject_cn!r} by {self.issuer_cn!r}>"

    _key: Any
    _hash: int


@lru_cache(maxsize=1024)
def _parse(data: bytes) -> Certificate:
    size = len(data)
    if size > MAX_SIZE:
        raise MalformedInput(f"certificate: {size} bytes, expected at most {MAX_SIZE}", field="certificate")
    start, end = der.expect(data, 0, size, der.SEQUENCE, "certificate")
    der.finish(end, size, "certificate")
    at, tbs_end = der.expect(data, start, end, der.SEQUENCE, "tbsCertificate")
    out = Certificate()
    out._key = None
    out._hash = hash(data)
    out.der = data
    out.tbs = data[start:tbs_end]
    if data[at : at + 5] != _VERSION_3:
        raise MalformedInput(f"version: at offset {at}, expected version 3", field="version")
    out.serial, at = der.integer(data, at + 5, tbs_end, "serialNumber")
    algorithm, at = _slice(data, at, tbs_end, "signature")
    if algorithm not in signatures.ACCEPTED:
        raise MalformedInput(
            "signature: algorithm is not RSASSA-PSS with SHA-384, MGF1 SHA-384 and salt 48", field="signature"
        )
    out.issuer, at = _slice(data, at, tbs_end, "issuer")
    out.issuer_cn, out.issuer_text = names.parse(out.issuer, "issuer")
    time, time_end = der.expect(data, at, tbs_end, der.SEQUENCE, "validity")
    out.not_before, time = der.time(data, time, time_end, "notBefore")
    out.not_after, time = der.time(data, time, time_end, "notAfter")
    der.finish(time, time_end, "validity")
    out.subject, at = _slice(data, time_end, tbs_end, "subject")
    out.subject_cn, out.subject_text = names.parse(out.subject, "subject")
    out.spki, at = _slice(data, at, tbs_end, "subjectPublicKeyInfo")
    _check_spki(out.spki)
    out.extensions = Extensions()
    if at != tbs_end:
        wrapper, wrapper_end = der.expect(data, at, tbs_end, 0xA3, "extensions")
        der.finish(wrapper_end, tbs_end, "tbsCertificate")
        out.extensions.read(data, wrapper, wrapper_end)
    again, at = _slice(data, tbs_end, end, "signatureAlgorithm")
    if again != algorithm:
        raise MalformedInput(
            "signatureAlgorithm: differs from the algorithm in the signed part", field="signatureAlgorithm"
        )
    out.signature, at = der.bit_string(data, at, end, "signatureValue")
    der.finish(at, end, "certificate")
    out.kind = _kind(out)
    out.product = by_kds_name(out.product_name)
    return out


def _kind(certificate: Certificate) -> str:
    name = certificate.subject_cn
    if not certificate.extensions.is_ca:
        return LEAF_NAMES.get(name, "other")
    if name.startswith("SEV-"):
        return "asvk" if name.startswith("SEV-VLEK-") else "ask"
    return "ark" if certificate.issuer == certificate.subject else "other"


def _slice(data: bytes, at: int, end: int, what: str) -> tuple[bytes, int]:
    _, stop = der.expect(data, at, end, der.SEQUENCE, what)
    return data[at:stop], stop


def _check_spki(spki: bytes) -> None:
    if spki.startswith(_EC_P384) and len(spki) == _EC_POINT_AT + 97:
        return
    _rsa_numbers(spki)


def _rsa_numbers(spki: bytes) -> tuple[int, int]:
    what = "subjectPublicKeyInfo"
    at, end = der.expect(spki, 0, len(spki), der.SEQUENCE, what)
    if spki[at : at + len(_RSA)] != _RSA:
        raise MalformedInput(f"{what}: neither an RSA key nor an uncompressed P-384 key", field=what)
    key, at = der.bit_string(spki, at + len(_RSA), end, what)
    der.finish(at, end, what)
    at, end = der.expect(key, 0, len(key), der.SEQUENCE, "RSAPublicKey")
    der.finish(end, len(key), "RSAPublicKey")
    modulus, at = der.integer(key, at, end, "modulus", limit=signatures.MAX_RSA_BITS // 8 + 1)
    exponent, at = der.integer(key, at, end, "publicExponent")
    der.finish(at, end, "RSAPublicKey")
    return modulus, exponent


def _public_key(spki: bytes) -> Any:
    if spki.startswith(_EC_P384):
        return signatures.p384_key(spki[_EC_POINT_AT:], "subjectPublicKeyInfo")
    modulus, exponent = _rsa_numbers(spki)
    return signatures.rsa_key(modulus, exponent, "subjectPublicKeyInfo")
