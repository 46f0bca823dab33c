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

from argparse import ArgumentParser, HelpFormatter, Namespace, RawDescriptionHelpFormatter

from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Action, _FormatterClass, _SubParsersAction
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, NoReturn


class _Formatter(RawDescriptionHelpFormatter):
    """Keeps paragraphs as written; options in one column that fits the longest ordinary name."""

    def __init__(self, prog: str, indent_increment: int = 2, max_help_position: int = 30, width: int | None = None):
        super().__init__(prog, indent_increment, max_help_position, width)


def _building(prog: str) -> HelpFormatter:
    """The formatter argparse makes to check each option's metavar: a width given saves asking the terminal for it."""
    return HelpFormatter(prog, width=80)


class Parser(ArgumentParser):
    """One noun or verb. Errors are raised as UsageError; `-h` prints and raises SystemExit(0)."""

    def __init__(
        self,
        *,
        prog: str | None = None,
        description: str | None = None,
        epilog: str | None = None,
        formatter_class: _FormatterClass = _building,
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
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """The whole help: usage, description, verbs or options, examples."""
        self.ready()
        if self.formatter_class is _building:
            self.formatter_class = _Formatter
        return super().format_help()

    def format_usage(self) -> str:
        """The usage lines."""
        self.ready()
        if self.formatter_class is _building:
            self.formatter_class = _Formatter
        return super().format_usage()

    def _check_value(self, action: Action, value: Any) -> None:
        """argparse's check of `choices`, with the likely meant one instead of the whole list where there is one."""
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        what = "verb" if action is self.verbs else "/".join(action.option_strings) or str(action.metavar or action.dest)
        self.fail(
            f"{what}: {value!r} is not known", hint(str(value), known) or f"It is one of: {', '.join(known)}.", what
        )

    def error(self, message: str) -> NoReturn:
        """What argparse found wrong."""
        field = ""
        if message.startswith("argument "):
            field, _, message = message[len("argument ") :].partition(": ")
            message = f"{field}: {message}"
        self.fail(message, "", field)

    def fail(self, message: str, remedy: str = "", field: str = "") -> NoReturn:
        """Raises the usage error of this word.

        Raises:
            UsageError: Always.
        """
        see = f"See: {self.prog} --help"
        raise UsageError(f"{self.prog}: {message}", remedy=f"{remedy} {see}" if remedy else see, field=field)


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


def run_of(namespace: Namespace, extras: Sequence[str], known_options: Iterable[str]) -> Callable[..., int]:
    """The function of the verb that was parsed.

    Args:
        namespace: What `parse_known_args` gave.
        extras: Words that it did not know.
        known_options: Further options to hint at, beside those of the parser.

    Raises:
        UsageError: A word is not known, or no verb was given.
    """
    parser: Parser = namespace.parser
    if extras:
        word = extras[0].partition("=")[0]
        if word.startswith("-") and len(word) > 1:
            options = [option for action in parser._actions for option in action.option_strings]
            parser.fail(f"{word}: no such option", hint(word, [*options, *known_options]), word)
        parser.fail(f"{extras[0]!r}: one word too many")
    run: Callable[..., int] | None = getattr(namespace, "run", None)
    if run is None or parser.verbs is not None:
        names = ", ".join(parser.verbs.choices) if parser.verbs else "none"
        parser.fail("a verb is missing", f"It is one of: {names}.", "verb")
    return run
