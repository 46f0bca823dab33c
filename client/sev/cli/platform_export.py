"""`sev platform export`: a platform's chain with its signed CEK, verified before it is written."""

from __future__ import annotations

from sev.cli.parser import examples
from sev.errors import CollateralError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.certs.sev_chain import VerifiedChain
    from sev.certs.sev_roots import SevRoots
    from sev.cli.output import Output
    from sev.sev_model import PlatformChain

_LIMIT = 1 << 20

_EXPORT = """\
Writes the platform's certificates in a row, as sevctl does: PDH, PEK, OCA and CEK (8336
bytes), with --full also ASK and ARK. A guest owner verifies them (sev certs verify), and
makes a session for the PDH (sev session create).

The firmware gives the CEK without AMD's signature. The signed one is fetched from AMD's
key distribution service by the chip's identifier (--kds: from another one), or read from
a file (--cek); a simulated host has its own. It must be of the key that the firmware
exports. The whole chain is verified up to a trusted root before anything is written.

While the platform is not initialised, as after a reset, exporting initialises it for a
moment, and may shut SEV-SNP down: that needs an administrator and a confirmation.
"""


def build_export(parser: ArgumentParser) -> None:
    """The options of `sev platform export`."""
    from sev.cli.kds_options import add_options

    parser.description = _EXPORT
    parser.add_argument("--out", required=True, metavar="FILE", help="where to write it; - for stdout")
    parser.add_argument("--full", action="store_true", help="with ASK and ARK behind it")
    parser.add_argument("--ca-out", metavar="FILE", help="write ASK and ARK here too, as the file that AMD publishes")
    parser.add_argument("--cek", metavar="FILE", help="the signed CEK, fetched earlier (sev certs fetch cek)")
    parser.add_argument("--unsigned", action="store_true", help="as the firmware gives it: the CEK is not signed")
    parser.add_argument("--roots", metavar="FILE", help="trust this ARK instead of AMD's: a file of ASK and ARK")
    add_options(parser)
    examples(
        parser,
        ("sev platform export --out chain.bin", "for guest owners"),
        ("sev platform export --out chain.bin --cek cek.cert", "on a host that cannot reach AMD's service"),
        ("sev platform export --out chain.bin --ca-out ca.cert", "with the file that sevctl verify --ca takes"),
        notes='JSON: {"file", "ca_file", "bytes", "certificates": names in order, "cek": "kds", "host", "file" or\n'
        '"firmware", "verified", "product", "steps": [{"id", "result", "reason"}]}.',
    )
    parser.set_defaults(run=_export)


def _export(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected
    from sev.cli.platform import confirmed_if_asked

    if args.unsigned and (args.full or any(one is not None for one in (args.cek, args.kds, args.ca_out, args.roots))):
        raise UsageError("--unsigned is the export without any signed CEK; leave the options about it out")
    if args.cek is not None and args.kds is not None:
        raise UsageError("--cek and --kds: the signed CEK comes from one place")
    with connected(args, out) as host:
        platform = confirmed_if_asked(args, lambda confirm: host.export_platform(confirm=confirm))
    names = ["PDH", "PEK", "OCA", "CEK"]
    if args.unsigned:
        _end(args, out, platform.exported, names, "firmware", None, "")
        return 0
    origin, verified, roots = _signed(args, out, platform)
    own = platform.simulated and args.roots is None
    whom = "the simulator's own root, which nobody else trusts" if own else verified.steps[-1].reason
    data = verified.chain.encode()
    authorities = b"".join(_authorities(verified, roots)) if args.full or args.ca_out is not None else b""
    if args.full:
        data += authorities
        names += ["ASK", "ARK"]
    if args.ca_out is not None:
        out.write_file(args.ca_out, authorities)
    _end(args, out, data, names, origin, verified, whom)
    return 0


def _signed(args: Namespace, out: Output, platform: PlatformChain) -> tuple[str, VerifiedChain, SevRoots]:
    """Where the CEK came from, the verified chain, and the roots that it ends in."""
    from sev.certs import sev_chain
    from sev.certs.sev_roots import SevRoots
    from sev.cli.files import read_file

    if args.roots is not None:
        roots = SevRoots.of(read_file(args.roots, "the roots", _LIMIT))
    elif platform.simulated and platform.authorities:
        roots = SevRoots.of(platform.authorities)
    else:
        roots = SevRoots.amd()
    if args.cek is not None:
        origin, cek = "file", read_file(args.cek, "the CEK", _LIMIT)
    elif platform.signed_cek and args.kds is None:
        origin, cek = "host", platform.signed_cek
    else:
        origin, cek = "kds", _fetched(args, out, platform, roots)
    return origin, sev_chain.verify(platform.chain(cek), roots=roots), roots


def _fetched(args: Namespace, out: Output, platform: PlatformChain, roots: SevRoots) -> bytes:
    from sev.cli.kds_options import service
    from sev.kds import certificates

    if not platform.chip_ids:
        raise CollateralError(
            "the firmware tells no identifier of the chip (GET_ID needs API 0.16), so its CEK cannot be asked for",
            remedy="Give the signed CEK with --cek, or update the firmware.",
        )
    return certificates.cek(service(args, out), platform.chip_ids[0], exported=platform.cek, roots=roots).encode()


def _authorities(verified: VerifiedChain, roots: SevRoots) -> tuple[bytes, bytes]:
    """ASK and ARK above the CEK: AMD's own files, or those of the given roots."""
    from sev.certs import sev_chain
    from sev.certs.sev_roots import SevRoots

    if verified.product:
        ask, ark = SevRoots.amd_files(verified.product)
        return ask.encode(), ark.encode()
    found = sev_chain.issuer_of(verified.chain.cek, (), roots)
    if found is None:  # it was verified with these roots
        raise CollateralError("the roots have no ASK above this CEK")
    return found.encode(), sev_chain.root_of(found, (), roots).encode()


def _end(
    args: Namespace,
    out: Output,
    data: bytes,
    names: list[str],
    origin: str,
    verified: VerifiedChain | None,
    whom: str,
) -> None:
    out.write_file(args.out, data)
    if args.out == "-":
        return
    document = {
        "file": args.out,
        "ca_file": args.ca_out,
        "bytes": len(data),
        "certificates": names,
        "cek": origin,
        "verified": verified is not None,
        "product": (verified.product or None) if verified is not None else None,
        "steps": [step.document() for step in verified.steps] if verified is not None else [],
    }
    state = f"verified up to {whom}" if verified is not None else "not verified: the CEK is unsigned"
    out.result(document, f"wrote {args.out}: {', '.join(names)}; {state}" + _wrote(args.ca_out))


def _wrote(path: str | None) -> str:
    return f"\nwrote {path}: ASK, ARK" if path is not None else ""
