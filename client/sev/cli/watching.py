"""Commands that watch: they outlive the daemon, and say when it was gone."""

from __future__ import annotations

from time import sleep

from sev.errors import NotNow, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from sev.cli.output import Output
    from sev.client import Host

    T = TypeVar("T")

LOOK_SECONDS = 0.2
"""Pause between two looks for a daemon that is gone."""


def again(host: Host, out: Output, start: Callable[[], Iterator[T]]) -> Iterator[T]:
    """What a stream answers, to its end; a daemon that ends or restarts meanwhile is waited for, and it starts anew.

    The daemon must have answered before. Errors other than its absence end it.
    """
    while True:
        try:
            yield from start()
            return
        except (Unreachable, NotNow) as error:
            if not _is_gone(error):
                raise
        out.note("sev: the daemon is gone; waiting for it (Ctrl-C ends)")
        _wait(host)
        out.note("sev: connected again")


def _wait(host: Host) -> None:
    while True:
        try:
            host.host()
            return
        except (Unreachable, NotNow) as error:
            if not _is_gone(error):
                raise
        sleep(LOOK_SECONDS)


def _is_gone(error: Exception) -> bool:
    """Unreachable; or a call that was cut off by a daemon that stops, which is NotNow and no class below it."""
    return isinstance(error, Unreachable) or type(error) is NotNow
