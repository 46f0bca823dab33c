"""`sev guest`: hosted guests."""

from __future__ import annotations

from sev.cli.parser import examples, lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.guest_model import Guest

_LIST = """\
Lists the guests that you may see, in the order of their creation: your own, and as an
admin everybody's.
"""

_SHOW = """\
Shows one guest: state, owner, size, policy, and once it is launched its digest.
A guest that is not yours looks like one that does not exist (exit code 10).
"""

_WATCH = """\
Shows every guest that you may see (or only ID), then each change as it happens, until
interrupted. With ID it ends by itself when that guest is deleted. With --json one
document a line. A daemon that ends is waited for; then every guest is shown again.
"""

_DELETE = """\
Ends a guest in any state and frees its ASID. Its memory cannot be brought back, so it
asks for confirmation; --yes answers it.
"""

_REPORT = """\
Writes an attestation report of a guest.

Of an SNP guest: has the simulator play the guest and ask the firmware, as the guest's
own kernel would, and writes the 1184 bytes. Simulated hosts only, and only your own
guests. On a real host the request travels encrypted with a key that only the guest has:
run `sev attest report` inside the guest.

Of an SEV or SEV-ES guest: asks the platform, on any host, and writes the 208 bytes,
which repeat a nonce (--mnonce).
"""

_GUEST_JSON = "guest_id, type, state, owner, vcpu_count, memory_bytes, policy, launch_digest, asid,\n\
create_time, failure, simulated, label, updated_pages, protected, measurement; what does not apply is null"


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    verbs = parser.add_subparsers()
    lazy(verbs.add_parser("launch", help="launch a guest and predict its digest"), _build_launch)
    listed = verbs.add_parser("list", help="guests that you may see", description=_LIST)
    examples(
        listed,
        ("sev guest list", "your guests"),
        ("sev guest list --json | jq -r '.guests[].guest_id'", "their ids"),
        notes=f'JSON: {{"guests": [...]}}, each with {_GUEST_JSON}.',
    )
    listed.set_defaults(run=_list)
    show = verbs.add_parser("show", help="one guest", description=_SHOW)
    show.add_argument("guest_id", metavar="ID", help="the guest")
    examples(show, ("sev guest show snp-0f3a5c7e9b1d", "state and launch digest"), notes=f"JSON: {_GUEST_JSON}.")
    show.set_defaults(run=_show)
    watch = verbs.add_parser("watch", help="guests and their changes", description=_WATCH)
    watch.add_argument("guest_id", metavar="ID", nargs="?", default="", help="only this guest")
    examples(watch, ("sev guest watch --json", "a line of JSON for every change"), notes=f"JSON Lines: {_GUEST_JSON}.")
    watch.set_defaults(run=_watch)
    lazy(verbs.add_parser("measure", help="an SEV guest's measurement, for its owner"), _build_measure)
    lazy(verbs.add_parser("inject", help="hand an SEV guest a secret of its owner"), _build_inject)
    lazy(verbs.add_parser("finish", help="let a measured SEV guest go on"), _build_finish)
    lazy(verbs.add_parser("debug", help="read and write an SEV guest's memory"), _build_debug)
    lazy(verbs.add_parser("migrate", help="move an SEV guest to another host"), _build_migrate)
    lazy(verbs.add_parser("run", help="run a launched guest, show what it prints"), _build_run)
    lazy(verbs.add_parser("pause", help="halt a guest that runs"), _build_pause)
    delete = verbs.add_parser("delete", help="end a guest", description=_DELETE)
    delete.add_argument("guest_id", metavar="ID", help="the guest")
    examples(
        delete, ("sev guest delete snp-0f3a5c7e9b1d --yes", "without being asked"), notes='JSON: {"deleted": guest_id}.'
    )
    delete.set_defaults(run=_delete)
    lazy(verbs.add_parser("report", help="an attestation report of a guest"), _build_report)


def _build_launch(parser: ArgumentParser) -> None:
    from sev.cli.guest_launch import build as build_launch

    build_launch(parser)


def _build_measure(parser: ArgumentParser) -> None:
    from sev.cli.guest_sev import build_measure

    build_measure(parser)


def _build_inject(parser: ArgumentParser) -> None:
    from sev.cli.guest_sev import build_inject

    build_inject(parser)


def _build_finish(parser: ArgumentParser) -> None:
    from sev.cli.guest_sev import build_finish

    build_finish(parser)


def _build_debug(parser: ArgumentParser) -> None:
    from sev.cli.guest_debug import build_debug

    build_debug(parser)


def _build_migrate(parser: ArgumentParser) -> None:
    from sev.cli.guest_migrate import build_migrate

    build_migrate(parser)


def _build_run(parser: ArgumentParser) -> None:
    from sev.cli.guest_run import build_run

    build_run(parser)


def _build_pause(parser: ArgumentParser) -> None:
    from sev.cli.guest_run import build_pause

    build_pause(parser)


def _build_report(parser: ArgumentParser) -> None:
    from sev.cli.values import hex_bytes, integer

    parser.description = _REPORT
    parser.add_argument("guest_id", metavar="ID", help="the guest")
    parser.add_argument(
        "--report-data",
        type=hex_bytes(maximum=64),
        metavar="HEX",
        help="what an SNP report repeats, at most 64 bytes; shorter ones are padded with zeros",
    )
    parser.add_argument("--vmpl", type=integer(0, 3), metavar="N", help="VMPL shown, 0 to 3 (default 0)")
    parser.add_argument(
        "--mnonce", type=hex_bytes(16), metavar="HEX", help="what an SEV report repeats, 16 bytes (default random)"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="where the report goes; - for stdout")
    parser.add_argument("--certs-out", metavar="DIR", help="also write the certificates that the host hands to guests")
    examples(
        parser,
        ("sev guest report snp-0f3a5c7e9b1d --report-data c0ffee --out report.bin", "a report that repeats a nonce"),
        ("sev report show report.bin", "read it"),
        (
            "sev guest report sev-0f3a5c7e9b1d --mnonce 00112233445566778899aabbccddeeff --out report.bin",
            "of an SEV guest",
        ),
        notes='JSON: {"guest_id", "report", "report_data", "vmpl", "certificates"}: files by what they hold; of SEV\n'
        'and SEV-ES guests {"guest_id", "report", "mnonce"}.',
    )
    parser.set_defaults(run=_report)


def _list(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected
    from sev.cli.tables import rows, size

    with connected(args, out) as host:
        guests = host.guests()
    heading = ("ID", "TYPE", "STATE", "OWNER", "VCPUS", "MEMORY", "LAUNCH DIGEST")
    lines = [
        (
            guest.guest_id,
            guest.type,
            guest.state,
            guest.owner,
            str(guest.vcpu_count),
            size(guest.memory_bytes),
            "UNPROTECTED"
            if guest.type == "plain"
            else guest.launch_digest.hex()[:16] + "…"
            if guest.launch_digest
            else "-",
        )
        for guest in guests
    ]
    text = rows(heading, lines, right=(4, 5)) if lines else "no guests"
    out.result({"guests": [guest.document() for guest in guests]}, text)
    return 0


def _show(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected, mark_simulated, mark_unprotected

    with connected(args, out, mark=False) as host:
        guest = host.guest(args.guest_id)
    mark_simulated(out, guest.simulated)
    mark_unprotected(out, guest.type)
    out.result(guest.document(), text(guest))
    return 0


def _watch(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected
    from sev.cli.tables import size
    from sev.cli.watching import again

    with connected(args, out) as host:
        for guest in again(host, out, lambda: host.watch_guests(args.guest_id)):
            more = f"  {guest.failure}" if guest.failure else ""
            facts = f"{guest.vcpu_count} vCPUs, {size(guest.memory_bytes)}, {guest.updated_pages} pages measured"
            if guest.type == "plain":
                facts = f"{facts}, UNPROTECTED"
            out.line(guest.document(), f"{guest.guest_id}  {guest.state:<9}  {guest.owner}  {facts}{more}")
            if args.guest_id and guest.state == "deleted":
                break
    return 0


def _delete(args: Namespace, out: Output) -> int:
    from sev.cli.confirm import confirm
    from sev.cli.connection import connected

    confirm(args, f"Ending the guest {args.guest_id} loses its memory for good.")
    with connected(args, out) as host:
        host.delete_guest(args.guest_id, confirm=True)
    out.result({"deleted": args.guest_id}, f"deleted {args.guest_id}")
    return 0


def _report(args: Namespace, out: Output) -> int:
    from sev.cli.certificates import write_table
    from sev.cli.connection import connected, mark_simulated
    from sev.cli.guest_sev import TYPES
    from sev.errors import NotFound, UsageError

    with connected(args, out, mark=False) as host:
        try:
            guest = host.guest(args.guest_id)
        except NotFound:
            guest = None  # a host that plays no guest says so first, whichever guest is meant
        if guest is not None and guest.type in TYPES:
            from sev.cli.guest_sev import report

            mark_simulated(out, guest.simulated)
            return report(args, host, guest, out)
        if args.mnonce is not None:
            raise UsageError("--mnonce: only reports of SEV and SEV-ES guests repeat one", field="--mnonce")
        data, vmpl = bytes(64) if args.report_data is None else args.report_data, args.vmpl or 0
        if len(data) < 64:
            out.note(f"sev: --report-data has {len(data)} bytes; padded with {64 - len(data)} zero bytes on the right")
            data = data.ljust(64, b"\0")
        answer = host.guest_report(args.guest_id, data, vmpl=vmpl)
        mark_simulated(out, True)  # only a simulated host plays the guest
    written = write_table(out, args.certs_out, answer.certificate_table) if args.certs_out is not None else {}
    out.write_file(args.out, answer.report)
    if args.out == "-":
        return 0
    document = {
        "guest_id": args.guest_id,
        "report": args.out,
        "report_data": data.hex(),
        "vmpl": vmpl,
        "certificates": written,
    }
    names = "".join(f"\nwrote {path}" for path in written.values())
    out.result(document, f"wrote {args.out} ({len(answer.report)} bytes){names}")
    return 0


def text(guest: Guest) -> str:
    """A guest for people."""
    from base64 import b64encode

    from sev.cli.tables import facts, size
    from sev.wire import rfc3339

    return facts(
        (
            ("guest", guest.guest_id),
            ("type", f"{guest.type} (UNPROTECTED)" if guest.type == "plain" else guest.type),
            ("state", guest.state),
            ("failure", guest.failure),
            ("owner", guest.owner),
            ("label", guest.label),
            ("vCPUs", guest.vcpu_count),
            ("memory", size(guest.memory_bytes)),
            ("policy", _policy(guest)),
            ("ASID", guest.asid or None),
            ("measured", f"{guest.updated_pages} pages"),
            ("launch digest", guest.launch_digest.hex()),
            ("measurement", b64encode(guest.measurement).decode()),
            ("created", rfc3339(guest.create_time)),
        )
    )


def _policy(guest: Guest) -> object:
    if not guest.policy:
        return None
    if guest.type in ("sev", "sev-es"):
        from sev.abi.sev_policy import SevPolicy

        return SevPolicy(guest.policy)
    from sev.abi.policy import SnpPolicy

    return SnpPolicy(guest.policy)
