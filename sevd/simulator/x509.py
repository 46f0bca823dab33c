"""Certificates and revocation lists shaped like AMD's: ARK, ASK, ASVK, VCEK, VLEK, CRL.

Names, serial numbers, extension order and encodings follow the certificates that AMD's KDS serves (AMD 57230): leaves
have serial 0 and AMD's own extensions only; signatures are RSASSA-PSS with SHA-384, MGF1-SHA-384 and 48 bytes of salt,
trailerField left out as in certificates since late 2024. Everything but the ARK is named as AMD names it, since
verifiers compare those names; the ARK alone says that it is the simulator's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sev.products import Product
from sevd.simulator import der

SIMULATOR_ORGANISATION = "sevd simulator"
"""Organisation in the ARK's name, and in nobody else's."""

AMD_ORGANISATION = "Advanced Micro Devices"
AMD_ARC = "1.3.6.1.4.1.3704.1"

SALT_SIZE = 48
_SHA384 = der.sequence(der.oid("2.16.840.1.101.3.4.2.2"), der.null())
_MGF1 = der.sequence(der.oid("1.2.840.113549.1.1.8"), _SHA384)
PSS_SHA384 = der.sequence(
    der.oid("1.2.840.113549.1.1.10"),
    der.sequence(der.explicit(0, _SHA384), der.explicit(1, _MGF1), der.explicit(2, der.integer(SALT_SIZE))),
)
"""AlgorithmIdentifier of every signature here."""

_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=SALT_SIZE)

_SPL_ORDER = {
    0: ("bootloader", "tee", "spl4", "spl5", "spl6", "spl7", "snp", "microcode"),
    1: ("fmc", "bootloader", "tee", "snp", "spl5", "spl6", "spl7", "microcode"),
}
"""Order of the SPL extensions by structVersion."""

_SPL_SUFFIX = {
    "bootloader": 1, "tee": 2, "snp": 3, "spl4": 4, "spl5": 5, "spl6": 6, "spl7": 7, "microcode": 8, "fmc": 9,
}  # fmt: skip


def name(common_name: str, organisation: str = AMD_ORGANISATION) -> bytes:
    """A distinguished name in AMD's order: OU, C, L, ST, O, CN."""
    parts = (
        ("2.5.4.11", der.utf8("Engineering")),
        ("2.5.4.6", der.printable("US")),
        ("2.5.4.7", der.utf8("Santa Clara")),
        ("2.5.4.8", der.utf8("CA")),
        ("2.5.4.10", der.utf8(organisation)),
        ("2.5.4.3", der.utf8(common_name)),
    )
    return der.sequence(*(der.set_of(der.sequence(der.oid(kind), value)) for kind, value in parts))


def ark_name(product: Product) -> bytes:
    """The root's name: AMD's common name, the simulator's organisation."""
    return name(f"ARK-{product.kds_name}", SIMULATOR_ORGANISATION)


def key_identifier(key: rsa.RSAPublicKey) -> bytes:
    """SHA-1 of the key bits, as subject key identifiers are (RFC 5280, 4.2.1.2, method 1); no security rests on it."""
    bits = key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    return hashlib.sha1(bits, usedforsecurity=False).digest()


def _extension(kind: str, value: bytes, *, critical: bool = False) -> bytes:
    return der.sequence(der.oid(kind), *([der.boolean_true()] if critical else []), der.octets(value))


def _authority(identifier: bytes) -> bytes:
    return _extension("2.5.29.35", der.sequence(der.tlv(0x80, identifier)))


def _distribution_point(product: Product, kind: str) -> bytes:
    url = der.tlv(0x86, f"https://kdsintf.amd.com/{kind}/v1/{product.kds_name}/crl".encode())
    return _extension("2.5.29.31", der.sequence(der.sequence(der.explicit(0, der.explicit(0, url)))))


def _signed(to_be_signed: bytes, signer: rsa.RSAPrivateKey) -> bytes:
    signature = signer.sign(to_be_signed, _PSS, hashes.SHA384())
    return der.sequence(to_be_signed, PSS_SHA384, der.bits(signature))


def certificate(
    *,
    serial: int,
    issuer: bytes,
    subject: bytes,
    not_before: datetime,
    not_after: datetime,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    extensions: Iterable[bytes],
    signer: rsa.RSAPrivateKey,
) -> bytes:
    """A version 3 certificate, DER. Names and extensions are given encoded."""
    return _signed(
        der.sequence(
            der.explicit(0, der.integer(2)),
            der.integer(serial),
            PSS_SHA384,
            issuer,
            der.sequence(der.time(not_before), der.time(not_after)),
            subject,
            key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            der.explicit(3, der.sequence(*extensions)),
        ),
        signer,
    )


def root_extensions(product: Product, key: rsa.RSAPublicKey) -> list[bytes]:
    """Extensions of an ARK: keyUsage, SKI, basicConstraints, CRL distribution point."""
    return [
        _extension("2.5.29.15", der.bits(b"\x06", 1), critical=True),
        _extension("2.5.29.14", der.octets(key_identifier(key))),
        _extension("2.5.29.19", der.sequence(der.boolean_true()), critical=True),
        _distribution_point(product, "vcek"),
    ]


def intermediate_extensions(product: Product, kind: str, key: rsa.RSAPublicKey, root: rsa.RSAPublicKey) -> list[bytes]:
    """Extensions of an ASK (kind "vcek") or ASVK ("vlek"): SKI, AKI, basicConstraints, keyUsage, CRL."""
    return [
        _extension("2.5.29.14", der.octets(key_identifier(key))),
        _authority(key_identifier(root)),
        _extension("2.5.29.19", der.sequence(der.boolean_true(), der.integer(0)), critical=True),
        _extension("2.5.29.15", der.bits(b"\x04", 2), critical=True),
        _distribution_point(product, kind),
    ]


def leaf_extensions(
    product: Product, spl: dict[str, int], *, hwid: bytes | None = None, csp_id: str | None = None
) -> list[bytes]:
    """AMD's extensions of a VCEK (`hwid` given, raw bytes) or VLEK (`csp_id` given).

    Args:
        product: Gives structVersion and productName.
        spl: TCB component values, 0 to 255, by the names of `sev.products`.
        hwid: The chip id's meaningful bytes.
        csp_id: The provider.
    """
    label = product.product_name if hwid is not None else product.kds_name
    out = [
        _extension(f"{AMD_ARC}.1", der.integer(product.struct_version)),
        _extension(f"{AMD_ARC}.2", der.ia5(label)),
    ]
    for component in _SPL_ORDER[product.struct_version]:
        value = der.integer(spl.get(component, 0))
        out.append(_extension(f"{AMD_ARC}.3.{_SPL_SUFFIX[component]}", value))
    if hwid is not None:
        out.append(_extension(f"{AMD_ARC}.4", hwid))
    if csp_id is not None:
        out.append(_extension(f"{AMD_ARC}.5", der.ia5(csp_id)))
    return out


def revocation_list(
    *,
    issuer: bytes,
    authority: rsa.RSAPublicKey,
    number: int,
    this_update: datetime,
    next_update: datetime,
    revoked: Iterable[tuple[int, datetime]],
    signer: rsa.RSAPrivateKey,
) -> bytes:
    """A version 2 CRL, DER: (serial, time of revocation) entries, AKI and CRL number."""
    entries = [der.sequence(der.integer(serial), der.time(moment)) for serial, moment in revoked]
    number_extension = _extension("2.5.29.20", der.integer(number))
    return _signed(
        der.sequence(
            der.integer(1),
            PSS_SHA384,
            issuer,
            der.time(this_update),
            der.time(next_update),
            *([der.sequence(*entries)] if entries else []),
            der.explicit(0, der.sequence(_authority(key_identifier(authority)), number_extension)),
        ),
        signer,
    )
