"""`sev session`: a guest owner's keys and launch blob for SEV and SEV-ES."""

from __future__ import annotations

from sev.cli.parser import examples, lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output

_LIMIT = 1 << 20


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    parser.description = (
        "A session belongs to one guest on one platform: its keys check the launch measurement and encrypt secrets."
    )
    verbs = parser.add_subparsers()
    lazy(verbs.add_parser("create", help="keys and launch blob for a platform"), _build_create)


def _build_create(parser: ArgumentParser) -> None:
    parser.description = (
        "Verifies a platform's chain up to AMD's root, makes fresh keys, and wraps them for the platform's PDH.\n"
        "Writes NAME_godh.b64 and NAME_session.b64, which the host needs for the launch, and NAME_tik.bin and\n"
        "NAME_tek.bin, which are secret and stay with you."
    )
    parser.add_argument("chain", metavar="CHAIN", help="PDH, PEK, OCA and CEK, as sev platform export writes them")
    parser.add_argument("policy", metavar="POLICY", nargs="?", help="guest policy: number or names (nodbg,es)")
    parser.add_argument("--policy", dest="policy_option", metavar="POLICY", help="the same")
    parser.add_argument("-n", "--name", metavar="NAME", default="vm", help="beginning of the files' names (default vm)")
    parser.add_argument("--out", metavar="DIR", default=".", help="directory for the files; made if it is not there")
    parser.add_argument("--roots", metavar="FILE", help="trust this ARK instead of AMD's: a file of ASK and ARK")
    parser.add_argument(
        "--unverified", action="store_true", help="take the first certificate as a PDH that nobody vouches for"
    )
    parser.set_defaults(run=_create)
    examples(
        parser,
        ("sev session create chain.bin --policy nodbg,es --out session", "for an SEV-ES guest without debugging"),
        notes='JSON: {"directory", "files", "policy", "verified", "product"}.',
    )


def _create(args: Namespace, out: Output) -> int:
    import os
    from base64 import b64encode

    from sev.abi.sev_certificate import SIZE, SevCertificate
    from sev.abi.sev_policy import DEFAULT, SevPolicy
    from sev.certs import sev_chain
    from sev.cli.files import read_file
    from sev.cli.report_inputs import sev_roots
    from sev.cores import no_core
    from sev.errors import UsageError
    from sev.session import Session

    if args.policy is not None and args.policy_option is not None:
        raise UsageError("the policy was given twice", field="--policy")
    text = args.policy_option or args.policy
    no_core()
    session = Session.create(SevPolicy.parse(text) if text is not None else SevPolicy(DEFAULT))
    data = read_file(args.chain, "the chain", _LIMIT)
    product = ""
    if args.unverified:
        out.note("sev: warning: nobody vouches for this PDH: whoever made it can read the guest and its secrets")
        start = session.start_unverified(SevCertificate.read(data[:SIZE], "PDH"))
    else:
        roots = sev_roots(args)
        verified = sev_chain.verify(sev_chain.SevChain.parse(data), roots=roots)
        product = verified.product
        start = session.start(verified)
    if os.sep in args.name or not args.name:
        raise UsageError(f"--name {args.name!r}: expected a word", field="--name")
    os.makedirs(args.out, exist_ok=True)
    written = {}
    for suffix, content, secret in (
        ("tik.bin", session.keys.tik, True),
        ("tek.bin", session.keys.tek, True),
        ("godh.b64", b64encode(start.certificate), False),
        ("session.b64", b64encode(start.session), False),
    ):
        path = os.path.join(args.out, f"{args.name}_{suffix}")
        out.write_file(path, content, secret=secret)
        written[suffix.partition(".")[0]] = path
    document = {
        "directory": args.out,
        "files": written,
        "policy": session.policy.document(),
        "verified": not args.unverified,
        "product": product or None,
    }
    out.result(document, "\n".join(f"wrote {path}" for path in written.values()))
    return 0
