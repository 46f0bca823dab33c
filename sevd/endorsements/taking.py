"""Certificates and lists that somebody brings: read, and checked before any of them is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.certs.files import load_all
from sev.errors import MalformedInput, UsageError
from sevd.endorsements.check import check_certificate, check_list, product_of
from sevd.endorsements.entries import Stored, entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sev.certs import Certificate, Crl, Roots
    from sevd.endorsements.model import ChipIdentity

MAX_CONTENTS = 32
"""Contents in one import."""

MAX_CONTENT_BYTES = 64 << 10
"""Bytes of one content."""


def read(contents: Sequence[bytes]) -> tuple[list[Certificate], list[Crl]]:
    """What contents hold: DER or PEM, one or more objects each.

    Raises:
        UsageError: Nothing, or too much.
        MalformedInput: Neither DER nor PEM, or malformed (field `contents[i]`).
    """
    if not 0 < len(contents) <= MAX_CONTENTS:
        raise UsageError(f"contents: {len(contents)}, expected 1 to {MAX_CONTENTS}", field="contents")
    certificates: list[Certificate] = []
    lists: list[Crl] = []
    for index, content in enumerate(contents):
        field = f"contents[{index}]"
        if len(content) > MAX_CONTENT_BYTES:
            raise UsageError(f"{field}: {len(content)} bytes, expected at most {MAX_CONTENT_BYTES}", field=field)
        try:
            found, crls = load_all(bytes(content))
        except MalformedInput as error:
            raise MalformedInput(f"{field}: {error.message}", field=field) from error
        certificates += found
        lists += crls
    return certificates, lists


def check(
    certificates: Sequence[Certificate],
    lists: Sequence[Crl],
    *,
    roots: Roots,
    given: Sequence[Certificate],
    identity: ChipIdentity | None,
    before: Callable[[str], Stored | None],
    now: datetime,
) -> list[Stored]:
    """Checks them all; answers where each belongs.

    Args:
        certificates: Certificates; the authorities among them count for the others.
        lists: Revocation lists.
        roots: The trusted roots.
        given: Authorities at hand beside the built-in ones.
        identity: This chip; None if it is not known.
        before: What is kept under a name by now.
        now: The time that dates are compared with.

    Raises:
        UsageError: An object of another kind; a list older than the one at hand.
        VerificationError, CollateralError, DeviceMissing: Not genuine, not of this chip, or undecidable.
    """
    wanted = list(dict.fromkeys(certificates))
    authorities = [one for one in wanted if one.is_ca] + list(given)
    out = []
    for certificate in wanted:
        check_certificate(certificate, roots, authorities, identity, now)
        out.append(entry(certificate, product_of(certificate)))
    for crl in dict.fromkeys(lists):
        product = check_list(crl, roots, now) or (identity.product if identity else None)
        if product is None:
            raise UsageError("the list names no product, and this host's is not known", field="crl")
        stored = entry(crl, product)
        check_newer(stored, before(stored.name))
        out.append(stored)
    return out


def check_newer(stored: Stored, before: Stored | None) -> None:
    """Raises UsageError if a list is older than the one at hand: what it revokes is not unrevoked."""
    if before is None or before.crl is None or stored.crl is None:
        return
    if before.crl.this_update > stored.crl.this_update:
        raise UsageError(
            f"the list of {stored.crl.this_update:%Y-%m-%d} is older than the one at hand "
            f"({before.crl.this_update:%Y-%m-%d})",
            field="crl",
        )
