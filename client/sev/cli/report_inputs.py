"""What the options of `sev report verify` and `appraise` name, read and checked: files, folders, times, expectations.

A file that cannot be read is the caller's mistake (exit 2); one that is no certificate is collateral that cannot be
used (exit 5), except in a folder, where other files may lie.
"""

from __future__ import annotations

import os

from sev.cli.files import read_file
from sev.cli.values import hex_bytes, integer
from sev.errors import MalformedInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from datetime import datetime

    from sev.attestation import Collateral, Evidence, Policy
    from sev.certs import Certificate, Crl, Roots
    from sev.certs.sev_roots import SevRoots
    from sev.cli.output import Output

REPORT_LIMIT = 4 << 20
CERTIFICATE_LIMIT = 1 << 20
POLICY_LIMIT = 1 << 20
"""Largest files that are taken, in bytes."""

FOLDER_SUFFIXES = (".pem", ".der", ".crt", ".cer", ".cert", ".crl")
FOLDER_FILES = 64
"""Names that are looked at in a folder of certificates, and how many at most."""

REPORT_DATA_SIZE = 64


def add_options(parser: ArgumentParser, *, policy_required: bool) -> None:
    """The report and every option that verification and appraisal have."""
    parser.add_argument("file", metavar="FILE", help="the report, in any form that is recognised; - for stdin")
    leaf = parser.add_mutually_exclusive_group()
    leaf.add_argument("--vek", metavar="FILE", help="the VCEK or VLEK that signed it, DER or PEM")
    leaf.add_argument("--certs", metavar="DIR", help="a folder of certificates, as sev certs export or snpguest write")
    parser.add_argument("--ca", metavar="FILE", action="append", default=[], help="further ASK or ASVK; repeatable")
    parser.add_argument("--roots", metavar="FILE", help="trust these root certificates instead of AMD's (PEM bundle)")
    parser.add_argument("--crl", metavar="FILE", action="append", default=[], help="revocation list; repeatable")
    parser.add_argument("--cert-table", metavar="FILE", help="the host's certificate table (configfs-tsm auxblob)")
    parser.add_argument("--at", metavar="TIME", help="verify for this time (RFC 3339; UTC where it says no zone)")
    parser.add_argument("--policy", metavar="FILE", required=policy_required, help="what is expected, TOML or JSON")
    parser.add_argument("--report-data", metavar="HEX", type=hex_bytes(maximum=REPORT_DATA_SIZE), help="expected")
    parser.add_argument("--measurement", metavar="HEX", type=launch_digest, help="expected launch digest")
    parser.add_argument("--host-data", metavar="HEX", type=hex_bytes(32), help="expected")
    parser.add_argument("--vmpl", metavar="N", type=integer(0, 0xFFFFFFFF), help="expected privilege level")
    parser.add_argument("--product", metavar="P", help="expected processor line: milan, genoa, turin")
    parser.add_argument(
        "--allow-host-report", action="store_true", help="take a report that the host asked for, not the guest"
    )
    parser.add_argument(
        "--allow-masked-chip-id", action="store_true", help="take a report whose chip id the host masked"
    )


def launch_digest(text: str) -> bytes:
    """48 bytes in hex, or 32 as SEV and SEV-ES guests have them."""
    from sev.cli.values import hex_bytes

    digits = text.strip().removeprefix("0x").replace(":", "").replace(" ", "")
    return hex_bytes(32 if len(digits) == 64 else 48)(text)


def evidence(args: Namespace) -> Evidence:
    """The report that FILE holds.

    Raises:
        UsageError: The file cannot be read.
        MalformedInput: It holds no report.
    """
    from sev.attestation import recognise
    from sev.products import by_name

    product = by_name(args.product) if args.product is not None else None
    return recognise(read_file(args.file, "the report", REPORT_LIMIT), product)


def verification_time(args: Namespace) -> datetime:
    """`--at`, or now; in UTC.

    Raises:
        UsageError: It is no time.
    """
    from datetime import UTC, datetime

    if args.at is None:
        return datetime.now(UTC)
    try:
        at = datetime.fromisoformat(args.at.strip())
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"--at {args.at!r}: expected a time such as 2026-08-25T00:00:00Z", field="--at") from None


def roots(args: Namespace) -> Roots | None:
    """`--roots`; None for AMD's.

    Raises:
        UsageError: The file cannot be read.
        RootsUnusable: It holds no roots.
    """
    from sev.attestation import Roots

    return Roots.from_pem(read_file(args.roots, "the roots", CERTIFICATE_LIMIT)) if args.roots is not None else None


def sev_roots(args: Namespace) -> SevRoots | None:
    """`--roots` of SEV and SEV-ES, a file of ASK and ARK; None for AMD's.

    Raises:
        UsageError: The file cannot be read.
        RootsUnusable: It holds no roots.
    """
    from sev.certs.sev_roots import SevRoots

    return SevRoots.of(read_file(args.roots, "the roots", CERTIFICATE_LIMIT)) if args.roots is not None else None


def collateral(args: Namespace, found: Evidence | None, out: Output) -> Collateral:
    """Everything that `--vek`, `--certs`, `--ca`, `--crl` and `--cert-table` name, and what came with the report.

    Raises:
        UsageError: A file or folder cannot be read.
    """
    from sev.attestation import Collateral

    certificates: list[bytes | Certificate] = []
    crls: list[bytes | Crl] = []
    if args.certs is not None:
        from_folder, lists = _folder(args.certs, out)
        certificates += from_folder
        crls += lists
    certificates += [read_file(path, "the certificate", CERTIFICATE_LIMIT) for path in args.ca]
    crls += [read_file(path, "the revocation list", CERTIFICATE_LIMIT) for path in args.crl]
    if args.cert_table is not None:
        table: bytes | None = read_file(args.cert_table, "the certificate table", CERTIFICATE_LIMIT)
    else:
        table = found.certificate_table if found is not None else None
    vek = read_file(args.vek, "the certificate", CERTIFICATE_LIMIT) if args.vek is not None else None
    return Collateral(vek, certificates, crls, table)


def _folder(path: str, out: Output) -> tuple[list[Certificate], list[Crl]]:
    from sev.certs import load_all

    try:
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(FOLDER_SUFFIXES))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise UsageError(f"cannot read the folder {path!r}: {reason}", field="--certs") from None
    if len(names) > FOLDER_FILES:
        raise UsageError(
            f"--certs {path}: {len(names)} certificate files, expected at most {FOLDER_FILES}", field="--certs"
        )
    certificates: dict[bytes, Certificate] = {}
    lists: dict[bytes, Crl] = {}
    for name in names:
        full = os.path.join(path, name)
        if not os.path.isfile(full):
            continue
        try:
            found, found_lists = load_all(read_file(full, "the certificate", CERTIFICATE_LIMIT))
        except MalformedInput as error:
            out.note(f"sev: {full} is passed over: {error.message}")
            continue
        certificates.update((one.der, one) for one in found)
        lists.update((one.der, one) for one in found_lists)
    return list(certificates.values()), list(lists.values())


def policy(args: Namespace, out: Output) -> Policy | None:
    """`--policy` and the expectations of single options together; None if nothing is asked for.

    Raises:
        UsageError: The file cannot be read, is no policy, or asks for a field that an option asks for too.
    """
    from sev.attestation import Policy

    expected: dict[str, object] = {}
    if args.report_data is not None:
        missing = REPORT_DATA_SIZE - len(args.report_data)
        if missing:
            out.note(f"sev: --report-data has {len(args.report_data)} bytes; padded with {missing} zeros on the right")
        expected["report_data"] = args.report_data + bytes(missing)
    for name in ("measurement", "host_data", "vmpl"):
        if getattr(args, name) is not None:
            expected[name] = getattr(args, name)
    if args.policy is None:
        return Policy(**expected) if expected else None
    content = read_file(args.policy, "the policy", POLICY_LIMIT)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"the policy {args.policy!r} is not UTF-8 text", field="--policy") from None
    form = "json" if args.policy.endswith(".json") or text.lstrip().startswith("{") else "toml"
    return Policy.load(text, form).and_also(**expected)
