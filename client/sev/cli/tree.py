"""The tree of commands as the parsers have it: what completion is made of, and what tests walk."""

from __future__ import annotations

from argparse import SUPPRESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Action
    from collections.abc import Iterator

    from sev.cli.parser import Parser

FILE_METAVARS = frozenset({"FILE", "DIR", "PATH"})
"""Names of values that are files or directories."""


class Option:
    """One option, with what can follow it.

    Attributes:
        names: Its spellings.
        value: The name of its value; empty for a flag.
        choices: The values it takes, if they are few.
        help: One line.
    """

    __slots__ = ("choices", "help", "names", "value")

    def __init__(self, names: tuple[str, ...], value: str, choices: tuple[str, ...], text: str) -> None:
        self.names = names
        self.value = value
        self.choices = choices
        self.help = text

    @property
    def is_file(self) -> bool:
        """Whether the value is a file or a directory."""
        return self.value in FILE_METAVARS


class Command:
    """One word of the tree: `sev`, a noun or a verb.

    Attributes:
        words: The words that lead here, without `sev`.
        help: One line.
        parser: Its parser; None for `sev` itself.
        options: Its own options; those of every command are `global_options`.
        arguments: Its positional arguments, named and with choices as options are.
        verbs: Word and help of what comes next; empty for a leaf.
    """

    __slots__ = ("arguments", "help", "options", "parser", "verbs", "words")

    def __init__(self, words: tuple[str, ...], text: str, parser: Parser | None) -> None:
        self.words = words
        self.help = text
        self.parser = parser
        self.options: list[Option] = []
        self.arguments: list[Option] = []
        self.verbs: list[tuple[str, str]] = []

    @property
    def is_leaf(self) -> bool:
        """Whether it does something itself."""
        return not self.verbs


def global_options() -> list[Option]:
    """The options of every command."""
    from sev.cli import globals as table

    out = []
    for spelling, text in table.HELP:
        words = spelling.replace(",", "").split()
        names = tuple(word for word in words if word.startswith("-"))
        out.append(Option(names, "" if words[-1].startswith("-") else words[-1], (), text))
    return [*out, Option(("-h", "--help"), "", (), "help on a noun or verb")]


def walk() -> Iterator[Command]:
    """Every command, parents before children; builds every parser."""
    from sev.cli.main import NOUNS, build_parser

    root = Command((), "AMD SEV, SEV-ES and SEV-SNP", None)
    root.verbs = list(NOUNS.items())
    yield root
    for noun, text in NOUNS.items():
        yield from _below((noun,), text, build_parser(noun))


def _below(words: tuple[str, ...], text: str, parser: Parser) -> Iterator[Command]:
    parser.ready()
    command = Command(words, text, parser)
    children: list[tuple[str, str, Parser]] = []
    for action in parser._actions:
        if action is parser.verbs:
            children = [(one.dest, one.help or "", parser.verbs.choices[one.dest]) for one in action._get_subactions()]
        elif action.help != SUPPRESS:
            (command.options if action.option_strings else command.arguments).append(_option(action))
    command.verbs = [(name, line) for name, line, _ in children]
    yield command
    for name, line, child in children:
        yield from _below((*words, name), line, child)


def _option(action: Action) -> Option:
    takes_value = action.nargs != 0
    metavar = action.metavar if isinstance(action.metavar, str) else (action.dest or "").upper()
    choices = tuple(str(choice) for choice in action.choices or ())
    return Option(tuple(action.option_strings), metavar if takes_value else "", choices, action.help or "")
