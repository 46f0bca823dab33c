"""Logs on stderr: one line per record, whatever is in it.

On a terminal or in a file a line begins with the time; under systemd, which has the time, with the priority that the
journal reads (sd-daemon(3)). An exception's trace is part of its line, with its line breaks written as \\n.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class LineFormatter(logging.Formatter):
    """Formats a record as one line."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        if self._journal:
            start = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        else:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            start = f"{moment}.{int(record.msecs):03d}Z {record.levelname.lower()} "
        line = f"{start}{record.name}: {record.getMessage()}"
        if record.exc_info:
            line += f" trace={self.formatException(record.exc_info)}"
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def set_up(level: str, environ: Mapping[str, str]) -> None:
    """Sends all logs to stderr from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(journal="JOURNAL_STREAM" in environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """Changes the least level that is logged."""
    logging.getLogger().setLevel(level.upper())
    # asyncio tells of every slow callback at debug level, and gRPC of every call: neither says anything about SEV.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
