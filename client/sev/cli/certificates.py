"""Certificates that commands write: PEM files by kind in a directory, DER beside them."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from sev.cli.output import Output


def pem(kind: str, der: bytes) -> bytes:
    """A certificate or revocation list in PEM (RFC 7468), lines of 64 characters."""
    from base64 import b64encode

    label = b"X509 CRL" if kind == "crl" else b"CERTIFICATE"
    text = b64encode(der)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"-----BEGIN " + label + b"-----\n" + b"\n".join(lines) + b"\n-----END " + label + b"-----\n"


def make_directory(directory: str) -> None:
    """Makes a directory if it is not there. Raises UsageError if it cannot be made."""
    from sev.errors import UsageError

    try:
        os.makedirs(directory, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise UsageError(f"cannot make the directory {directory!r}: {reason}", field=directory) from None


def write_directory(
    out: Output, directory: str, certificates: Iterable[tuple[str, bytes]], *, der: bool
) -> dict[str, str]:
    """Writes certificates as KIND.pem, with `der` also as KIND.der; makes the directory. Answers paths by kind.

    Raises:
        UsageError: The directory cannot be made, or a file cannot be written.
    """
    make_directory(directory)
    written = {}
    for kind, content in certificates:
        path = os.path.join(directory, f"{kind}.pem")
        out.write_file(path, pem(kind, content))
        written[kind] = path
        if der:
            path = os.path.join(directory, f"{kind}.der")
            out.write_file(path, content)
            written[f"{kind}.der"] = path
    return written


def write_table(out: Output, directory: str, table: bytes) -> dict[str, str]:
    """Writes the certificates of a certificate table (GHCB) as PEM files; those of unknown kind are named.

    Raises:
        MalformedInput: The table is malformed.
    """
    from sev.abi import cert_table

    kinds = {
        cert_table.VCEK: "vcek",
        cert_table.VLEK: "vlek",
        cert_table.ASK: "ask",
        cert_table.ARK: "ark",
        cert_table.CRL: "crl",
    }
    entries = cert_table.parse(table) if table else []
    known = []
    for guid, content in entries:
        if guid in kinds:
            known.append((kinds[guid], bytes(content)))
        else:
            from uuid import UUID

            out.note(f"sev: the certificate table has an entry {UUID(bytes=guid)} that is not known; left out")
    if not known:
        out.note("sev: the host hands out no certificates")
    return write_directory(out, directory, known, der=False)
