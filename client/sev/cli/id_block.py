"""`sev id-block`: ID blocks and key digests."""

from __future__ import annotations

from sev.cli import values
from sev.cli.measure_options import FIRMWARE, LAUNCH, plan_of
from sev.cli.parser import examples, lazy
from sev.cli.quick import Option, add
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output

_KEY_LIMIT = 1 << 20
"""Most bytes of a key file."""

_OPTIONAL_FIRMWARE = Option("--ovmf", metavar="FILE", help=FIRMWARE.help + "; with the options of `sev measure snp`")


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    parser.description = (
        "An ID block names a guest: the launch succeeds only if the guest measures as it says, and the report then\n"
        "shows the family, image and security version in it and the digests of the keys that signed it."
    )
    verbs = parser.add_subparsers()
    lazy(verbs.add_parser("create", help="make and sign an ID block and its authentication page"), _build_create)
    lazy(verbs.add_parser("digest", help="the digest of a key as reports show it"), _build_digest)


def _build_create(parser: ArgumentParser) -> None:
    parser.description = (
        "Makes an ID block for a launch digest, given or measured from files, and signs it. Prints both in QEMU's\n"
        "syntax for sev-snp-guest, and the digests of the keys, which a report of the guest will show."
    )
    owner = parser.add_argument_group("identity")
    owner.add_argument("--id-key", "--idkey", metavar="PEM", required=True, help="private key that signs the block")
    owner.add_argument("--author-key", "--authorkey", metavar="PEM", help="private key that signs the ID key")
    owner.add_argument("--family-id", metavar="HEX", type=values.hex_bytes(16), default=bytes(16), help="16 bytes")
    owner.add_argument("--image-id", metavar="HEX", type=values.hex_bytes(16), default=bytes(16), help="16 bytes")
    owner.add_argument(
        "--guest-svn", "--svn", metavar="N", type=values.integer(0, 0xFFFFFFFF), default=0, help="security version"
    )
    owner.add_argument(
        "--policy", metavar="P", default="0x30000", help="guest policy: number or names (default 0x30000)"
    )
    owner.add_argument(
        "--block-version", metavar="N", type=values.integer(0, 0xFFFFFFFF), default=1, help="of the format (default 1)"
    )
    files = parser.add_argument_group("results")
    files.add_argument("--out", "--id-file", metavar="FILE", help="write the ID block, 96 bytes")
    files.add_argument("--auth-out", "--auth-file", metavar="FILE", help="write the authentication page, 4096 bytes")
    launch = parser.add_argument_group("launch")
    launch.add_argument("--measurement", metavar="DIGEST", help="launch digest in hex or base64, instead of --ovmf")
    add(launch, (_OPTIONAL_FIRMWARE, *LAUNCH))
    parser.set_defaults(run=_create)
    examples(
        parser,
        (
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out id-key.pem",
            "a key of your own; keep it",
        ),
        ("sev id-block create --ovmf OVMF.fd --vcpu-type EPYC-v4 --id-key id-key.pem", "measure and sign"),
        (
            "sev id-block create --measurement HEX --id-key id-key.pem --out id-block.bin --auth-out id-auth.bin",
            "sign a known digest, for `sev guest launch --id-block --id-auth`",
        ),
        notes="With an author key, say so at launch too (QEMU: author-key-enabled=on), or its digest is not shown.",
    )


def _build_digest(parser: ArgumentParser) -> None:
    parser.description = (
        "Prints the SHA-384 digest, 48 bytes, of a P-384 key in the form that SNP hashes: what reports show as\n"
        "id_key_digest and author_key_digest. A private key works too; its public half is taken."
    )
    parser.add_argument("key", metavar="PEM", help="public or private key, PEM or DER")
    parser.add_argument(
        "--output", metavar="FORMAT", choices=("hex", "base64", "json"), help="hex (default), base64, json"
    )
    parser.set_defaults(run=_digest)
    examples(parser, ("sev id-block digest id-key.pem", "what to pin in an appraisal policy"))


def _create(args: Namespace, out: Output) -> int:
    from base64 import b64encode

    from sev.abi.id_block import IdBlock, key_digest
    from sev.abi.policy import SnpPolicy
    from sev.cli.files import read_file
    from sev.measurement.id_block import authenticate, load_private_key, verify

    policy = SnpPolicy.parse(args.policy)
    id_key = load_private_key(read_file(args.id_key, "the ID key", _KEY_LIMIT), "the ID key")
    author = None
    if args.author_key is not None:
        author = load_private_key(read_file(args.author_key, "the author key", _KEY_LIMIT), "the author key")
    block = IdBlock(
        _measurement(args, out),
        family_id=args.family_id,
        image_id=args.image_id,
        guest_svn=args.guest_svn,
        policy=policy.raw,
        version=args.block_version,
    )
    auth = authenticate(block, id_key, author)
    verify(block, auth)
    if args.out is not None:
        out.write_file(args.out, block.encode())
    if args.auth_out is not None:
        out.write_file(args.auth_out, auth.encode())
    block_text, auth_text = b64encode(block.encode()).decode(), b64encode(auth.encode()).decode()
    digests = {"id_key_digest": key_digest(auth.id_key).hex()}
    if author is not None:
        digests["author_key_digest"] = key_digest(auth.author_key).hex()
    document: dict[str, object] = {
        "id_block": block.encode().hex(),
        "id_auth": auth.encode().hex(),
        "qemu": f"id-block={block_text},id-auth={auth_text}",
        "launch_digest": block.launch_digest.hex(),
        "policy": f"{block.policy:#x}",
        **digests,
    }
    lines = [str(document["qemu"]), *(f"{name}: {digest}" for name, digest in digests.items())]
    if "-" not in (args.out, args.auth_out) or out.json:
        out.result(document, "\n".join(lines))
    if author is not None:
        out.note("sev: an author key signed: the launch needs author-key-enabled=on (QEMU) for its digest to be shown")
    return 0


def _digest(args: Namespace, out: Output) -> int:
    from base64 import b64encode

    from sev.cli.files import read_file
    from sev.measurement.id_block import load_public_key, public_digest

    digest = public_digest(load_public_key(read_file(args.key, "the key", _KEY_LIMIT), "the key"))
    if args.output == "json":
        out.json = True
    out.result({"key_digest": digest.hex()}, b64encode(digest).decode() if args.output == "base64" else digest.hex())
    return 0


def _measurement(args: Namespace, out: Output) -> bytes:
    """The launch digest, given or measured."""
    if args.measurement is None:
        if args.ovmf is None:
            raise UsageError("--measurement or --ovmf is missing: an ID block names a launch digest", field="--ovmf")
        return plan_of(args, out).digest()
    if args.ovmf is not None:
        raise UsageError("--measurement and --ovmf were given: give one of them", field="--measurement")
    digest = values.decoded(args.measurement.strip(), 48)
    if digest is None:
        raise UsageError(
            "--measurement: expected 48 bytes, as 96 hexadecimal digits or 64 characters of base64",
            field="--measurement",
        )
    return digest
