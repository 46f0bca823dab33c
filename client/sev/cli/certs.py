"""`sev certs`: certificates that endorse a chip."""

from __future__ import annotations

from sev.cli.parser import examples, lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output

_EXPORT = """\
Writes the certificates that fit this chip and its reported TCB into a directory:
ark.pem, ask.pem, vcek.pem, and where they exist asvk.pem, vlek.pem and crl.pem.
`sev report verify --certs DIR` reads such a directory, and so does snpguest.

What is missing for a full chain is said on stderr.
"""

_IMPORT = """\
Gives certificates and revocation lists to the daemon: PEM or DER, one or more in each
file. Each is checked against the chain and this chip before it is kept; from then on
guests receive them with their reports.
"""

_SHOW = """\
Shows what a file holds: certificates, revocation lists, or a certificate table, in DER
or PEM; SEV's own certificates and chains, also of a session, and AMD's ASK and ARK for
them. Works without a daemon, and decides nothing about trust.
"""

IMPORT_LIMIT = 64 << 10
SHOW_LIMIT = 1 << 20


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    verbs = parser.add_subparsers()
    export = verbs.add_parser("export", help="this chip's certificates into a directory", description=_EXPORT)
    export.add_argument("--out", required=True, metavar="DIR", help="directory; made if it is not there")
    export.add_argument("--der", action="store_true", help="write DER files beside the PEM files")
    export.add_argument("--cert-table", metavar="FILE", help="also write the certificate table that guests receive")
    examples(
        export,
        ("sev certs export --out certs", "the chain of this chip"),
        ("sev report verify report.bin --certs certs --roots certs/ark.pem", "check a simulated host's report with it"),
        notes='JSON: {"directory", "files": paths by kind, "certificate_table", "missing", "simulated"}.',
    )
    export.set_defaults(run=_export)
    take = verbs.add_parser("import", help="give certificates to the daemon", description=_IMPORT)
    take.add_argument("files", nargs="+", metavar="FILE", help="certificates or lists in PEM or DER; - for stdin")
    examples(
        take,
        ("sev certs import vcek.der ask.pem ark.pem", "a chain that was fetched elsewhere"),
        notes='JSON: {"imported": [{"kind", "tcb", "origin", "bytes"}]}.',
    )
    take.set_defaults(run=_import)
    show = verbs.add_parser("show", help="what a file holds", description=_SHOW)
    show.add_argument("file", metavar="FILE", help="a certificate, list or table; - for stdin")
    examples(
        show,
        ("sev certs show vcek.der", "chip, TCB and validity of a VCEK"),
        ("sev certs show chain.bin", "PDH, PEK, OCA and CEK of an SEV platform, and who signed them"),
        notes='JSON: {"certificates": [...]}, one object for each.',
    )
    show.set_defaults(run=_show)
    lazy(verbs.add_parser("list", help="what the daemon has, from where, until when"), _build_list)
    lazy(verbs.add_parser("refresh", help="have the daemon ask for what is missing or due"), _build_refresh)
    lazy(verbs.add_parser("fetch", help="from AMD's key distribution service, verified"), _build_fetch)
    lazy(verbs.add_parser("url", help="where that service has them"), _build_url)
    lazy(verbs.add_parser("verify", help="does every certificate reach a trusted root?"), _build_verify)
    lazy(verbs.add_parser("generate", help="an owner's certificate and key, for SEV platforms"), _build_generate)
    lazy(verbs.add_parser("sign", help="sign a platform's request with an owner's key"), _build_sign)


def _build_list(parser: ArgumentParser) -> None:
    from sev.cli.certs_refresh import build_list

    build_list(parser)


def _build_refresh(parser: ArgumentParser) -> None:
    from sev.cli.certs_refresh import build_refresh

    build_refresh(parser)


def _build_fetch(parser: ArgumentParser) -> None:
    from sev.cli.certs_fetch import build_fetch

    build_fetch(parser)


def _build_url(parser: ArgumentParser) -> None:
    from sev.cli.certs_fetch import build_url

    build_url(parser)


def _build_verify(parser: ArgumentParser) -> None:
    from sev.cli.certs_sev import build_verify

    build_verify(parser)


def _build_generate(parser: ArgumentParser) -> None:
    from sev.cli.certs_sev import build_generate

    build_generate(parser)


def _build_sign(parser: ArgumentParser) -> None:
    from sev.cli.certs_sev import build_sign

    build_sign(parser)


def _export(args: Namespace, out: Output) -> int:
    from sev.cli.certificates import write_directory
    from sev.cli.connection import connected, mark_simulated
    from sev.errors import CollateralError

    with connected(args, out, mark=False) as host:
        found = host.endorsements()
    mark_simulated(out, found.simulated)
    if not found.endorsements:
        raise CollateralError(
            "the daemon has no certificates for this chip" + "".join(f"; {sentence}" for sentence in found.missing),
            remedy="Have the daemon ask for them (sev certs refresh), or import them (sev certs import).",
        )
    certificates = [(one.kind, one.der) for one in found.endorsements]
    written = write_directory(out, args.out, certificates, der=args.der)
    if args.cert_table is not None:
        out.write_file(args.cert_table, found.certificate_table)
    for sentence in found.missing:
        out.note(f"sev: missing: {sentence}")
    document = {
        "directory": args.out,
        "files": written,
        "certificate_table": args.cert_table,
        "missing": list(found.missing),
        "simulated": found.simulated,
    }
    paths = [*written.values(), *([args.cert_table] if args.cert_table is not None else [])]
    out.result(document, "\n".join(f"wrote {path}" for path in paths))
    return 0


def _import(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected
    from sev.cli.files import read_file

    contents = [read_file(path, "the certificates", IMPORT_LIMIT) for path in args.files]
    with connected(args, out) as host:
        taken = host.import_endorsements(contents)
    lines = [f"took {one.kind}" + (f" for {one.tcb}" if one.tcb else "") for one in taken]
    out.result({"imported": [one.document() for one in taken]}, "\n".join(lines) or "took nothing new")
    return 0


def _show(args: Namespace, out: Output) -> int:
    from sev.certs.show import describe, text
    from sev.cli.files import read_file

    documents = describe(read_file(args.file, "the certificates", SHOW_LIMIT))
    out.result({"certificates": documents}, text(documents))
    return 0
