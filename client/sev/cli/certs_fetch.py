"""`sev certs fetch` and `sev certs url`: certificates from AMD's key distribution service, each verified; or where
they are."""

from __future__ import annotations

from sev.cli.parser import examples
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.abi.tcb import TcbVersion
    from sev.cli.output import Output
    from sev.kds.service import Service
    from sev.products import Product

WHAT = ("vcek", "vlek", "ca", "crl", "cek", "hashsticks")
_LIMIT = 1 << 20

_FETCH = """\
Fetches from AMD's key distribution service, checks, and writes into a directory:

  vcek  the certificate of a chip's key at a TCB, which signs reports     vcek.pem
  vlek  a cloud provider's key in its place; with its --kds-client        vlek.pem
  ca    the authorities above them: ASK (--key vlek: ASVK) and ARK        ask.pem, ark.pem
  crl   the root's revocation list                                        crl.pem
  cek   the certificate of a chip's key for SEV and SEV-ES                cek.cert
  hashsticks
        a cloud provider's key, wrapped for this chip and TCB; with its
        --kds-client; for sev snp vlek load                               hashstick.bin

Which chip and TCB is told by a report (--report), or by --product, --chip-id and --tcb;
where neither is given it is the daemon's host. What comes back is written only if a
trusted root signed it and it is what was asked for.

The service takes about one request in ten seconds from one client; when it says so, it is
asked again, for up to --kds-patience.
"""

_URL = """\
Prints where AMD's key distribution service has a certificate or list. Nothing is fetched,
so another machine, or a browser, can. What is asked for is told as for sev certs fetch.
"""


def build_fetch(parser: ArgumentParser) -> None:
    """The options of `sev certs fetch`."""
    from sev.cli.kds_options import add_options

    parser.description = _FETCH
    _subject(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="directory; made if it is not there")
    parser.add_argument("--der", action="store_true", help="write DER files beside the PEM files")
    parser.add_argument(
        "--roots", metavar="FILE", help="trust these roots instead of AMD's: PEM; for cek a file of ASK and ARK"
    )
    add_options(parser)
    examples(
        parser,
        ("sev certs fetch vcek --report report.bin --out certs", "what verifies this report"),
        ("sev certs fetch crl --product genoa --out certs", "the revocation list of a line"),
        ("sev certs fetch cek --out certs", "of the daemon's host, for sev platform export --cek"),
        notes='JSON: {"directory", "files": paths by kind, "url"}.',
    )
    parser.set_defaults(run=_fetch)


def build_url(parser: ArgumentParser) -> None:
    """The options of `sev certs url`."""
    from sev.cli.kds_options import add_options

    parser.description = _URL
    _subject(parser)
    add_options(parser, asks=False)
    examples(
        parser,
        ("sev certs url vcek --report report.bin", "where the certificate for this report is"),
        ("sev certs url ca --product turin", "where ASK and ARK of Turin are"),
        notes='JSON: {"url"}.',
    )
    parser.set_defaults(run=_url)


def _subject(parser: ArgumentParser) -> None:
    parser.add_argument("what", metavar="WHAT", choices=WHAT, help=f"one of {', '.join(WHAT)}")
    parser.add_argument("--report", metavar="FILE", help="the report that says which chip and TCB")
    parser.add_argument("--product", metavar="P", help="processor line, such as genoa")
    parser.add_argument(
        "--chip-id", metavar="HEX", help="the chip's identifier, 64 bytes; for a Turin VCEK 8 are enough"
    )
    parser.add_argument("--tcb", metavar="TCB", help="bootloader=…,tee=…,snp=…,microcode=…; or 16 hex digits")
    parser.add_argument("--key", choices=("vcek", "vlek"), default="vcek", help="for ca and crl: above which key")


class _Asked:
    """What is asked for.

    Attributes:
        what: One of WHAT.
        key: "vcek" or "vlek".
        product: Processor line; not for a CEK.
        chip_id: Identifier; for VCEK, CEK and hash sticks.
        tcb: TCB; for VCEK, VLEK and hash sticks.
    """

    def __init__(
        self, what: str, key: str, product: Product | None, chip_id: bytes | None, tcb: TcbVersion | None
    ) -> None:
        self.what = what
        self.key = what if what in ("vcek", "vlek") else key
        of_chip, of_tcb = ("vcek", "cek", "hashsticks"), ("vcek", "vlek", "hashsticks")
        if product is None and what != "cek":
            raise _missing("product", what)
        if chip_id is None and what in of_chip:
            raise _missing("chip-id", what)
        if tcb is None and what in of_tcb:
            raise _missing("tcb", what)
        self._product = product
        self._chip_id = chip_id
        self._tcb = tcb

    @property
    def product(self) -> Product:
        """The processor line."""
        assert self._product is not None
        return self._product

    @property
    def chip_id(self) -> bytes:
        """The chip's identifier."""
        assert self._chip_id is not None
        return self._chip_id

    @property
    def tcb(self) -> TcbVersion:
        """The TCB."""
        assert self._tcb is not None
        return self._tcb

    def url(self, service: str) -> str:
        """Where it is."""
        from sev.kds import urls

        if self.what == "cek":
            return urls.cek(self.chip_id, service=service)
        if self.what == "vcek":
            return urls.vcek(self.product, self.chip_id, self.tcb, service=service)
        if self.what == "vlek":
            return urls.vlek(self.product, self.tcb, service=service)
        if self.what == "hashsticks":
            return urls.hash_sticks(self.product, self.tcb, service=service)
        find = urls.ca if self.what == "ca" else urls.crl
        return find(self.product, self.key, service=service)


def _missing(option: str, what: str) -> UsageError:
    return UsageError(
        f"--{option} is missing: {what} cannot be found without it",
        field=f"--{option}",
        remedy="Give it, or a report with --report.",
    )


def _asked(args: Namespace, out: Output) -> _Asked:
    from sev.abi.tcb import TcbVersion
    from sev.cli.values import decoded
    from sev.products import by_name

    product = by_name(args.product) if args.product is not None else None
    chip_id = None
    if args.chip_id is not None:
        text = args.chip_id.strip()
        chip_id = next((found for size in (64, 8) if (found := decoded(text, size)) is not None), None)
        if chip_id is None:
            raise UsageError("--chip-id: expected 64 bytes in hexadecimal, or 8", field="--chip-id")
    tcb = None
    if args.tcb is not None:
        if product is None:
            raise UsageError("--tcb means nothing without --product", field="--product")
        tcb = TcbVersion.parse(args.tcb, product)
    if args.report is not None:
        return _of_report(args, product)
    if product is None and chip_id is None and tcb is None:
        return _of_host(args, out)
    return _Asked(args.what, args.key, product, chip_id, tcb)


def _of_report(args: Namespace, product: Product | None) -> _Asked:
    from sev.attestation import recognise
    from sev.cli.files import read_file

    if args.chip_id is not None or args.tcb is not None:
        raise UsageError("--report says which chip and TCB: leave --chip-id and --tcb out", field="--report")
    report = recognise(read_file(args.report, "the report", _LIMIT), product).report
    line = report.product or product
    if line is None:
        raise UsageError(
            "the report does not tell its processor line (versions below 3 do not)",
            field="--product",
            remedy="Name it with --product.",
        )
    return _Asked(args.what, args.key, line, report.chip_id, report.reported_tcb)


def _of_host(args: Namespace, out: Output) -> _Asked:
    from sev.cli.connection import connected
    from sev.products import by_name

    with connected(args, out) as host:
        if args.what == "cek":
            return _Asked("cek", args.key, None, next(iter(host.chip_ids()), None), None)
        info = host.host()
        tcb = host.snp_status().reported_tcb if args.what in ("vcek", "vlek", "hashsticks") else None
    product = by_name(info.product) if info.product else None
    return _Asked(args.what, args.key, product, info.chip_id or None, tcb)


def _url(args: Namespace, out: Output) -> int:
    from sev.kds import urls

    url = _asked(args, out).url(args.kds if args.kds is not None else urls.AMD)
    out.result({"url": url}, url)
    return 0


def _fetch(args: Namespace, out: Output) -> int:
    from sev.cli.certificates import write_directory
    from sev.cli.kds_options import service

    kds = service(args, out)
    asked = _asked(args, out)
    if asked.what == "cek":
        written = _fetch_cek(args, out, kds, asked)
    elif asked.what == "hashsticks":
        written = _fetch_stick(args, out, kds, asked)
    else:
        written = write_directory(out, args.out, _fetched(args, kds, asked), der=args.der)
    document = {"directory": args.out, "files": written, "url": asked.url(kds.url)}
    out.result(document, "\n".join(f"wrote {path}" for path in written.values()))
    return 0


def _fetched(args: Namespace, kds: Service, asked: _Asked) -> list[tuple[str, bytes]]:
    """Kind and DER of what the service gives."""
    from sev.cli.report_inputs import roots as given_roots
    from sev.kds import certificates

    product = asked.product
    roots = given_roots(args)
    if asked.what == "ca":
        return [(one.kind, one.der) for one in certificates.ca(kds, product, asked.key, roots=roots)]
    if asked.what == "crl":
        return [("crl", certificates.crl(kds, product, asked.key, roots=roots).der)]
    # AMD's authorities are built in; others' come from the same service, up to the roots that were given.
    given = certificates.ca(kds, product, asked.key, roots=roots)[:1] if roots is not None else ()
    if asked.what == "vcek":
        leaf = certificates.vcek(kds, product, asked.chip_id, asked.tcb, roots=roots, given=given)
    else:
        leaf = certificates.vlek(kds, product, asked.tcb, roots=roots, given=given)
    return [(asked.what, leaf.der)]


def _fetch_cek(args: Namespace, out: Output, kds: Service, asked: _Asked) -> dict[str, str]:
    import os

    from sev.cli.certificates import make_directory
    from sev.cli.report_inputs import sev_roots
    from sev.kds import certificates

    found = certificates.cek(kds, asked.chip_id, roots=sev_roots(args))
    make_directory(args.out)
    path = os.path.join(args.out, "cek.cert")
    out.write_file(path, found.encode())
    return {"cek": path}


def _fetch_stick(args: Namespace, out: Output, kds: Service, asked: _Asked) -> dict[str, str]:
    import os

    from sev.cli.certificates import make_directory
    from sev.kds import certificates
    from sev.kds.errors import NotAtKds

    chip_id = asked.chip_id
    stick = certificates.hash_sticks(kds, asked.product, asked.tcb, [chip_id])[chip_id]
    if stick is None:
        raise NotAtKds(f"{kds.url} has no hash stick for the chip {chip_id[:8].hex()}…", field="kds")
    make_directory(args.out)
    path = os.path.join(args.out, "hashstick.bin")
    out.write_file(path, stick, secret=True)
    return {"hashstick": path}
