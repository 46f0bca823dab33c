"""`sev completion`: completion for shells, made from the parsers as they are."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output

_ABOUT = """\
Prints a completion script: nouns, verbs, options, their values, and files where files
belong. It is made from the parsers of this very version when it is printed.
"""

SHELLS = ("bash", "zsh", "fish")


def build(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    parser.description = _ABOUT
    parser.add_argument("shell", choices=SHELLS, metavar="bash|zsh|fish", help="for which shell")
    examples(
        parser,
        ('eval "$(sev completion bash)"', "in ~/.bashrc"),
        ('eval "$(sev completion zsh)"', "in ~/.zshrc, after compinit"),
        ("sev completion fish > ~/.config/fish/completions/sev.fish", "for fish"),
        notes='JSON: {"shell", "script"}.',
    )
    parser.set_defaults(run=_print)


def _print(args: Namespace, out: Output) -> int:
    from sev.cli import completion_scripts

    script = getattr(completion_scripts, args.shell)()
    out.result({"shell": args.shell, "script": script}, script)
    return 0
