"""Parsers of nouns and verbs: argparse with errors of ours, near-match hints, lazy building and room for examples.

A noun module builds its verbs on the parser it is given:

    def build(parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers()
        show = verbs.add_parser("show", help="one line", description="what it does, in sentences")
        show.add_argument("file", metavar="FILE")
        examples(show, ("sev report show report.bin", "print every field"))
        show.set_defaults(run=_show)

A verb that is expensive to build may be given `lazy(show, _build_show)`: the function runs when the verb is asked for.
"""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from sev.cli.globals import FLAGS, VALUES
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Action, _SubParsersAction
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, NoReturn

    from _typeshed import SupportsWrite


def _untranslated(text: str) -> str:
    return text


vars(argparse)["_"] = _untranslated
"""argparse would look for translations of its own words, and find none: 4 ms of every start. Ours are English."""


class _Formatter(RawDescriptionHelpFormatter):
    """Keeps paragraphs as written; options in one column that fits the longest ordinary name."""

    def __init__(self, prog: str, indent_increment: int = 2, max_help_position: int = 30, width: int | None = None):
        super().__init__(prog, indent_increment, max_help_position, width)


class _Building:
    """Stands for the formatter that argparse makes for every option to check its metavar: ours are right."""

    def __init__(self, prog: str) -> None:
        pass

    def _format_args(self, *_: object) -> str:
        return ""


class Parser(ArgumentParser):
    """One noun or verb. Errors are raised as UsageError; `-h` prints and raises SystemExit(0)."""

    def __init__(
        self,
        *,
        prog: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        formatter_class: Any = _Building,
        add_help: bool = True,
        allow_abbrev: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=formatter_class,
            add_help=add_help,
            allow_abbrev=allow_abbrev,
            **rest,
        )
        self._words: list[str] = []
        self._builder: Callable[[ArgumentParser], None] | None = None
        self.verbs: _SubParsersAction[Parser] | None = None
        """The verbs below this word, if it has any; `verbs.choices` maps their names to parsers."""

    def ready(self) -> None:
        """Builds what was left for later; needed before the actions of a lazy parser are looked at."""
        builder, self._builder = self._builder, None
        if builder is not None:
            builder(self)

    def add_subparsers(self, **options: Any) -> _SubParsersAction[Any]:
        """As argparse's; the verbs are checked by `run_of`, so `required` is not looked at."""
        options.pop("required", None)
        options.setdefault("prog", self.prog)
        options.setdefault("metavar", "VERB")
        options.setdefault("title", "verbs")
        action: _SubParsersAction[Any] = super().add_subparsers(**options)
        self.verbs = action
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; leaves the deepest parser reached in the attribute `parser`."""
        self.ready()
        namespace = Namespace() if namespace is None else namespace
        namespace.parser = self
        self._words = list(args or ())
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """The whole help: usage, description, verbs or options, examples."""
        self.ready()
        self._format_for_people()
        return super().format_help()

    def format_usage(self) -> str:
        """The usage lines."""
        self.ready()
        self._format_for_people()
        return super().format_usage()

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """As argparse's, which would hide that it could not be written."""
        (file or sys.stdout).write(self.format_help())

    def _format_for_people(self) -> None:
        formatter: object = self.formatter_class
        if formatter is _Building:
            self.formatter_class = _Formatter

    def _check_value(self, action: Action, value: Any) -> None:
        """argparse's check of `choices`, with the likely meant one instead of the whole list where there is one."""
        if action.choices is None or value in action.choices:
            return
        known = verb_names(self) if action is self.verbs else [str(choice) for choice in action.choices]
        what = "verb" if action is self.verbs else "/".join(action.option_strings) or str(action.metavar or action.dest)
        self.fail(
            f"{what}: {value!r} is not known", hint(str(value), known) or f"It is one of: {', '.join(known)}.", what
        )

    def error(self, message: str) -> NoReturn:
        """What argparse found wrong."""
        field = ""
        self._refuse_unknown(self._words)  # a misspelt option is the cause of "required", so it is named first
        if message.startswith("argument "):
            field, _, message = message[len("argument ") :].partition(": ")
            message = f"{field}: {message}"
        self.fail(message, "", field)

    def _refuse_unknown(self, words: Iterable[str]) -> None:
        """Raises the usage error of the first word that looks like an option and is none of this parser's."""
        if self.verbs is not None:
            return
        known = [option for action in self._actions for option in action.option_strings]
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                return
            if name.startswith("--") and name not in known:
                self.fail(f"{name}: no such option", hint(name, [*known, *FLAGS, *VALUES]), name)

    def fail(self, message: str, remedy: str = "", field: str = "") -> NoReturn:
        """Raises the usage error of this word.

        Raises:
            UsageError: Always.
        """
        see = f"See: {self.prog} --help"
        raise UsageError(
            f"{self.prog.removeprefix('sev ')}: {message}", remedy=f"{remedy} {see}" if remedy else see, field=field
        )


def lazy(parser: ArgumentParser, builder: Callable[[ArgumentParser], None]) -> None:
    """Has `builder(parser)` run when this parser is parsed with, or its help is asked for."""
    assert isinstance(parser, Parser)
    parser._builder = builder


def examples(parser: ArgumentParser, *pairs: tuple[str, str], notes: str = "") -> None:
    """Adds examples, (command, what it does), and notes to the end of a parser's help."""
    lines = ["examples:"]
    for command, meaning in pairs:
        lines += [f"  # {meaning}", f"  {command}", ""]
    parser.epilog = "\n".join(lines).rstrip() + (f"\n\n{notes.strip()}" if notes else "")


def hint(word: str, known: Iterable[str]) -> str:
    """ "Did you mean …?" for a word that resembles a known one; empty if none does."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""


def run_of(namespace: Namespace, extras: Sequence[str]) -> Callable[..., int]:
    """The function of the verb that was parsed.

    Args:
        namespace: What `parse_known_args` gave.
        extras: Words that it did not know.

    Raises:
        UsageError: A word is not known, or no verb was given.
    """
    parser: Parser = namespace.parser
    for word in extras:
        if word.startswith("-") and len(word) > 1:
            options = [option for action in parser._actions for option in action.option_strings]
            name = word.partition("=")[0]
            parser.fail(f"{name}: no such option", hint(name, [*options, *FLAGS, *VALUES]), name)
    if extras:
        parser.fail(f"{extras[0]!r}: one word too many")
    run: Callable[..., int] | None = getattr(namespace, "run", None)
    if run is None or parser.verbs is not None:
        parser.fail("a verb is missing", f"It is one of: {', '.join(verb_names(parser))}.", "verb")
    return run


def verb_names(parser: Parser) -> list[str]:
    """The verbs of a parser, without other spellings of theirs."""
    names = dict[int, str]()
    for name, verb in (parser.verbs.choices if parser.verbs else {}).items():
        names.setdefault(id(verb), name)
    return list(names.values())
