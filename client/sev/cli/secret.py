"""`sev secret`: secrets for launched SEV and SEV-ES guests."""

from __future__ import annotations

from sev.cli import values
from sev.cli.parser import examples, lazy
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output


_SAMPLE = "--tik tik.bin --tek tek.bin --launch-measure-blob blob"


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    parser.description = (
        "A secret that the owner hands to a guest between measurement and start, encrypted so that only the guest\n"
        "with this very measurement gets it."
    )
    verbs = parser.add_subparsers()
    lazy(verbs.add_parser("build", help="pack secrets for a launch"), _build_build)
    lazy(verbs.add_parser("inject", help="hand them to the guest: the same as sev guest inject"), _build_inject)


def _build_inject(parser: ArgumentParser) -> None:
    from sev.cli.guest_sev import build_inject

    build_inject(parser, "secret")


def _build_build(parser: ArgumentParser) -> None:
    parser.description = (
        "Packs secrets into the table that OVMF and boot loaders read, encrypts it, and writes the two parts that\n"
        "LAUNCH_SECRET takes. Check the measurement first (sev measurement check). The GUID of a disk passphrase is\n"
        "736869e5-84f0-4973-92ec-06879ce3da0b."
    )
    parser.add_argument("header", metavar="HEADER", help="where to write the packet's header, 52 bytes")
    parser.add_argument("payload", metavar="PAYLOAD", help="where to write the encrypted secrets")
    parser.add_argument("--tik", metavar="FILE", required=True, help="transport integrity key, 16 bytes")
    parser.add_argument("--tek", metavar="FILE", required=True, help="transport encryption key, 16 bytes")
    parser.add_argument(
        "--launch-measure-blob", metavar="BLOB", required=True, help="what LAUNCH_MEASURE answered: a file, or base64"
    )
    parser.add_argument(
        "--secret", metavar="GUID:FILE", action="append", default=[], help="a secret and its GUID; repeatable"
    )
    parser.add_argument("--raw", metavar="FILE", help="this file as it is, without a table")
    parser.add_argument("--api-major", metavar="N", type=values.integer(0, 255), default=1, help="firmware (default 1)")
    parser.add_argument(
        "--api-minor", metavar="N", type=values.integer(0, 255), default=0, help="firmware before 0.17 differs"
    )
    parser.add_argument("--iv", metavar="IV", help="16 bytes in hex or base64, for tests: never twice with one key")
    parser.set_defaults(run=_build)
    examples(
        parser,
        (
            f"sev secret build {_SAMPLE} --raw key.bin header payload",
            "one key as it is",
        ),
    )


def _build(args: Namespace, out: Output) -> int:
    from sev.cli.files import read_bytes, read_file
    from sev.session import TransportKeys, measurement, secret

    keys = TransportKeys(
        read_bytes(args.tek, "the transport encryption key", 16, secret=True),
        read_bytes(args.tik, "the transport integrity key", 16, secret=True),
    )
    measure, _ = measurement.split(read_bytes(args.launch_measure_blob, "the measurement", measurement.BLOB_SIZE))
    if bool(args.secret) == (args.raw is not None):
        raise UsageError("give one of --secret and --raw", field="--secret")
    if args.raw is not None:
        data = read_file(args.raw, "the secret", secret.LIMIT)
    else:
        pairs = secret.guid_and_file(args.secret)
        data = secret.table((guid, read_file(path, "the secret", secret.LIMIT)) for guid, path in pairs)
    iv = None if args.iv is None else values.decoded(args.iv, 16)
    if args.iv is not None and iv is None:
        raise UsageError("--iv: expected 16 bytes in hex or base64", field="--iv")
    versioned = measurement.versioned(args.api_major, args.api_minor)
    packet = secret.seal(keys, data, measure, versioned=versioned, iv=iv)
    out.write_file(args.header, packet.header)
    out.write_file(args.payload, packet.payload)
    document = {"header": args.header, "payload": args.payload, "payload_bytes": len(packet.payload)}
    if "-" not in (args.header, args.payload):
        out.result(document, f"Wrote header to: {args.header}\nWrote payload to: {args.payload}")
    return 0
