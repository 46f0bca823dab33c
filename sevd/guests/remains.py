"""What tells of a guest in its worker's folder; of one that was lost until it is deleted: every daemon finds it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import TYPE_CHECKING

from sev.errors import MalformedInput, SevError
from sevd.worker.guest import CARD
from sevd.worker.server import SOCKET

if TYPE_CHECKING:
    from pathlib import Path

LOST = "lost"
"""In the card of a guest that was lost: why."""

_CARD_BYTES = 64 << 10

log = logging.getLogger(__name__)


def read(folder: Path) -> dict[str, object]:
    """What was written about the guest of a folder. Raises OSError, ValueError, RecursionError, MalformedInput."""
    with (folder / CARD).open("rb") as file:
        document = json.loads(file.read(_CARD_BYTES))
    if not isinstance(document, dict):
        raise MalformedInput(f"{CARD} is no JSON object", field="card")
    return document


def keep(folder: Path, reason: str) -> None:
    """Remembers that the guest of a folder was lost; the socket there goes. What cannot be written is logged."""
    new = folder / f"{CARD}.new"
    try:
        document = read(folder)
        if LOST not in document:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="ascii") as file:
                json.dump({**document, LOST: reason}, file)
            new.rename(folder / CARD)
    except (OSError, ValueError, RecursionError, SevError) as error:
        log.warning("%s: it cannot be kept that its guest was lost: %s", folder, error)
    with contextlib.suppress(OSError):
        (folder / SOCKET).unlink()
