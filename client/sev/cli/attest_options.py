"""What the verbs of `sev attest` share: the way to the firmware, the request, the certificates that come back."""

from __future__ import annotations

from sev.cli.values import hex_bytes, integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.guest.model import GuestPlatform

REPORT_DATA_SIZE = 64
WAIT_MAX = 3600
_REQUEST_LIMIT = 1 << 16


def add_way(parser: ArgumentParser, *, both: bool = True, wait: bool = True) -> None:
    """--device, and with `both` --tsm; with `wait` --wait."""
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--device", metavar="PATH", help="ask this device (default: what is there)")
    if both:
        ways.add_argument("--tsm", metavar="DIR", help="ask this configfs-tsm folder (default: what is there)")
    if wait:
        parser.add_argument(
            "--wait",
            metavar="SECONDS",
            type=integer(0, WAIT_MAX),
            default=30,
            help="how long a host that throttles is asked again (default 30)",
        )


def add_level(parser: ArgumentParser) -> None:
    """--vmpl."""
    parser.add_argument(
        "--vmpl", metavar="N", type=integer(0, 3), help="privilege level, 0 to 3 (default: the kernel's own)"
    )


def add_report_data(parser: ArgumentParser) -> None:
    """--report-data, --random, --request."""
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--report-data",
        metavar="HEX",
        type=hex_bytes(maximum=REPORT_DATA_SIZE),
        help="what the report repeats, at most 64 bytes; shorter ones are padded with zeros (default: zeros)",
    )
    data.add_argument("--random", action="store_true", help="64 random bytes instead, which are printed")
    parser.add_argument(
        "--request",
        metavar="FILE",
        help="read the 64 bytes from this file (its first ones); with --random write them there",
    )


def report_data(args: Namespace, out: Output) -> bytes:
    """The 64 bytes that the options name.

    Raises:
        UsageError: The file cannot be read or written, is too short, or stands beside --report-data.
    """
    import os

    from sev.cli.files import read_file
    from sev.errors import UsageError

    if args.random:
        data = os.urandom(REPORT_DATA_SIZE)
        if args.request is not None:
            out.write_file(args.request, data)
        return data
    if args.request is not None:
        if args.report_data is not None:
            raise UsageError("--report-data and --request exclude each other", field="--request")
        found = read_file(args.request, "the request", _REQUEST_LIMIT)
        if len(found) < REPORT_DATA_SIZE:
            raise UsageError(
                f"{args.request}: {len(found)} bytes, expected {REPORT_DATA_SIZE} at least", field="--request"
            )
        return found[:REPORT_DATA_SIZE]
    given: bytes = args.report_data or b""
    if args.report_data is None:
        out.note("sev: the report data is 64 zero bytes, which answers no challenge; see --report-data, --random")
    elif len(given) < REPORT_DATA_SIZE:
        missing = REPORT_DATA_SIZE - len(given)
        out.note(f"sev: --report-data has {len(given)} bytes; padded with {missing} zero bytes on the right")
    return given.ljust(REPORT_DATA_SIZE, b"\0")


def opened(
    args: Namespace, out: Output, *, needs_device: bool = False, needs_tsm: bool = False, long_keys: bool = False
) -> GuestPlatform:
    """The way to the firmware that the options name, or that is there. Raises SevError."""
    from sev.guest.choice import choose
    from sev.guest.patience import Patience

    platform = choose(
        device=args.device,
        tsm=getattr(args, "tsm", None),
        patience=Patience(args.wait),
        needs_device=needs_device,
        needs_tsm=needs_tsm,
        long_key_requests=long_keys,
    )
    out.detail(f"sev: asking {platform.path} ({platform.name})")
    return platform


def write_certificates(out: Output, directory: str, table: bytes, *, der: bool) -> dict[str, str]:
    """Writes what a host's certificate table holds into a directory, by kind; answers paths by kind.

    The table is the host's: an entry that is no certificate is named and left out, and nothing is believed of what it
    says it is. The contents decide.

    Raises:
        MalformedInput: The table itself is malformed.
        UsageError: The directory cannot be made, or a file cannot be written.
    """
    from uuid import UUID

    from sev.abi import cert_table
    from sev.certs.files import load_all
    from sev.cli.certificates import write_directory
    from sev.errors import MalformedInput

    found: dict[str, bytes] = {}
    for guid, contents in cert_table.parse(table) if table else ():
        name = cert_table.NAMES.get(guid) or f"entry {UUID(bytes=guid)}"
        try:
            certificates, lists = load_all(contents)
        except MalformedInput as error:
            out.note(f"sev: the {name} in the host's table is left out: {error.message}")
            continue
        for kind, content in [*((one.kind, one.der) for one in certificates), *(("crl", one.der) for one in lists)]:
            if found.setdefault(kind, content) != content:
                out.note(f"sev: the host's table has several of kind {kind}; the first is written")
    if not found:
        out.note("sev: the host hands out no certificates")
    return write_directory(out, directory, found.items(), der=der)
