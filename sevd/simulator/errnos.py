"""Refusals inside the simulated kernel: OSError with an errno, and the status where the firmware refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import NoReturn


class FirmwareRefused(OSError):
    """A firmware command failed: EIO towards the caller.

    Attributes:
        status: Firmware status.
        pages_done: Pages that SNP_LAUNCH_UPDATE had added before.
        lengths: What the firmware left in the command's length fields; empty if it left them alone.
    """

    def __init__(self, number: int, status: int, pages_done: int = 0, lengths: tuple[int, ...] = ()) -> None:
        super().__init__(number, os.strerror(number))
        self.status = status
        self.pages_done = pages_done
        self.lengths = lengths


class PowerLost(Exception):
    """The power failed in the middle of a command."""


class Reply:
    """The `error` field of an envelope: None while the firmware was not reached, then its status."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: int | None = None


def refusal(number: int) -> OSError:
    """An OSError with this errno and its text."""
    return OSError(number, os.strerror(number))


def fail(number: int) -> NoReturn:
    """Raises OSError with this errno."""
    raise refusal(number)


def until_refused(call: Callable[[int], object], arguments: Sequence[int]) -> tuple[int, int]:
    """A call with one argument after the other, until one fails: (how many succeeded, errno or 0)."""
    for done, argument in enumerate(arguments):
        try:
            call(argument)
        except OSError as error:
            return done, error.errno or errno.EIO
    return len(arguments), 0
