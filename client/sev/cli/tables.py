"""Text for people: names beside values, rows under a heading, and what others wrote on one line."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sev.abi.tcb import TcbVersion


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names in one column, values in the next; what is None or empty is left out."""
    shown = [(name, str(value)) for name, value in pairs if value is not None and value != ""]
    width = max((len(name) for name, _ in shown), default=0) + 2
    lines = []
    for name, value in shown:
        first, *more = value.split("\n")
        lines.append(f"{name:<{width}}{first}")
        lines += [" " * width + line for line in more]
    return "\n".join(lines)


def rows(heading: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns as wide as their content; those whose number is in `right` are aligned there."""
    table = [list(heading), *[list(line) for line in lines]]
    widths = [max(len(line[column]) for line in table) for column in range(len(heading))]
    out = []
    for line in table:
        cells = [
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)


def tcbs(columns: Sequence[tuple[str, TcbVersion | None]]) -> str:
    """TCB versions side by side, one component a line; a version that is not known is a column of dashes."""
    names = next((list(version.components()) for _, version in columns if version is not None), [])
    lines = []
    for name in names:
        lines.append([name, *[_component(version, name) for _, version in columns]])
    lines.append(["raw", *["-" if version is None else f"{version.raw:016x}" for _, version in columns]])
    return rows(["TCB", *[title for title, _ in columns]], lines, right=range(1, len(columns) + 1))


def _component(version: TcbVersion | None, name: str) -> str:
    value = None if version is None else version.get(name)
    return "-" if value is None else str(value)


def size(count: int) -> str:
    """Bytes as people say them, where they come out even: 64 MiB, 1.5 GiB, 540672 bytes."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit and count * 2 % unit == 0:
            return f"{count / unit:g} {name}"
    return f"{count} bytes"


def one_line(text: str) -> str:
    """Text of others on one line of a terminal, and without anything that would move its cursor."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
