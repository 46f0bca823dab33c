"""The audit trail: who asked for what, on what, and what came of it.

One JSON object per line in a file of mode 0600, and the same line in the log. A record is written for every mutating
call, and for every refusal of any call or connection. Records say nothing that is secret: no request content, no keys.

Keys: `time` (RFC 3339, UTC), `sequence`, `what` ("call" or "connection"), `caller` (`owner`, `uid`, `gid`, `pid`,
`role`, `unit`), `socket`, `method`, `target`, `result` ("done", "refused", "failed", "cancelled"), `reason`, `message`,
`firmware_status`, `errno`, `request_id`, `validate_only`, `repeated`, `duration_ms`. A key without a value is left out.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sev.errors import SevError
    from sevd.access.identity import Caller
    from sevd.access.peer import Peer

FILE_BYTES = 16 << 20
"""Size at which a file is put aside and a new one begun."""

FILES = 4
"""Files kept, the current one included: callers can fill so much of the disk and no more."""

log = logging.getLogger("sevd.audit")


class Audit:
    """Writes records. From any thread."""

    def __init__(self, path: Path | None, *, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        """`path` None: the log alone.

        Raises:
            OSError: The file cannot be written.
        """
        self._path = path
        self._file_bytes = file_bytes
        self._files = max(1, files)
        self._lock = threading.Lock()
        self._sequence = 0
        self._file = -1
        self._size = 0
        self._failed = False
        if path is not None:
            self._open()

    def call(self, caller: Caller, unit: str, socket: str, facts: Mapping[str, object]) -> None:
        """Records a call: `facts` has the keys above from `method` on."""
        who: dict[str, object] = {"owner": caller.owner}
        if caller.uid is not None:
            who.update(uid=caller.uid, gid=caller.gid, pid=caller.pid)
        who["role"] = caller.role.text
        if unit:
            who["unit"] = unit
        self._write({"what": "call", "caller": who, "socket": socket, **facts})

    def connection_refused(self, socket: str, peer: Peer | None, error: SevError) -> None:
        """Records a connection that was refused; `peer` None: it could not be told who it was."""
        facts: dict[str, object] = {"what": "connection", "socket": socket}
        if peer is not None:
            facts["caller"] = {"owner": f"uid:{peer.uid}", "uid": peer.uid, "gid": peer.gid, "pid": peer.pid}
        facts.update(result="refused", reason=error.reason, message=error.message)
        self._write(facts)

    def close(self) -> None:
        """Closes the file; records go to the log alone from here on."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _write(self, facts: Mapping[str, object]) -> None:
        with self._lock:
            self._sequence += 1
            record: dict[str, object] = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "sequence": self._sequence,
            }
            record.update((key, value) for key, value in facts.items() if value not in (None, ""))
            line = json.dumps(record, separators=(",", ":"))
            self._append(line)
        log.info("%s", line)

    def _append(self, line: str) -> None:
        if self._file < 0:
            return
        data = line.encode() + b"\n"
        try:
            if self._size + len(data) > self._file_bytes:
                self._rotate()
            os.write(self._file, data)
            self._size += len(data)
            self._failed = False
        except OSError as error:
            # A full disk must not stop the daemon; the log still has the record, and this once says what is wrong.
            if not self._failed:
                log.error("the audit file cannot be written: %s", os.strerror(error.errno or 0))
            self._failed = True

    def _open(self) -> None:
        assert self._path is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._file).st_size

    def _rotate(self) -> None:
        """Puts the current file aside as .1, that as .2, and so on; the oldest goes."""
        assert self._path is not None
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._files))]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.exists():
                os.replace(newer, older)
        if self._files == 1:
            os.unlink(self._path)
        os.close(self._file)
        self._file = -1
        self._open()
