"""Logs: fields in the system's journal, JSON lines elsewhere, plain lines on a terminal.

Every record that belongs to a call carries the call's request id, method and caller (`sevd.calling`). A line is one
line, whatever is in it: in plain lines an exception's trace has its line breaks written as \\n.

The keys of JSON lines: `time` (RFC 3339, UTC), `level`, `logger`, `message`, and where they apply `request_id`,
`method`, `caller`, `trace`, `audit` (the record of `sevd.audit`). The fields in the journal: MESSAGE, PRIORITY,
SYSLOG_IDENTIFIER, CODE_FILE, CODE_LINE, SEVD_LOGGER, SEVD_REQUEST_ID, SEVD_METHOD, SEVD_CALLER, and those of audit
records (`sevd.audit.journal_fields`).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

from sevd.calling import CURRENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sevd.system_journal import SystemJournal

FORMATS = ("auto", "text", "json", "journal")
"""What `logs.format` may be. auto: the journal where stderr leads to it, text on a terminal, JSON elsewhere."""

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class LineFormatter(logging.Formatter):
    """A record as one line for people.

    On a terminal or in a file it begins with the time; for the journal, which has the time, with the priority
    (sd-daemon(3)).
    """

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        start = f"<{_priority(record)}>" if self._journal else f"{_time(record)} {record.levelname.lower()} "
        line = f"{start}{record.name}: {record.getMessage()}"
        call = CURRENT.get()
        if call is not None and call.request_id and not hasattr(record, "audit"):
            line += f" request_id={call.request_id}"
        if record.exc_info:
            line += f" trace={self.formatException(record.exc_info)}"
        if line.isprintable():
            return line
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self) -> None:
        from json import JSONEncoder

        super().__init__()
        self._encode = JSONEncoder(separators=(",", ":")).encode

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        out: dict[str, object] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        audit = getattr(record, "audit", None)
        out["message"] = record.getMessage() if audit is None else audit.sentence()
        if audit is not None:
            # The record is JSON already.
            return f'{self._encode(out)[:-1]},"audit":{audit.line}}}'
        out.update(_call())
        if record.exc_info:
            out["trace"] = self.formatException(record.exc_info)
        return self._encode(out)


class JournalHandler(logging.Handler):
    """Gives records to the journal; to stderr, which is the journal's too, where its socket cannot be reached."""

    def __init__(self, journal: SystemJournal, program: str) -> None:
        super().__init__()
        self._journal = journal
        self._instead = logging.StreamHandler(sys.stderr)
        self._instead.setFormatter(LineFormatter(journal=True))
        self._program = program
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a record; never raises."""
        try:
            fields = self.fields(record)
            if self._lost:
                fields["SEVD_LOST"] = str(self._lost)
            self._journal.send(fields)
            self._lost = 0
        except BlockingIOError:
            self._lost += 1
        except OSError:
            self._instead.emit(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Hangs up."""
        self._journal.close()
        super().close()

    def fields(self, record: logging.LogRecord) -> dict[str, str]:
        """A record as fields of the journal."""
        audit = getattr(record, "audit", None)
        message = record.getMessage() if audit is None else audit.sentence()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        out = {
            "MESSAGE": message,
            "PRIORITY": str(_priority(record)),
            "SYSLOG_IDENTIFIER": self._program,
            "SEVD_LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
        }
        if audit is not None:
            out.update(audit.journal_fields())
        else:
            out.update((f"SEVD_{name.upper()}", value) for name, value in _call().items())
        return out


def set_up(level: str, environ: Mapping[str, str], form: str = "text", program: str = "sevd") -> None:
    """Sends all logs to stderr, or to the journal, from this level on.

    Args:
        level: The least level.
        environ: The environment, which says whether stderr leads to the journal.
        form: One of FORMATS.
        program: What the journal calls this program.
    """
    root = logging.getLogger()
    root.handlers[:] = [handler(environ, form, program)]
    set_level(level)


def handler(environ: Mapping[str, str], form: str, program: str) -> logging.Handler:
    """The handler of a format."""
    from sevd.system_journal import SystemJournal, is_stderr

    journal = is_stderr(environ)
    if form == "journal" or (form == "auto" and journal):
        return JournalHandler(SystemJournal(), program)
    out = logging.StreamHandler(sys.stderr)
    plain = form == "text" or (form == "auto" and sys.stderr.isatty())
    out.setFormatter(LineFormatter(journal=journal) if plain else JsonFormatter())
    return out


def set_level(level: str) -> None:
    """Changes the least level that is logged."""
    logging.getLogger().setLevel(level.upper())
    # asyncio tells of every slow callback at debug level, and gRPC of every call: neither says anything about SEV.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # The audit trail does not depend on how much else is wanted.
    logging.getLogger("sevd.audit").setLevel(logging.INFO)


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _priority(record: logging.LogRecord) -> int:
    audit = getattr(record, "audit", None)
    return _PRIORITIES.get(record.levelno, 6) if audit is None else int(audit.priority)


def _call() -> dict[str, str]:
    """What is known of the call that the record belongs to."""
    call = CURRENT.get()
    if call is None:
        return {}
    found = {"request_id": call.request_id, "method": call.method, "caller": call.owner}
    return {name: value for name, value in found.items() if value}
