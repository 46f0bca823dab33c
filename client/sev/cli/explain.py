"""`sev explain`: what a firmware status means."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.status import Status

_ABOUT = """\
Explains a status of the AMD secure processor: its name, what the firmware says with
it, what usually leads to it, and what to do. Without a status, lists all of them.

STATUS is a name in any case and with or without the kernel's prefix (POLICY_FAILURE,
policy-failure, SEV_RET_POLICY_FAILURE) or a number (7, 0x07, -1), as other programs
and the kernel's log print it. Works without a daemon.
"""


def build(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    parser.description = _ABOUT
    parser.add_argument("status", nargs="?", metavar="STATUS", help="name or number of a status; none: list all")
    examples(
        parser,
        ("sev explain 0x7", "what a number from a log means"),
        ("sev explain bad-signature", "the same by name"),
        ("sev explain", "all of them"),
        notes="JSON: code, name, meaning, causes, remedy; without STATUS an object with the list `statuses`.",
    )
    parser.set_defaults(run=_explain)


def _explain(args: Namespace, out: Output) -> int:
    from sev import status

    if args.status is None:
        from sev.cli.tables import rows

        lines = [[f"0x{entry.code:02x}", entry.name, entry.meaning] for entry in status.ALL]
        out.result(
            {"statuses": [document(entry) for entry in status.ALL]},
            rows(("code", "name", "meaning"), lines, right=(0,)),
        )
        return 0
    entry = status.find(args.status)
    out.result(document(entry), text(entry))
    return 0


def document(entry: Status) -> dict[str, object]:
    """The JSON form."""
    return {
        "code": entry.code,
        "name": entry.name,
        "meaning": entry.meaning,
        "causes": list(entry.causes),
        "remedy": entry.remedy,
    }


def text(entry: Status) -> str:
    """The status for people."""
    lines = [f"{entry.name} (0x{entry.code:02x}, {entry.code})", "", f"  {entry.meaning}"]
    if entry.causes:
        lines += ["", "what usually leads to it:", *(f"  - {cause}" for cause in entry.causes)]
    if entry.remedy:
        lines += ["", "what to do:", f"  {entry.remedy}"]
    return "\n".join(lines)
