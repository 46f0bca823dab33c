"""The audit trail: who asked for what, on what, and what came of it.

One JSON object per line in a file of mode 0600, and the same record in the log (in the journal as fields). A record is
written for every mutating call, and for every refusal of any call or connection. Records say nothing that is secret:
no request content, no keys.

Keys: `time` (RFC 3339, UTC), `sequence`, `run`, `previous`, `what` ("call", "connection", "trail"), `caller` (`owner`,
`uid`, `gid`, `pid`, `role`, `unit`; of a remote caller `owner`, `role`, `names`, `address`, and where it was refused
`subject`, `serial`, `not_after` of its certificate), `socket`, `method`, `target`, `result` ("done", "refused",
"failed", "cancelled", "unknown"), `reason`, `message`, `firmware_status`, `errno`, `request_id`, `validate_only`,
`repeated`, `duration_ms`, `began` (of a call that the next daemon recorded: `sevd.audit_recovery`). A key without a
value is left out.

`sequence` goes on over restarts, so that a gap is a record that is missing; `run` is one start of the daemon;
`previous` is the SHA-256 of the line before, so that a record that was changed, or taken out, shows
(`sev audit --verify`).
Whoever may write the file can of course write it anew from there on, all of it: then the journal tells another story.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sev.audit_trail import stamp
from sevd.audit_file import TrailFile

if TYPE_CHECKING:
    from sev.audit_trail import AuditRecord
    from sev.errors import SevError
    from sevd.access.identity import Caller
    from sevd.access.peer import Peer

FILE_BYTES = 16 << 20
"""Size at which a file is put aside and a new one begun."""

FILES = 4
"""Files kept, the current one included: callers can fill so much of the disk and no more."""

MESSAGE_ID = "5f0b6f0f8d4b4d5b9a4c8c5a3e1d7c26"
"""MESSAGE_ID of audit records in the journal: `journalctl MESSAGE_ID=…` shows them and nothing else."""

_PRIORITIES = {"refused": 5, "failed": 3}
_OUTSIDE = {
    "renamed": "the audit file was moved away by somebody else; a new one begins",
    "removed": "the audit file was removed by somebody else; a new one begins",
    "truncated": "the audit file was cut short by somebody else",
}
_FIELDS = ("sequence", "run", "socket", "method", "target", "result", "reason", "request_id", "firmware_status")

log = logging.getLogger("sevd.audit")

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Record:
    """One record, as the log is given it.

    Attributes:
        facts: Its keys and values.
        line: The line in the file.
    """

    __slots__ = ("facts", "line")

    def __init__(self, facts: Mapping[str, object], line: str) -> None:
        self.facts = facts
        self.line = line

    @property
    def priority(self) -> int:
        """Its priority in the journal (syslog(3))."""
        return _PRIORITIES.get(str(self.facts.get("result")), 6)

    def sentence(self) -> str:
        """The record for people."""
        facts, who = self.facts, self.facts.get("caller")
        caller = who if isinstance(who, dict) else {}
        owner = caller.get("owner") or (f"somebody at {caller['address']}" if "address" in caller else "somebody")
        words = [owner, facts.get("method") or f"connection to {facts.get('socket', '')}"]
        if facts.get("what") == "trail":
            words = ["audit trail"]
        if facts.get("target"):
            words.append(facts["target"])
        end = [str(facts[key]) for key in ("result", "reason", "message") if facts.get(key)]
        return f"{' '.join(map(str, words))}: {': '.join(end)}"

    def journal_fields(self) -> dict[str, str]:
        """The record as fields of the journal: SEVD_CALLER, SEVD_METHOD, SEVD_RESULT, SEVD_REQUEST_ID, and so on."""
        out = {"MESSAGE_ID": MESSAGE_ID, "SEVD_RECORD": self.line}
        out.update((f"SEVD_{key.upper()}", str(self.facts[key])) for key in _FIELDS if key in self.facts)
        who = self.facts.get("caller")
        if isinstance(who, dict):
            out["SEVD_CALLER"] = str(who.get("owner", ""))
            out.update((f"SEVD_CALLER_{key.upper()}", str(who[key])) for key in ("role", "unit", "pid") if key in who)
        return out


class Audit:
    """Writes records. From any thread."""

    def __init__(self, path: Path | None, *, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        """`path` None: the log alone.

        Raises:
            OSError: The file cannot be written.
        """
        self.path = path
        self._lock = threading.Lock()
        self._file = TrailFile(path, file_bytes=file_bytes, files=files) if path is not None else None
        self._sequence = self._file.sequence if self._file is not None else 0
        self._last = self._file.last if self._file is not None else b""
        self._run = secrets.token_hex(8)
        self._failed = False
        self._listeners: list[Callable[[int, str], None]] = []
        self.count_refused: Callable[[str, str], None] = lambda socket, reason: None
        """Told of every refused connection: its socket and the reason."""

    def call(
        self,
        caller: Caller,
        unit: str,
        socket: str,
        facts: Mapping[str, object],
        *,
        names: Sequence[str] = (),
        address: str = "",
    ) -> None:
        """Records a call: `facts` has the keys above from `method` on.

        Args:
            caller: Who called.
            unit: Its systemd unit.
            socket: The socket that it came through.
            facts: What it was, and how it ended.
            names: Names in a remote caller's certificate.
            address: Where a remote caller is.
        """
        who: dict[str, object] = {"owner": caller.owner, "uid": caller.uid, "gid": caller.gid, "pid": caller.pid}
        who.update(role=caller.role.text, unit=unit, names=list(names), address=address)
        self._write({"what": "call", "caller": _stated(who), "socket": socket, **facts})

    def recovered(self, owner: str, facts: Mapping[str, object]) -> None:
        """Records a call of an earlier run, which ended before it could; who called is known by name alone."""
        self._write({"what": "call", "caller": {"owner": owner}, **facts})

    def end(self) -> tuple[list[AuditRecord], bool]:
        """The last records of the file, and whether these are all; see `TrailFile.end`."""
        with self._lock:
            return self._file.end() if self._file is not None else ([], False)

    def connection_refused(
        self,
        socket: str,
        peer: Peer | None,
        error: SevError,
        *,
        names: Sequence[str] = (),
        address: str = "",
        certificate: Mapping[str, object] | None = None,
    ) -> None:
        """Records a connection that was refused.

        Args:
            socket: The socket that it came to.
            peer: The process; None: it could not be told who it was, or it is no local one.
            error: Why.
            names: Names in a remote caller's certificate.
            address: Where a remote caller is.
            certificate: What else its certificate says, verified or not.
        """
        self.count_refused(socket, error.reason)
        facts: dict[str, object] = {"what": "connection", "socket": socket}
        who: dict[str, object] = {"names": list(names), "address": address, **(certificate or {})}
        if peer is not None:
            who = {"owner": f"uid:{peer.uid}", "uid": peer.uid, "gid": peer.gid, "pid": peer.pid, **who}
        facts.update(caller=_stated(who), result="refused", reason=error.reason, message=error.message[:512])
        self._write(facts)

    def listen(self, listener: Callable[[int, str], None]) -> Callable[[], None]:
        """Calls `listener` with number and line of every record, in the thread that writes it, which must not wait;
        answers a function that ends it."""
        with self._lock:
            self._listeners.append(listener)

        def end() -> None:
            with self._lock:
                self._listeners.remove(listener)

        return end

    def close(self) -> None:
        """Closes the file; records go to the log alone from here on."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, facts: Mapping[str, object]) -> None:
        with self._lock:
            for outside in self._look():
                self._add({"what": "trail", "reason": outside.upper(), "message": _OUTSIDE[outside]})
            self._add(facts)

    def _add(self, facts: Mapping[str, object]) -> None:
        self._sequence += 1
        whole: dict[str, object] = {
            "time": stamp(datetime.now(UTC)),
            "sequence": self._sequence,
            "run": self._run,
            "previous": hashlib.sha256(self._last).hexdigest(),
        }
        whole.update(_stated(facts))
        line = _encode(whole)
        self._append(line.encode())
        log.info("%s", line, extra={"audit": Record(whole, line)})
        for listener in self._listeners:
            listener(self._sequence, line)

    def _look(self) -> list[str]:
        """What somebody else did to the file."""
        try:
            found = self._file.look() if self._file is not None else ""
        except OSError as error:
            self._failing(error)
            return []
        if found:
            log.warning("%s", _OUTSIDE[found])
        return [found] if found else []

    def _append(self, line: bytes) -> None:
        if self._file is None:
            self._last = line
            return
        try:
            self._file.append(line)
            self._failed = False
        except OSError as error:
            # A full disk must not stop the daemon; the log still has the record, and this once says what is wrong.
            self._failing(error)
        self._last = self._file.last

    def _failing(self, error: OSError) -> None:
        if not self._failed:
            log.error("the audit file cannot be written: %s", error.strerror)
        self._failed = True


def _stated(facts: Mapping[str, object]) -> dict[str, object]:
    """The facts that have a value."""
    return {key: value for key, value in facts.items() if value not in (None, "", [], {})}
