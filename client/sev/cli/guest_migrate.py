"""`sev guest migrate`: moves an SEV guest to another host."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output

_ABOUT = """\
Moves an SEV guest of yours, which is launched and does not run, to another host: memory,
registers, and which pages it shares. The other platform's chain is verified up to AMD's
root first. Whatever fails on the way, the guest stays whole where it is; it is never at
both. Its policy may forbid it (nosend), or ask for more (POLICY_FAILURE, exit code 6).

What passes goes by way of this command, and is encrypted for the other firmware.
"""


def build_migrate(parser: ArgumentParser) -> None:
    """The options."""
    parser.description = _ABOUT
    parser.add_argument("guest_id", metavar="ID", help="the guest")
    parser.add_argument(
        "--to", required=True, metavar="TARGET", help="the other daemon: a socket's path, unix: or dns:"
    )
    parser.add_argument("--roots", metavar="FILE", help="trust this ARK instead of AMD's: a file of ASK and ARK")
    examples(
        parser,
        ("sev guest migrate sev-0f3a5c7e9b1d --to dns:other.example:7443", "to another machine"),
        notes='JSON: {"guest_id", "type", "state", "target"}.',
    )
    parser.set_defaults(run=_migrate)


def _migrate(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected, mark_simulated, name_of_calls
    from sev.cli.report_inputs import sev_roots
    from sev.client import connect
    from sev.migration import migrate
    from sev.wire import text

    roots = sev_roots(args)
    tls = {"tls_cert": args.tls_cert, "tls_key": args.tls_key, "tls_ca": args.tls_ca} if "dns:" in args.to else {}
    with (
        connected(args, out, mark=False) as source,
        connect(text("--to", args.to), timeout=args.timeout, request_id=name_of_calls(), **tls) as target,
    ):
        guest = migrate(
            source,
            target,
            args.guest_id,
            roots=roots,
            progress=lambda step, done, total: out.progress("sending pages", done, total),
        )
    mark_simulated(out, guest.simulated)
    document = {"guest_id": guest.guest_id, "type": guest.type, "state": guest.state, "target": args.to}
    out.result(document, f"{guest.guest_id} is at {args.to}, {guest.state}")
    return 0
