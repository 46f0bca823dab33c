"""Imported certificates on disk, one DER file each, keyed by what they are for.

    DIRECTORY/genoa/ark.der, ask.der, asvk.der, crl.der
    DIRECTORY/genoa/vlek-TCB.der
    DIRECTORY/genoa/CHIP/vcek-TCB.der

TCB is the raw integer in 16 hexadecimal digits, CHIP the identifier in hexadecimal. A file is written under a temporary
name, synced and renamed. What cannot be read, is damaged or lies under the wrong name is set aside (renamed to
NAME.damaged-TIME) and reported, never silently replaced.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sev.certs.files import load_all
from sev.errors import CollateralError, KernelError, MalformedInput, SevError, VerificationError
from sevd import durable
from sevd.endorsements.check import kind_of, product_of, tcb_of
from sevd.endorsements.model import EndorsementKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sev.certs import Certificate, Crl
    from sev.products import Product

MAX_FILE = 64 << 10
"""Bytes; a larger file is not ours. Certificates have under 2 KiB, lists under 1 KiB."""

MAX_FILES = 4096
"""Files looked at; chips and TCBs of one machine are few."""

_NAME = re.compile(r"(ark|ask|asvk|crl|vlek-[0-9a-f]{16}|vcek-[0-9a-f]{16})\.der")


class Stored(NamedTuple):
    """One file of the store.

    Attributes:
        kind: What it is.
        product: Processor line.
        der: Content.
        certificate: The certificate; None for a list.
        crl: The list; None for a certificate.
        path: Where it lies, below the store's directory.
    """

    kind: EndorsementKind
    product: Product
    der: bytes
    certificate: Certificate | None
    crl: Crl | None
    path: Path


def entry(item: Certificate | Crl, product: Product) -> Stored:
    """Where a certificate or list belongs.

    Raises:
        LeafIncomplete, ProductMismatch, UsageError: It has no place.
    """
    from sev.certs import Certificate

    folder = Path(product.name)
    if not isinstance(item, Certificate):
        return Stored(EndorsementKind.CRL, product, item.der, None, item, folder / "crl.der")
    kind = kind_of(item)
    if kind is EndorsementKind.VCEK:
        folder /= (item.hwid or b"\0")[: product.chip_id_bytes].hex()
    name = f"{item.kind}-{tcb_of(item).raw:016x}" if kind in (EndorsementKind.VCEK, EndorsementKind.VLEK) else item.kind
    return Stored(kind, product, item.der, item, None, folder / f"{name}.der")


class Store:
    """The folder. Everything here blocks on the disk.

    Args:
        directory: Where files lie; made when the first is kept.
        report: Told one sentence about each file that was set aside.
    """

    def __init__(self, directory: Path, report: Callable[[str], None]) -> None:
        self._directory = directory
        self._report = report

    def load(
        self, check: Callable[[Stored, Sequence[Certificate]], None], products: Collection[str] | None = None
    ) -> dict[Path, Stored]:
        """Everything in the store that reads back as what it should be and passes `check`.

        What lies there for processor lines other than `products` (None: all) is neither read nor touched.

        `check` is given each entry and the authorities among all of them. What it refuses with a VerificationError is
        set aside like a damaged file; what it cannot decide (CollateralError) stays.
        """
        found: dict[Path, Stored] = {}
        for path in self._files(products):
            try:
                found[path] = self._read(path)
            except SevError as error:
                self.set_aside(path, error.message)
            except OSError as error:
                self._report(f"{path} cannot be read: {error.strerror}.")
        authorities = [one.certificate for one in found.values() if one.certificate and one.certificate.is_ca]
        out: dict[Path, Stored] = {}
        for path, stored in found.items():
            try:
                check(stored, authorities)
            except VerificationError as error:
                self.set_aside(path, error.message)
                continue
            except CollateralError:
                pass  # undecided: it is looked at again where it is used
            out[stored.path] = stored
        return out

    def keep(self, stored: Stored) -> None:
        """Writes one file, whole or not at all. Raises KernelError."""
        path = self._directory / stored.path
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            durable.write(path, stored.der, 0o644)
        except OSError as error:
            raise KernelError(error.errno or 0, command=f"write {path}") from error

    def set_aside(self, path: Path, why: str) -> None:
        """Renames a file that is not what it should be, and reports it."""
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        try:
            path.rename(aside)
        except OSError as error:
            self._report(f"{path} is damaged ({why}) and cannot be renamed: {error.strerror}.")
        else:
            self._report(f"{path} is damaged ({why}); it was set aside as {aside.name}: import it again.")

    def _files(self, products: Collection[str] | None) -> Iterator[Path]:
        count = 0
        for folder, folders, names in os.walk(self._directory):
            if products is not None and Path(folder) == self._directory:
                folders[:] = [name for name in folders if name in products]
            folders.sort()
            for name in sorted(names):
                count += 1
                if count > MAX_FILES:
                    self._report(f"{self._directory} holds more than {MAX_FILES} files; the others are not looked at.")
                    return
                if _NAME.fullmatch(name):
                    yield Path(folder, name)

    def _read(self, path: Path) -> Stored:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise MalformedInput(f"more than {MAX_FILE} bytes")
        certificates, crls = load_all(data)
        objects: list[Certificate | Crl] = [*certificates, *crls]
        if len(objects) != 1 or objects[0].der != data:
            raise MalformedInput(f"{len(objects)} objects in PEM or DER, expected one in DER")
        inside = path.relative_to(self._directory)
        if crls:
            from sev import products

            stored = entry(crls[0], products.by_name(inside.parts[0]))
        else:
            stored = entry(certificates[0], product_of(certificates[0]))
        if stored.path != inside:
            raise MalformedInput(f"it holds what belongs into {stored.path}")
        return stored
