"""`sev guest debug read|write`: memory of an SEV or SEV-ES guest whose policy lets it be debugged."""

from __future__ import annotations

from sev.cli.parser import examples, lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output

SHOWN_BYTES = 64 << 10
"""Most bytes that are shown instead of written to a file."""

_LIMIT = 1 << 30
_ADDRESS_MAX = (1 << 52) - 1

_ABOUT = """\
Reads and writes the memory of an SEV or SEV-ES guest of yours, in plain, by way of the
firmware (DBG_DECRYPT, DBG_ENCRYPT). Its policy must allow it: with nodbg, which is what
guests are launched with unless --policy says otherwise, the firmware refuses
(POLICY_FAILURE, exit code 6), and nothing can change that for a guest that there is.
Every access is in the audit trail.
"""

_READ = """\
Reads memory of a guest in plain: into a file that only you can read, or, without --out
and at most 64 KiB, shown.
"""

_WRITE = """\
Replaces memory of a guest by what a file holds. The guest is not told: pause it first if
it runs.
"""


def build_debug(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    parser.description = _ABOUT
    verbs = parser.add_subparsers()
    lazy(verbs.add_parser("read", help="read a guest's memory in plain"), _build_read)
    lazy(verbs.add_parser("write", help="replace a guest's memory"), _build_write)


def _build_read(parser: ArgumentParser) -> None:
    from sev.cli.values import integer, size

    parser.description = _READ
    parser.add_argument("guest_id", metavar="ID", help="the guest")
    parser.add_argument(
        "--gpa", type=integer(0, _ADDRESS_MAX), required=True, metavar="N", help="guest physical address"
    )
    parser.add_argument(
        "--size", type=size(1, _LIMIT), required=True, metavar="SIZE", help="bytes, such as 4096 or 64KiB"
    )
    parser.add_argument("--out", metavar="FILE", help="write them there; - for stdout")
    examples(
        parser,
        ("sev guest debug read sev-0f3a5c7e9b1d --gpa 0x100000 --size 64KiB --out memory", "into a file"),
        ("sev guest debug read sev-0f3a5c7e9b1d --gpa 0 --size 256", "as a dump"),
        notes='JSON: {"guest_id", "gpa", "bytes", "file"}, without --out {"guest_id", "gpa", "bytes", "data"}.',
    )
    parser.set_defaults(run=_read)


def _build_write(parser: ArgumentParser) -> None:
    from sev.cli.values import integer

    parser.description = _WRITE
    parser.add_argument("guest_id", metavar="ID", help="the guest")
    parser.add_argument(
        "--gpa", type=integer(0, _ADDRESS_MAX), required=True, metavar="N", help="guest physical address"
    )
    parser.add_argument("--in", dest="source", required=True, metavar="FILE", help="the new bytes; - for stdin")
    examples(
        parser,
        ("sev guest debug write sev-0f3a5c7e9b1d --gpa 0x100000 --in patch", "what the file holds, as long as it is"),
        notes='JSON: {"guest_id", "gpa", "bytes"}.',
    )
    parser.set_defaults(run=_write)


def _read(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected, mark_simulated
    from sev.errors import UsageError

    if args.out is None and args.size > SHOWN_BYTES:
        raise UsageError(
            f"--size: {args.size} bytes, expected at most {SHOWN_BYTES} without --out",
            field="--size",
            remedy="Give a file with --out.",
        )
    with connected(args, out, mark=False) as host:
        guest = host.guest(args.guest_id)
        data = host.read_guest_memory(args.guest_id, args.gpa, args.size)
    mark_simulated(out, guest.simulated)
    document: dict[str, object] = {"guest_id": guest.guest_id, "gpa": f"{args.gpa:#x}", "bytes": len(data)}
    if args.out is None:
        out.result({**document, "data": data.hex()}, dump(args.gpa, data))
        return 0
    out.write_file(args.out, data, secret=True)
    if args.out != "-":
        out.result({**document, "file": args.out}, f"wrote {args.out} ({len(data)} bytes from {args.gpa:#x})")
    return 0


def _write(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected, mark_simulated
    from sev.cli.files import read_file

    data = read_file(args.source, "the new bytes", _LIMIT)
    with connected(args, out, mark=False) as host:
        guest = host.guest(args.guest_id)
        host.write_guest_memory(args.guest_id, args.gpa, data)
    mark_simulated(out, guest.simulated)
    document = {"guest_id": guest.guest_id, "gpa": f"{args.gpa:#x}", "bytes": len(data)}
    out.result(document, f"{guest.guest_id}: {len(data)} bytes at {args.gpa:#x} replaced")
    return 0


def dump(address: int, data: bytes) -> str:
    """Lines of 16 bytes: address, hexadecimal digits, and the characters that can be printed."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{address + at:012x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  |{shown}|")
    return "\n".join(lines)
