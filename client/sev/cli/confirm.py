"""Irreversible commands: asked on a terminal, answered by --yes, refused otherwise."""

from __future__ import annotations

import sys

from sev.errors import ConfirmationMissing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def confirm(args: Namespace, what: str) -> None:
    """Returns if the person means it.

    Args:
        args: The parsed arguments; `--yes` answers.
        what: One sentence that says what will happen and why it cannot be undone.

    Raises:
        ConfirmationMissing: Neither --yes nor a person who types yes.
    """
    if args.yes:
        return
    if args.json or not (_is_terminal(0) and _is_terminal(2)):
        raise ConfirmationMissing(f"not confirmed: {what}", remedy="Confirm with --yes if you mean it.")
    sys.stderr.write(f"{what}\nGo on? Type yes: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() != "yes":
        raise ConfirmationMissing("not confirmed; nothing was done")


def _is_terminal(descriptor: int) -> bool:
    import os

    return os.isatty(descriptor)
