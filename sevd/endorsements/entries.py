"""One certificate or list as the store keeps it: what it is, and the name under which it belongs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sev.certs.files import load_all
from sev.errors import MalformedInput
from sev.records import record
from sevd.endorsements.check import kind_of, product_of, tcb_of
from sevd.endorsements.model import EndorsementKind

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sev.certs import Certificate, Crl
    from sev.products import Product

MAX_FILE = 64 << 10
"""Bytes; a larger file is not ours. Certificates have under 3 KiB, lists under 1 KiB."""

ROOT_PREFIX = "ARK-"
"""How the name of every root begins; the name of its processor line follows."""


@record
class Stored:
    """One object of the store.

    Attributes:
        kind: What it is; UNSPECIFIED for a CEK, which is in SEV's own form.
        product: Processor line.
        der: Content.
        certificate: The certificate; None for a list and a CEK.
        crl: The list; None for anything else.
        name: Under which name it belongs (sevd.endorsements.store).
        origin: Where it came from: "import", "offline", "kds"; "kept" where that was lost.
        fetched: When it was taken; None: not known.
        etag: The validator that the service gave for it; empty for none.
        modified: The service's Last-Modified; empty for none.
    """

    kind: EndorsementKind
    product: Product
    der: bytes
    certificate: Certificate | None
    crl: Crl | None
    name: str
    origin: str = "import"
    fetched: datetime | None = None
    etag: str = ""
    modified: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hex."""
        return hashlib.sha256(self.der).hexdigest()


def entry(item: Certificate | Crl, product: Product) -> Stored:
    """Where a certificate or list belongs.

    Raises:
        LeafIncomplete, ProductMismatch, UsageError: It has no place.
    """
    from sev.certs import Certificate

    folder = product.name
    if not isinstance(item, Certificate):
        return Stored(EndorsementKind.CRL, product, item.der, None, item, f"{folder}/crl")
    kind = kind_of(item)
    if kind is EndorsementKind.VCEK:
        folder += "/" + (item.hwid or b"\0")[: product.chip_id_bytes].hex()
    name = f"{item.kind}-{tcb_of(item).raw:016x}" if kind in (EndorsementKind.VCEK, EndorsementKind.VLEK) else item.kind
    return Stored(kind, product, item.der, item, None, f"{folder}/{name}")


def cek_entry(content: bytes, product: Product, chip_id: bytes) -> Stored:
    """Where the signed CEK of a chip (64 bytes) belongs. Raises MalformedInput: it is none."""
    from sev.abi import sev_certificate as abi

    if abi.SevCertificate.read(content, "CEK").usage != abi.CEK:
        raise MalformedInput("it is no CEK", field="CEK")
    name = f"{product.name}/{chip_id.hex()}/cek"
    return Stored(EndorsementKind.UNSPECIFIED, product, content, None, None, name)


def parse(content: bytes, *, name: str = "", lines: Collection[str] | None = None) -> Stored:
    """What a content is, and where it belongs by what it says of itself.

    Args:
        content: DER, or a CEK in SEV's own form.
        name: The name that it is kept under, which alone tells of which chip a CEK is.
        lines: Processor lines that are looked at; None: all.

    Raises:
        SevError: It is nothing that is kept, or of another line.
    """
    from sev import products

    if name.endswith("/cek"):
        line, chip, _ = name.split("/")
        return cek_entry(content, products.by_name(line), bytes.fromhex(chip))
    certificates, crls = load_all(content)
    objects: list[Certificate | Crl] = [*certificates, *crls]
    if len(objects) != 1 or objects[0].der != content:
        raise MalformedInput(f"{len(objects)} objects in PEM or DER, expected one in DER")
    if certificates:
        product = product_of(certificates[0])
    else:
        # A list does not say its line: the name does, else its issuer's.
        line = name.partition("/")[0] or crls[0].issuer_cn.removeprefix(ROOT_PREFIX).lower()
        product = products.by_name(line)
    if lines is not None and product.name not in lines:
        raise MalformedInput(f"it is of {product.kds_name}")
    return entry(objects[0], product)
