"""`sev certs verify`, `generate` and `sign`: trees of certificates, and an owner's own."""

from __future__ import annotations

from sev.cli.parser import examples
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.certs import Roots
    from sev.certs.sev_roots import SevRoots
    from sev.cli.output import Output

_LIMIT = 1 << 20
_KEY_LIMIT = 1 << 16
_MARKS = {"passed": "ok", "failed": "NO", "skipped": "--"}


def build_verify(parser: ArgumentParser) -> None:
    """The options of `sev certs verify`."""
    parser.description = (
        "Takes certificates of either system in any form: SEV certificates and chains (PDH, PEK, OCA, CEK), AMD's ASK\n"
        "and ARK, X.509 in DER or PEM. Shows who signed whom with a reason at every edge; 0 if every leaf reaches a\n"
        "trusted root, 3 if not."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="certificates; - for stdin")
    parser.add_argument(
        "--roots", metavar="FILE", help="trust these roots instead of AMD's: PEM, or AMD's file of ASK and ARK"
    )
    parser.add_argument("--at", metavar="TIME", help="verify for this time (RFC 3339); now if not given")
    parser.set_defaults(run=_verify)
    examples(
        parser,
        ("sev certs verify chain.bin", "a platform's chain, as sev platform export and sevctl write it"),
        ("sev certs verify vcek.der ask.pem ark.pem", "the chain of an SNP chip"),
        notes='JSON: {"verified", "leaves", "edges": [{"subject", "signer", "result", "reason"}]}.',
    )


def build_generate(parser: ArgumentParser) -> None:
    """The options of `sev certs generate`."""
    parser.description = (
        "Makes an owner's certificate (OCA, self-signed) and its private key, with which a platform becomes the\n"
        "owner's own: as `sevctl generate` does. The key is readable by its owner only."
    )
    parser.add_argument("cert", metavar="CERT", help="where to write the certificate, 2084 bytes")
    parser.add_argument("key", metavar="KEY", help="where to write the private key, DER")
    parser.add_argument(
        "--existing-key", action="store_true", help="KEY is there already (P-384, DER or PEM): write its certificate"
    )
    parser.set_defaults(run=_generate)
    examples(
        parser,
        ("sev certs generate oca.cert oca.key", "before sev platform own"),
        ("sev certs generate oca.cert oca.pem --existing-key", "for a key that openssl or sev-tool's owner made"),
    )


def build_sign(parser: ArgumentParser) -> None:
    """The options of `sev certs sign`."""
    parser.description = (
        "Signs the PEK of a platform (its certificate signing request) with an owner's key, offline. The result and\n"
        "the OCA are what the platform imports."
    )
    parser.add_argument("csr", metavar="CSR", help="what sev platform csr wrote, 2084 bytes")
    parser.add_argument("--oca-cert", metavar="FILE", required=True, help="the owner's certificate")
    parser.add_argument("--oca-key", metavar="FILE", required=True, help="its private key, DER or PEM")
    parser.add_argument("--out", metavar="FILE", required=True, help="where to write the signed PEK")
    parser.set_defaults(run=_sign)
    examples(parser, ("sev certs sign pek.csr --oca-cert oca.cert --oca-key oca.key --out pek.cert", "sign a request"))


def _verify(args: Namespace, out: Output) -> int:
    from sev.certs import tree
    from sev.cli.files import read_file
    from sev.cli.report_inputs import verification_time

    at = verification_time(args)
    roots, sev_roots = _roots(args.roots)
    contents = [read_file(path, "the certificates", _LIMIT) for path in args.files]
    found = tree.verify(contents, at=at, roots=roots, sev_roots=sev_roots)
    width = max((len(edge.subject) for edge in found.edges), default=0)
    lines = [
        f"{_MARKS[edge.result]}  {edge.subject:<{width}}  <-  {edge.signer}: {edge.reason}" for edge in found.edges
    ]
    lines.append("every leaf reaches a trusted root" if found.verified else "NOT verified")
    document = {
        "verified": found.verified,
        "leaves": found.leaves,
        "edges": [edge.document() for edge in found.edges],
    }
    out.result(document, "\n".join(lines))
    return 0 if found.verified else 3


def _roots(path: str | None) -> tuple[Roots | None, SevRoots | None]:
    """Trusted roots of both systems. A file holds those of one: none of the other's are trusted then."""
    if path is None:
        return None, None
    from sev.certs.tree import is_x509
    from sev.cli.files import read_file

    data = read_file(path, "the roots", _LIMIT)
    if is_x509(data):
        from sev.certs import Roots

        return Roots.from_pem(data), None
    from sev.certs.sev_roots import SevRoots

    return None, SevRoots.of(data)


def _generate(args: Namespace, out: Output) -> int:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from sev.abi import sev_certificate as abi
    from sev.certs import sev_signatures
    from sev.cli.files import read_secret
    from sev.cores import no_core
    from sev.p384 import load_private_key

    no_core()
    if "-" in (args.cert, args.key):
        raise UsageError("certificate and key are two files", field="CERT")
    if args.existing_key:
        key = load_private_key(read_secret(args.key, "the owner's key", _KEY_LIMIT), "the owner's key")
    else:
        _keep_key(args)
        key = ec.generate_private_key(ec.SECP384R1())
        encoded = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        out.write_file(args.key, encoded, secret=True)
    bare = abi.SevCertificate.of_key(abi.OCA, key.public_key(), (0, 0))
    certificate = sev_signatures.sign(bare, key, abi.OCA)
    out.write_file(args.cert, certificate.encode())
    written = [args.cert] if args.existing_key else [args.cert, args.key]
    document = {"certificate": args.cert, "key": args.key}
    out.result(document, "\n".join(f"wrote {path}" for path in written))
    return 0


def _keep_key(args: Namespace) -> None:
    """A key that is there already may be the only one that a platform's owner has. Raises ConfirmationMissing."""
    import os

    from sev.cli.confirm import confirm

    if os.path.isfile(args.key) and os.path.getsize(args.key):
        confirm(args, f"{args.key} is there: the key in it would be lost (--existing-key keeps it).")


def _sign(args: Namespace, out: Output) -> int:
    from sev.abi import sev_certificate as abi
    from sev.cli.files import read_file, read_secret
    from sev.session.owner import sign_request

    signed = sign_request(
        abi.SevCertificate.read(read_file(args.csr, "the request", _LIMIT), "request"),
        abi.SevCertificate.read(read_file(args.oca_cert, "the owner's certificate", _LIMIT), "owner's certificate"),
        read_secret(args.oca_key, "the owner's key", _KEY_LIMIT),
    )
    out.write_file(args.out, signed.encode())
    if args.out != "-":
        out.result({"certificate": args.out}, f"wrote {args.out}")
    return 0
