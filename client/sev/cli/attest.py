"""`sev attest`: inside a guest, reports, the host's certificates, derived keys, and whether all that can be had."""

from __future__ import annotations

from sev.cli.parser import examples, lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.guest.model import ServiceRequest

_REPORT = """\
Asks the firmware for an attestation report of this guest and writes its 1184 bytes. It
repeats 64 bytes of your choice: a verifier's challenge, or a hash of your public key.

The report is checked to be the answer to this request. Whether it is genuine is for the
verifier to find out, elsewhere: sev report verify.
"""

_CERTIFICATES = """\
Writes the certificates that the host hands to its guests into a directory: vcek.pem,
ask.pem, ark.pem, or vlek.pem and asvk.pem. `sev report verify --certs DIR` reads it.
They come from the host: whether they are AMD's is for the verifier to find out.
"""

_KEY = """\
Derives a key that only this guest, on this platform, can derive again: 32 bytes, into a
file that only its owner may read. What is mixed in decides what else gets the same key.

fields: policy, image_id, family_id, measurement, guest_svn, tcb_version,
launch_mit_vector; by name with commas, or as a number of their bits.
A key with the measurement is lost with the next image; one with nothing mixed in is
the same for other guests on this chip.
"""

_CHECK = """\
Looks at this machine check by check: is it an SEV-SNP guest, what protects it, and can
it ask for reports. Changes nothing. What this user may not look at is skipped, and said.
"""

_NULL_GUID = "00000000-0000-0000-0000-000000000000"


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    verbs = parser.add_subparsers()
    lazy(verbs.add_parser("report", help="an attestation report of this guest"), _build_report)
    lazy(verbs.add_parser("certificates", help="the certificates that the host hands out"), _build_certificates)
    lazy(verbs.add_parser("key", help="a key derived for this guest"), _build_key)
    lazy(verbs.add_parser("check", help="whether this is a guest that can do all that"), _build_check)


def _build_report(parser: ArgumentParser) -> None:
    from sev.cli import attest_options as options
    from sev.cli.values import integer

    parser.description = _REPORT
    parser.add_argument("--out", required=True, metavar="FILE", help="where the report goes; - for stdout")
    options.add_report_data(parser)
    options.add_level(parser)
    parser.add_argument("--certs-out", metavar="DIR", help="also write the certificates that the host hands out")
    parser.add_argument("--cert-table", metavar="FILE", help="also write the host's certificate table as it came")
    parser.add_argument(
        "--signing-key",
        choices=("any", "vcek", "vlek"),
        default="any",
        metavar="any|vcek|vlek",
        help="which key signs; any: the VLEK if the host has loaded one",
    )
    parser.add_argument(
        "--message-version", metavar="N", type=integer(1, 255), default=1, help="guest message version (default 1)"
    )
    service = parser.add_argument_group("under an SVSM")
    service.add_argument("--service-provider", metavar="NAME", help="have the SVSM attest its services: svsm")
    service.add_argument("--service-guid", metavar="GUID", help="only this service (default: all)")
    service.add_argument(
        "--service-manifest-version", metavar="N", type=integer(0, (1 << 32) - 1), help="of that service (default 0)"
    )
    service.add_argument("--manifest-out", metavar="FILE", help="where the SVSM's manifest goes")
    options.add_way(parser)
    examples(
        parser,
        ("sev attest report --report-data c0ffee --out report.bin", "a report that repeats a nonce"),
        ("sev attest report --random --out report.bin --certs-out certs", "with the certificates, for a quick look"),
        ("sev attest report --request challenge.bin --out - | base64", "a challenge from a file, for a letter"),
        notes='JSON: {"report", "report_data", "vmpl", "source", "certificates": files by kind, "certificate_table",\n'
        '"manifest"}; null for what was not asked for. Over --out - only the report is printed.',
    )
    parser.set_defaults(run=_report)


def _build_certificates(parser: ArgumentParser) -> None:
    from sev.cli import attest_options as options

    parser.description = _CERTIFICATES
    parser.add_argument("--out", required=True, metavar="DIR", help="directory; made if it is not there")
    parser.add_argument("--der", action="store_true", help="write DER files beside the PEM files")
    parser.add_argument("--cert-table", metavar="FILE", help="also write the table as it came")
    options.add_way(parser)
    examples(
        parser,
        ("sev attest certificates --out certs", "what the host says this chip's chain is"),
        notes='JSON: {"directory", "files": paths by kind, "certificate_table", "source"}.\n'
        "A host that hands out none is no error: nothing is written, and stderr says so.",
    )
    parser.set_defaults(run=_certificates)


def _build_key(parser: ArgumentParser) -> None:
    from sev.cli import attest_options as options
    from sev.cli.values import integer

    parser.description = _KEY
    add = parser.add_argument
    add("--out", required=True, metavar="FILE", help="where the 32 bytes go, readable by you only; - for stdout")
    add(
        "--root",
        choices=("any", "vcek", "vlek", "vmrk"),
        default="any",
        metavar="any|vcek|vlek|vmrk",
        help="what it is derived from; any: the VLEK if the host has loaded one, else the VCEK",
    )
    add("--fields", metavar="NAMES", default="0", help="what of this guest is mixed in (default nothing)")
    options.add_level(parser)
    add("--guest-svn", metavar="N", type=integer(0, (1 << 32) - 1), help="mix in this SVN (adds guest_svn)")
    add("--tcb-version", metavar="N", type=integer(), help="mix in this TCB, raw (adds tcb_version)")
    add("--launch-mit-vector", metavar="N", type=integer(), help="mix in this vector (adds launch_mit_vector)")
    add("--message-version", metavar="N", type=integer(1, 255), help="guest message version (default 1, or 2)")
    add("--long-request", action="store_true", help="the kernel takes key requests of 40 bytes, as Linux does not")
    options.add_way(parser, both=False)
    examples(
        parser,
        ("sev attest key --fields policy,image_id --out disk.key", "a key that survives updates of the image"),
        ("sev attest key --root vmrk --fields 0x8 --out k", "of this very measurement, from the VMRK"),
        notes='JSON: {"key": file, "root", "fields": names, "vmpl", "source"}; the key itself is never printed.',
    )
    parser.set_defaults(run=_key)


def _build_check(parser: ArgumentParser) -> None:
    parser.description = _CHECK
    parser.add_argument("--device", metavar="PATH", help="the device (default /dev/sev-guest)")
    parser.add_argument("--tsm", metavar="DIR", help="the folder (default /sys/kernel/config/tsm/report)")
    parser.add_argument("--msr", metavar="PATH", help="the register device (default /dev/cpu/0/msr)")
    parser.add_argument("--try", dest="attempt", action="store_true", help="also ask for a report")
    examples(
        parser,
        ("sev attest check", "whether this guest can ask for reports, and what keeps it from it"),
        ("sev attest check --json | jq -r .kind", "sev-snp, sev-es, sev, virtual-machine, bare-metal or unknown"),
        notes="Exit code: 0 if this guest can ask for reports, 4 if it cannot.\n"
        "JSON: able, kind, summary, checks [{id, group, title, result, reason, remedy}].",
    )
    parser.set_defaults(run=_check)


def _report(args: Namespace, out: Output) -> int:
    from sev.cli import attest_options as options
    from sev.guest.model import ReportRequest

    service = _service(args)
    data = options.report_data(args, out)
    request = ReportRequest(
        data,
        vmpl=args.vmpl,
        certificates=args.certs_out is not None or args.cert_table is not None,
        message_version=args.message_version,
        signing_key=args.signing_key,
        service=service,
    )
    needs_device = args.signing_key != "any" or args.message_version != 1
    with options.opened(args, out, needs_device=needs_device, needs_tsm=service is not None) as platform:
        answer = platform.report(request)
    out.write_file(args.out, answer.report)  # first: whatever the host put into its table, the report is there
    written = None
    if args.certs_out is not None:
        written = options.write_certificates(out, args.certs_out, answer.certificate_table or b"", der=False)
    if args.cert_table is not None:
        out.write_file(args.cert_table, answer.certificate_table or b"")
    if args.manifest_out is not None:
        out.write_file(args.manifest_out, answer.manifest or b"")
    if args.out == "-":
        return 0
    document = {
        "report": args.out,
        "report_data": data.hex(),
        "vmpl": answer.vmpl,
        "source": answer.source,
        "certificates": written,
        "certificate_table": args.cert_table,
        "manifest": args.manifest_out,
    }
    lines = [f"wrote {args.out} ({len(answer.report)} bytes, VMPL {answer.vmpl})"]
    lines += [f"wrote {path}" for path in (*(written or {}).values(), args.cert_table, args.manifest_out) if path]
    if args.random:
        lines.append(f"report data: {data.hex()}")
    out.result(document, "\n".join(lines))
    return 0


def _service(args: Namespace) -> ServiceRequest | None:
    """What an SVSM shall attest. Raises UsageError."""
    from uuid import UUID

    from sev.errors import UsageError
    from sev.guest.model import ServiceRequest

    given = (args.service_provider, args.service_guid, args.service_manifest_version, args.manifest_out)
    if all(value is None for value in given):
        return None
    if args.service_provider is None:
        raise UsageError("what an SVSM attests needs --service-provider svsm", field="--service-provider")
    if args.service_provider != "svsm":
        raise UsageError(
            f"--service-provider {args.service_provider!r}: svsm is the only one", field="--service-provider"
        )
    try:
        guid = str(UUID(args.service_guid or _NULL_GUID))
    except ValueError:
        raise UsageError(f"--service-guid {args.service_guid!r}: no GUID", field="--service-guid") from None
    return ServiceRequest("svsm", guid, args.service_manifest_version or 0)


def _certificates(args: Namespace, out: Output) -> int:
    import os

    from sev.cli import attest_options as options
    from sev.guest.model import ReportRequest

    with options.opened(args, out) as platform:
        answer = platform.report(ReportRequest(os.urandom(options.REPORT_DATA_SIZE), certificates=True))
    table = answer.certificate_table or b""
    written = options.write_certificates(out, args.out, table, der=args.der) if table else {}
    if not table:
        out.note("sev: the host hands out no certificates")
    if args.cert_table is not None:
        out.write_file(args.cert_table, table)
    document = {
        "directory": args.out,
        "files": written,
        "certificate_table": args.cert_table,
        "source": answer.source,
    }
    paths = [*written.values(), *([args.cert_table] if args.cert_table is not None else [])]
    out.result(document, "\n".join(f"wrote {path}" for path in paths) or "wrote nothing")
    return 0


def _key(args: Namespace, out: Output) -> int:
    from sev.cli import attest_options as options
    from sev.guest.model import KEY_FIELDS, KeyRequest

    fields = _fields(args)
    vector = args.launch_mit_vector
    if vector is None and fields & KEY_FIELDS["launch_mit_vector"]:
        vector = 0
    version = args.message_version or (1 if vector is None else 2)
    request = KeyRequest(
        root_key="vmrk" if args.root == "vmrk" else "endorsement",
        signing_key="any" if args.root == "vmrk" else args.root,
        fields=fields,
        vmpl=args.vmpl,
        guest_svn=args.guest_svn or 0,
        tcb_version=args.tcb_version or 0,
        launch_mit_vector=vector,
        message_version=version,
    )
    with options.opened(args, out, needs_device=True, long_keys=args.long_request) as platform:
        key = platform.derived_key(request)
        level = platform.vmpl if args.vmpl is None else args.vmpl
        source = platform.name
    out.write_file(args.out, key, secret=True)
    if args.out == "-":
        return 0
    names = [name for name, bit in KEY_FIELDS.items() if fields & bit]
    document = {"key": args.out, "root": args.root, "fields": names, "vmpl": level, "source": source}
    out.result(document, f"wrote {args.out} (32 bytes, readable by its owner only)")
    return 0


def _fields(args: Namespace) -> int:
    """The bits of --fields, with those whose value is given. Raises UsageError."""
    from argparse import ArgumentTypeError

    from sev.cli.values import integer
    from sev.errors import UsageError
    from sev.guest.model import KEY_FIELDS

    bits = 0
    if args.fields[:1].isdigit():
        try:
            bits = integer()(args.fields)
        except ArgumentTypeError as error:
            raise UsageError(f"--fields: {error}", field="--fields") from None
    else:
        for word in args.fields.split(","):
            name = word.strip().replace("-", "_")
            if name not in KEY_FIELDS:
                raise UsageError(
                    f"--fields: {word!r} is not known",
                    remedy=f"It is a number, or of {', '.join(KEY_FIELDS)}.",
                    field="--fields",
                )
            bits |= KEY_FIELDS[name]
    for name in ("guest_svn", "tcb_version", "launch_mit_vector"):
        if getattr(args, name) is not None:
            bits |= KEY_FIELDS[name]
    return bits


def _check(args: Namespace, out: Output) -> int:
    from sev.cli.attest_check import look, text

    checked = look(args)
    out.result(checked.document(), text(checked, everything=out.verbose))
    return 0 if checked.able else 4
