"""`sev doctor`: what is wrong here, and a bundle for a report of a bug."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from sev.cli.output import Output
    from sev.doctor.gather import Section

_ABOUT = """\
Looks at this machine and its daemon, says what is wrong, and with --out packs what it
saw into an archive for a report of a bug: versions, checks of the host, kernel and
modules, configuration, what happened lately, the end of the daemon's log, and how many
calls were made and refused. Works without a daemon, and as any user: root sees more.

No keys, certificates, tokens, secrets or contents of guests are in it. Names of users,
groups, guests and machines, and network addresses, are replaced by stand-ins unless you
ask for them with --with-names. It says what it packs; look through it before you send it.
"""


def build(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    parser.description = _ABOUT
    add = parser.add_argument
    add("--out", metavar="FILE", help="write the archive (tar.gz), readable by you alone")
    add("--with-names", action="store_true", help="leave names and addresses as they are")
    examples(
        parser,
        ("sev doctor", "what is wrong here"),
        ("sev doctor --out sev-doctor.tar.gz", "an archive for a report of a bug; as root it sees more"),
        ("sev doctor --json | jq .sections.kernel", "what would be in it"),
        notes='JSON: problems [{"id", "reason", "remedy"}], contents [{"name", "what", "bytes", "not_seen"}], out,\n'
        "and without --out the sections themselves under `sections`.",
    )
    parser.set_defaults(run=_doctor)


def _doctor(args: Namespace, out: Output) -> int:
    from time import time

    from sev.cli.connection import dial
    from sev.doctor.bundle import files, pack
    from sev.doctor.gather import gather
    from sev.doctor.redact import Redactor

    sections = gather(lambda: dial(args, out), Redactor(names=args.with_names))
    contents = files(sections, names=args.with_names)
    missing = {f"{one.name}.json": one.missing for one in sections}
    problems = _problems(sections)
    document: dict[str, object] = {
        "problems": problems,
        "contents": [
            {"name": name, "what": what, "bytes": len(data), "not_seen": missing.get(name) or None}
            for name, what, data in contents
        ],
        "out": args.out,
    }
    lines = [_problem_text(problems), ""]
    if args.out is not None:
        out.write_file(args.out, pack(contents, time()), secret=True)
        lines.append(f"wrote {args.out}; in it:")
    else:
        document["sections"] = {one.name: one.content for one in sections}
        lines.append("with --out these are packed:")
    for name, what, data in contents:
        why = missing.get(name)
        lines.append(f"  {name:<22}{what}" + (f": not seen: {why}" if why else f" ({len(data)} bytes)"))
    out.result(document, "\n".join(lines))
    return 0


def _problems(sections: Sequence[Section]) -> list[dict[str, object]]:
    """Checks that failed, and a daemon that cannot be asked."""
    found: list[dict[str, object]] = []
    for one in sections:
        if one.name == "host" and one.missing:
            remedy = "Start it (systemctl start sevd), or name its socket with --socket."
            found.append({"id": "daemon", "reason": one.missing, "remedy": remedy})
        checks = one.content.get("checks") if isinstance(one.content, dict) else None
        if one.name in ("host-check", "daemon-check") and isinstance(checks, list):
            for check in checks:
                if check["result"] == "failed" and check["id"] not in [problem["id"] for problem in found]:
                    found.append({key: check[key] for key in ("id", "reason", "remedy")})
    return found


def _problem_text(problems: Sequence[dict[str, object]]) -> str:
    from textwrap import wrap

    if not problems:
        return "nothing is wrong that could be seen from here"
    lines = []
    for problem in problems:
        lines.append(f"{problem['id']}: {problem['reason']}")
        lines += [f"    {line}" for line in wrap(str(problem["remedy"] or ""), 90)]
    return "\n".join(lines)
