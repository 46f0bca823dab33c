"""`sev audit`: who asked the daemon for what, and what came of it."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Iterator

    from sev.audit_trail import AuditFilter, AuditRecord
    from sev.cli.output import Output
    from sev.client import Host

DEFAULT_LAST = 1000

_ABOUT = """\
Shows the audit trail of the daemon, oldest record first: every call that changes
something, and every refusal. From the daemon it is for admins; with --file it is read
from the daemon's files, as root, whether the daemon runs or not.

Times are RFC 3339 (2026-03-01T12:00:00Z), dates, or how long ago: 90s, 15m, 2h, 3d.

--verify follows the chain of hashes through the whole trail and says where a record
was changed or taken out. Somebody who could rewrite the files from some record on to
their end is not found out so: compare `head` with one that you noted elsewhere, or the
records with the journal's (journalctl -t sevd).
"""


def build(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    from sev.audit_trail import DEFAULT_FILE, RESULTS
    from sev.cli.values import integer

    parser.description = _ABOUT
    add = parser.add_argument
    add("--since", metavar="TIME", help="records from this time on")
    add("--until", metavar="TIME", help="records before this time")
    add("--method", default="", metavar="NAME", help="Service/Method, or either half, such as CommitSnp")
    add("--caller", default="", metavar="NAME", help="uid:1000, a uid, a unit, or a name in a certificate")
    add("--result", choices=RESULTS, default="", help="how the call ended")
    add("--request-id", default="", metavar="ID", help="the call's id, or $SEV_REQUEST_ID of the command that made it")
    add("--target", default="", metavar="ID", help="the guest that it was about")
    last = f"only so many from the end (default {DEFAULT_LAST}); 0: all"
    add("--last", type=integer(0, 10_000), default=DEFAULT_LAST, metavar="N", help=last)
    add("-f", "--follow", action="store_true", help="go on with records as they are written, until interrupted")
    file = f"read this file and those put aside beside it (default {DEFAULT_FILE})"
    add("--file", nargs="?", const=DEFAULT_FILE, metavar="FILE", help=file)
    add("--verify", action="store_true", help="look whether the whole trail is as it was written")
    examples(
        parser,
        ("sev audit --since 2h --result refused", "what was refused lately"),
        ("sev audit --method CommitSnp --last 0", "every commit of firmware on record"),
        ("sev audit --follow --json", "a line of JSON for each record as it is written"),
        ("sev audit --file --verify", "whether the files are as they were written, as root"),
        notes="JSON Lines: time, sequence, run, previous, what, caller, socket, method, target, result, reason,\n"
        "message, firmware_status, errno, request_id, validate_only, repeated, duration_ms, began; what does not\n"
        "apply is left out. With --verify one object: intact, records, first, last, unchained, head, problems, notes.\n"
        "Exit code: 0; with --verify 3 if something was changed.",
    )
    parser.set_defaults(run=_audit)


def _audit(args: Namespace, out: Output) -> int:
    from sev.errors import UsageError

    if args.follow and (args.until is not None or args.verify):
        raise UsageError("--follow has no end: leave --until and --verify out", field="--follow")
    wanted = _filter(args)
    if args.verify and not wanted.everything:
        raise UsageError("--verify looks at the whole trail: leave the filters out", field="--verify")
    if args.file is not None:
        return _from_files(args, wanted, out)
    from sev.cli.connection import connected

    with connected(args, out) as host:
        if args.verify:
            return _verify(host.audit(), out)
        if args.follow:
            return _follow(_followed(host, args, wanted, out), out)
        return _show(host.audit(wanted, last=args.last), args.last, out)


def _filter(args: Namespace) -> AuditFilter:
    from datetime import UTC, datetime

    from sev.audit_trail import AuditFilter, moment
    from sev.errors import MalformedInput, UsageError

    now = datetime.now(UTC)
    times: dict[str, datetime] = {}
    for name in ("since", "until"):
        text = getattr(args, name)
        if text is not None:
            try:
                times[name] = moment(text, now)
            except MalformedInput as error:
                raise UsageError(f"--{name}: {error.message}", field=f"--{name}") from None
    words = {name: getattr(args, name) for name in ("method", "caller", "result", "request_id", "target")}
    for name, text in words.items():
        if not text.isprintable() or len(text) > 256:
            raise UsageError(f"--{name.replace('_', '-')}: no such name: {text!r:.60}", field=name)
    return AuditFilter(times.get("since"), times.get("until"), **words)


def _from_files(args: Namespace, wanted: AuditFilter, out: Output) -> int:
    from itertools import islice

    from sev.audit_trail import newest_first, open_files, records

    files = open_files(args.file)
    if args.verify:
        return _verify(records(files), out)
    kept: Iterable[AuditRecord]
    if args.last:
        found = (one for one in newest_first(files) if wanted.admits(one))
        kept = reversed(list(islice(found, args.last)))
        for file in files:  # those before the last records were not read, and whoever follows does so for long
            file.close()
    else:
        kept = (one for one in records(files) if wanted.admits(one))
    if not args.follow:
        return _show(kept, args.last, out)

    def growing() -> Iterator[AuditRecord]:
        from sev.audit_tail import tail

        newest = 0
        for one in kept:
            newest = max(newest, one.sequence)
            yield one
        yield from (one for one in tail(args.file, newest) if wanted.admits(one))

    return _follow(growing(), out)


def _followed(host: Host, args: Namespace, wanted: AuditFilter, out: Output) -> Iterator[AuditRecord]:
    """Records without end; after a restart of the daemon those that were written since the last one."""
    from sev.cli.watching import again

    newest = 0

    def start() -> Iterator[AuditRecord]:
        last = 0 if newest else args.last
        return (one for one in host.audit(wanted, last=last, follow=True) if one.sequence > newest or not one.facts)

    for one in again(host, out, start):
        newest = max(newest, one.sequence)
        yield one


def _show(found: Iterable[AuditRecord], last: int, out: Output) -> int:
    if out.json:
        for one in found:
            out.line(one.document(), "")
        return 0
    from sev.cli.tables import rows

    lines = [_cells(one, out) for one in found]
    out.text(rows(_heading(out), lines) if lines else "no records")
    if last and len(lines) == last:
        out.note(f"sev: these are the last {last}; --last 0 shows all")
    return 0


def _follow(found: Iterator[AuditRecord], out: Output) -> int:
    widths = (24, 10, 34, 20, 9, 36)
    for one in found:
        *cells, end = _cells(one, out)
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        out.line(one.document(), "  ".join([*padded, end]).rstrip())
    return 0


def _verify(trail: Iterable[AuditRecord], out: Output) -> int:
    from sev.audit_trail import verify
    from sev.errors import VerificationError

    found = verify(trail)
    if found.intact:
        text = f"intact: {found.count} records, {found.first} to {found.last}" if found.count else "no records"
    else:
        text = f"CHANGED: {len(found.problems)} places in {found.count} records, {found.first} to {found.last}"
    lines = [text, *(f"  {problem}" for problem in found.problems), *(f"  note: {note}" for note in found.notes)]
    if found.unchained:
        lines.append(f"  note: {found.unchained} records of an earlier version carry no hash")
    if found.head:
        lines.append(f"head {found.head}")
    out.result(found.document(), "\n".join(lines))
    return 0 if found.intact else VerificationError.exit_code


def _heading(out: Output) -> list[str]:
    names = ["TIME", "CALLER", "METHOD", "TARGET", "RESULT", "DETAILS"]
    return [*names[:5], "REQUEST ID", names[5]] if out.verbose else names


def _cells(one: AuditRecord, out: Output) -> list[str]:
    from sev.cli.tables import one_line

    facts = one.facts
    if not facts:
        return ["-"] * (5 + out.verbose) + [f"unfinished: {one_line(one.line)[:60]}"]
    socket = f" on {facts['socket']}" if facts.get("what") == "connection" else ""
    details = [one_line(str(facts[key])) for key in ("reason", "message") if facts.get(key)]
    details += [word for word in ("validate_only", "repeated") if facts.get(word)]
    cells = [one.time, one.caller or "-", f"{one.method}{socket}", str(facts.get("target") or "-"), one.result or "-"]
    if out.verbose:
        cells.append(str(facts.get("request_id") or "-"))
    return [*map(one_line, cells), ": ".join(details)]
