"""Options as tables: a well-formed command line is read without argparse, anything else is left to it.

Loading argparse and building a parser is a third of a short command. So a verb that programs call often lists its
options here once; `parse` reads the plain case, and `add` gives the same table to argparse, which knows how to explain
what is wrong and prints the help.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, _ArgumentGroup
    from collections.abc import Callable, Sequence
    from typing import Any


class Option:
    """One option.

    Attributes:
        names: Its spellings, the first of which gives the attribute: "--vcpu-type" is `vcpu_type`.
        metavar: What stands for its value in the help; None for a flag, which is False or True.
        help: One line.
        kind: Turns the word into the value, or raises; None keeps the word.
        default: The value if it is not given.
        choices: The words allowed; None for any.
        required: It must be given.
    """

    __slots__ = ("attribute", "choices", "default", "help", "kind", "metavar", "names", "required")

    def __init__(
        self,
        *names: str,
        metavar: str | None = None,
        help: str,  # noqa: A002 - argparse's name for it
        kind: Callable[[str], object] | None = None,
        default: object = None,
        choices: tuple[str, ...] | None = None,
        required: bool = False,
    ) -> None:
        self.names = names
        self.attribute = names[0].lstrip("-").replace("-", "_")
        self.metavar = metavar
        self.help = help
        self.kind = kind
        self.default = False if metavar is None else default
        self.choices = choices
        self.required = required


class Arguments:
    """Parsed arguments as attributes, like argparse's Namespace."""

    def __init__(self, values: dict[str, object]) -> None:
        self.__dict__.update(values)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def parse(options: Sequence[Option], words: Sequence[str]) -> Arguments | None:
    """The values of a command line in which nothing is unusual; None where argparse has to look."""
    by_name = {name: option for option in options for name in option.names}
    values: dict[str, object] = {option.attribute: option.default for option in options}
    missing = {option.attribute for option in options if option.required}
    position = 0
    while position < len(words):
        name, equals, value = words[position].partition("=")
        option = by_name.get(name)
        position += 1
        if option is None or (option.metavar is None and equals):
            return None
        missing.discard(option.attribute)
        if option.metavar is None:
            values[option.attribute] = True
            continue
        if not equals:
            if position == len(words) or words[position].startswith("-"):
                return None
            value = words[position]
            position += 1
        if option.choices is not None and value not in option.choices:
            return None
        try:
            values[option.attribute] = value if option.kind is None else option.kind(value)
        except Exception:  # whatever it is, argparse meets it again and words it
            return None
    return None if missing else Arguments(values)


def add(parser: ArgumentParser | _ArgumentGroup, options: Sequence[Option]) -> None:
    """Adds the options to an argparse parser."""
    for option in options:
        if option.metavar is None:
            parser.add_argument(*option.names, action="store_true", help=option.help)
            continue
        parser.add_argument(
            *option.names,
            metavar=option.metavar,
            help=option.help,
            type=option.kind or str,
            default=option.default,
            choices=option.choices,
            required=option.required,
        )
