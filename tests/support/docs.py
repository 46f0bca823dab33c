"""Reads the documentation: pages, fenced blocks, commands, tables, links.

A fenced block says in the words after its language how it is checked:

| fence | what the test does |
|---|---|
| `console` | every `$ sev` and `$ sevd` line must parse |
| `console run` | runs it, without a daemon |
| `console host` | runs it against a simulated host (`$SEVD_SOCKET`) |
| `console grpcurl` | the same, where grpcurl is installed |
| `console guest`, `python guest` | runs it inside a simulated guest: its devices stand where a guest has them |
| `python run`, `python host` | runs it as a program, in the same way |
| `toml policy`, `json policy`, `toml config` | loads it as what it is |
| any, with `file=NAME` | writes it to the page's folder first |

The blocks of a page run from top to bottom in one folder, which holds a firmware image `OVMF.fd`, a kernel `bzImage`
and an `initrd.img`. A command must end with exit code 0, or with what a following `$ echo $?` shows. Each line that is
shown below a command must be in its output, in that order; `…` stands for any text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\S*)(.*)$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Command:
    """One command of a console block.

    Attributes:
        line: Line number of its first line in the page.
        text: The command, continued lines joined.
        shown: The lines of output below it.
    """

    line: int
    text: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: The file.
        line: Line number of its fence.
        language: First word of the fence.
        words: The other words.
        text: Its content.
    """

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str:
        """The name of `file=NAME`; empty if there is none."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), "")

    def commands(self) -> list[Command]:
        """The commands of a console block."""
        found: list[tuple[int, list[str], list[str]]] = []
        continued = False
        for number, line in enumerate(self.text.splitlines(), self.line + 1):
            if continued:
                found[-1][1].append(line.strip())
            elif line.startswith("$ "):
                found.append((number, [line[2:]], []))
            else:
                assert found, f"{self.page.name}:{number}: output without a command"
                found[-1][2].append(line.rstrip())
            if continued or line.startswith("$ "):
                continued = line.endswith("\\")
        return [
            Command(at, " ".join(part.rstrip("\\").strip() for part in text), tuple(out)) for at, text, out in found
        ]


@cache
def pages() -> tuple[Path, ...]:
    """Every page of the documentation."""
    return tuple(sorted(DOCS.rglob("*.md")))


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: tuple[int, str, tuple[str, ...]] | None = None
    content: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, content = (number, fence[1], tuple(fence[2].split())), []
        elif opened is not None and line == "```":
            found.append(Block(page, *opened, "\n".join(content) + "\n"))
            opened = None
        elif opened is not None:
            content.append(line)
    assert opened is None, f"{page}: a block is not closed"
    return tuple(found)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def rows(name: str, *heading: str) -> list[tuple[str, ...]]:
    """The rows of every table of a page with this heading, cells without the back-quotes around them."""
    found: list[tuple[str, ...]] = []
    inside = False
    for line in prose(DOCS / name).splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1])
        if cells == heading:
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            found.append(tuple(re.sub(r"^`([^`]*)`$", r"\1", cell).replace("\\|", "|") for cell in cells))
    assert found, f"{name} has no table with the heading {' | '.join(heading)}"
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for line in prose(page).splitlines():
        if line.startswith("#"):
            text = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
            count, anchor = 0, text
            while anchor in found:
                count += 1
                anchor = f"{text}-{count}"
            found.add(anchor)
    return found


def links(page: Path) -> list[str]:
    """The targets of a page's links, those on the web left out."""
    found = _LINK.findall(prose(page))
    return [target for target in found if not target.startswith(("http://", "https://", "mailto:"))]


def unmatched(shown: tuple[str, ...], output: str) -> str | None:
    """The first shown line that is not in the output at its place; None if all are."""
    lines = iter(line.rstrip() for line in output.splitlines())
    for wanted in shown:
        if not wanted or wanted == "…":
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("…")))
        if not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return None
