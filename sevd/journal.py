"""What was asked under a request id and what came of it, kept so that a retry never acts twice.

Before a call acts, an entry "begun" is on disk; afterwards its outcome is added. A retry with the same id finds the
outcome. An entry that a dead daemon left begun means that nobody knows whether it acted: OutcomeUnknown.

An entry belongs to an identity, a method and the hash of a request: the same id for something else is refused, and
another identity's ids are other ids.

On disk: one JSON object per line, appended; `journal.jsonl`, mode 0600, rewritten (temporary name, fsync, rename) when
it has grown. The beginning of an entry is synced before `begin` returns, the outcome is not: after a loss of power a
finished call may be unknown, never the other way round. A torn last line is what a crash leaves, and is dropped; any
other damage is reported, the file is set aside, and what can be read of it is kept.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from sev.errors import LimitReached, UsageError
from sev.records import record, replace
from sevd import durable

ENTRIES = 4096
"""Entries kept, of all identities."""

ENTRIES_PER_OWNER = 1024
"""Entries kept of one identity: nobody can push another's entries out."""

SECONDS = 24 * 3600.0
"""Age at which a finished entry is forgotten."""

FORMAT = 1
"""Format number of an entry; one without has the first. A larger one is of a newer version, and is not read."""

REWRITE_BYTES = 8 << 20
"""Size of the file above which it is rewritten."""

LINE_BYTES = 8 << 20
"""Longest line; what is longer was not written here."""

log = logging.getLogger(__name__)


@record
class Outcome:
    """How a call ended.

    Attributes:
        code: The canonical gRPC code as a number; 0: it succeeded.
        content: The serialised response, or the serialised google.rpc.Status of the failure.
        message: The sentence of a failure.
        reason: ErrorInfo.reason of a failure.
        kept: It is what a repeated call is answered with; otherwise, nothing was done, and the id may be used again.
    """

    code: int
    content: bytes
    message: str = ""
    reason: str = ""
    kept: bool = True


@record
class Entry:
    """One request id.

    Attributes:
        owner: The identity.
        request_id: Its id.
        method: Full path of the method.
        digest: SHA-256 of the request, hex.
        begun: When, in seconds of the epoch.
        outcome: None while it is not known.
        here: It was begun by this process.
        forgotten: It is none any more.
    """

    owner: str
    request_id: str
    method: str
    digest: str
    begun: float
    outcome: Outcome | None = None
    here: bool = True
    forgotten: bool = False


class Journal:
    """The entries of one daemon. Not thread-safe: the caller sees to it that one call is under way at a time."""

    def __init__(
        self,
        path: Path,
        *,
        entries: int = ENTRIES,
        entries_per_owner: int = ENTRIES_PER_OWNER,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads what is there.

        Raises:
            OSError: The file cannot be read or written.
        """
        self._path = path
        self._limit = entries
        self._limit_per_owner = entries_per_owner
        self._seconds = seconds
        self._clock = clock
        self._entries: OrderedDict[tuple[str, str], Entry] = OrderedDict()
        self._file = -1
        self._size = 0
        self._load()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, owner: str, request_id: str, method: str, digest: str) -> Entry | None:
        """The entry of an id; None if it is new.

        Raises:
            UsageError: The id was used for another request.
        """
        entry = self._entries.get((owner, request_id))
        if entry is None:
            return None
        if (entry.method, entry.digest) != (method, digest):
            raise UsageError(
                "request_id: this id was used for another request already",
                field="request_id",
                remedy="Make a fresh id (a UUID) for every request; repeat it only with the very same request.",
                request_id=request_id,
            )
        return entry

    def earlier(self) -> list[Entry]:
        """Entries of daemons before this one, oldest first."""
        return [entry for entry in self._entries.values() if not entry.here]

    def begin(self, owner: str, request_id: str, method: str, digest: str) -> None:
        """Notes that a call is about to act; on disk when it returns.

        Raises:
            LimitReached: Too many calls of this identity have no outcome yet.
            OSError: It could not be written: the call must not act.
        """
        self._make_room(owner)
        entry = Entry(owner, request_id, method, digest, self._clock())
        self._append(entry, sync=True)
        self._entries[owner, request_id] = entry

    def finish(self, owner: str, request_id: str, outcome: Outcome | None) -> None:
        """Notes how a call ended; None: that is not known, and will not be. One that is not `kept` is forgotten.

        Raises:
            OSError: It could not be written; it is known until the daemon ends.
        """
        entry = self._entries.get((owner, request_id))
        if entry is None:
            return
        if outcome is not None and not outcome.kept:
            del self._entries[owner, request_id]
            self._append(replace(entry, forgotten=True), sync=False)
            return
        entry = replace(entry, outcome=outcome, here=outcome is not None)
        self._entries[owner, request_id] = entry
        if outcome is not None:
            self._append(entry, sync=False)
            if self._size > REWRITE_BYTES:
                self._rewrite()

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _make_room(self, owner: str) -> None:
        oldest = self._clock() - self._seconds
        for key, entry in list(self._entries.items()):
            if entry.begun >= oldest:
                break  # in the order of time
            if entry.outcome is not None or not entry.here:
                del self._entries[key]
        own = [key for key in self._entries if key[0] == owner]
        if len(own) >= self._limit_per_owner:
            self._drop(own)
        if len(self._entries) >= self._limit:
            self._drop(list(self._entries))

    def _drop(self, keys: list[tuple[str, str]]) -> None:
        """Forgets the oldest of these that is not under way."""
        for key in keys:
            entry = self._entries[key]
            if entry.outcome is not None or not entry.here:
                del self._entries[key]
                return
        raise LimitReached(
            f"{len(keys)} calls are under way",
            remedy="Wait for earlier calls to end.",
            metadata={"limit": "journal"},
        )

    def _append(self, entry: Entry, *, sync: bool) -> None:
        line = _line(entry)
        written = durable.disk.write(self._file, line)
        if written != len(line):  # a full disk: take the torn piece back, or the next line would be glued to it
            durable.disk.truncate(self._file, self._size)
            raise OSError(28, os.strerror(28))
        self._size += len(line)
        if sync:
            durable.disk.sync_data(self._file)

    def _load(self) -> None:
        new = not os.path.lexists(self._path)
        self._file = durable.disk.append(self._path, 0o600)
        if new:
            durable.sync_directory(self._path.parent)  # or a power loss takes the file with all that was synced in it
        with open(self._path, "rb") as file:
            lines = file.read().splitlines(keepends=True)
        torn = bool(lines) and not lines[-1].endswith(b"\n")
        if torn:
            log.warning("%s: the last entry is torn, as a crash leaves it; it is dropped", self._path)
            lines.pop()
        damaged = 0
        for line in lines:
            entry = _entry(line)
            if entry is None:
                damaged += 1
            elif entry.forgotten:
                self._entries.pop((entry.owner, entry.request_id), None)
            else:
                self._entries[entry.owner, entry.request_id] = entry
        if damaged:
            aside = self._path.with_name(f"{self._path.name}.damaged-{int(self._clock())}")
            # One more name: the file keeps its own until what is readable of it stands there.
            with contextlib.suppress(FileExistsError):
                durable.disk.link(self._path, aside)
            log.error("%s: %d entries cannot be read; the file was set aside as %s", self._path, damaged, aside)
        self._size = os.fstat(self._file).st_size
        if torn or damaged or self._size > REWRITE_BYTES:
            self._rewrite()

    def _rewrite(self) -> None:
        """Writes the entries that are known to a fresh file and puts it in the place of the old one."""
        data = b"".join(_line(entry) for entry in self._entries.values())
        try:
            durable.write(self._path, data, 0o600)
        finally:
            # Whatever failed: from here on entries go to the file that has the name, which may be the new one.
            old, self._file = self._file, -1
            os.close(old)
            self._file = durable.disk.append(self._path, 0o600)
            self._size = os.fstat(self._file).st_size


def _line(entry: Entry) -> bytes:
    out: dict[str, object] = {
        "format": FORMAT,
        "owner": entry.owner,
        "request_id": entry.request_id,
        "method": entry.method,
        "digest": entry.digest,
        "begun": entry.begun,
    }
    if entry.forgotten:
        out["forgotten"] = True
    if entry.outcome is not None:
        out["outcome"] = {
            "code": entry.outcome.code,
            "content": base64.b64encode(entry.outcome.content).decode("ascii"),
            "message": entry.outcome.message,
            "reason": entry.outcome.reason,
        }
    return json.dumps(out, separators=(",", ":")).encode() + b"\n"


def _entry(line: bytes) -> Entry | None:
    """The entry of a line; None for anything that `_line` does not write."""
    if len(line) > LINE_BYTES:
        return None
    try:
        raw = json.loads(line)
        if raw.get("format", FORMAT) != FORMAT:
            return None
        begun = float(raw["begun"])
        owner, request_id, method, digest = (raw[key] for key in ("owner", "request_id", "method", "digest"))
        found = raw.get("outcome")
        outcome = None
        if found is not None:
            content = base64.b64decode(found["content"], validate=True)
            outcome = Outcome(int(found["code"]), content, str(found["message"]), str(found["reason"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, binascii.Error):
        return None
    if not all(isinstance(text, str) for text in (owner, request_id, method, digest)):
        return None
    return Entry(owner, request_id, method, digest, begun, outcome, here=False, forgotten=raw.get("forgotten") is True)
