"""The audit trail as the daemon writes it: reading its files, choosing records, and seeing where it was changed.

One JSON object a line, oldest first; files that were put aside are PATH.1 (the newest), PATH.2, and so on. Every record
has a `sequence` that goes on over restarts of the daemon, and in `previous` the SHA-256 of the line before it: a record
that was changed, added or taken out shows in the next one. Whoever could write the files anew, all of them from some
record on, cannot be found out by them alone; the system's journal has every record too.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

from sev.errors import MalformedInput, UsageError
from sev.records import field, mutable_record, record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import BinaryIO

DEFAULT_FILE = "/var/lib/sevd/audit.jsonl"
"""Where the daemon keeps it if it is told nothing else."""

RESULTS = ("done", "refused", "failed", "cancelled", "unknown")
"""How a call can end; unknown: the daemon ended first."""

LINE_BYTES = 256 << 10
"""Longest line; what is longer was not written by the daemon."""

_PIECE_BYTES = 64 << 10

_NUMBER = re.compile(r"\.([1-9][0-9]{0,3})")


@record
class AuditRecord:
    """One record.

    Attributes:
        line: The line in the trail; what was cut off in the middle is no JSON.
        facts: Its keys and values; empty for a line that is no record.
    """

    line: str
    facts: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def parse(cls, line: str) -> AuditRecord:
        """The record of a line, whatever it is."""
        try:
            found = json.loads(line) if len(line) <= LINE_BYTES else None
        except (ValueError, RecursionError):
            found = None
        return cls(line, found if isinstance(found, dict) else {})

    @classmethod
    def decode(cls, line: bytes) -> AuditRecord:
        """The same of a line as it lies in the file, without its line break."""
        return cls.parse(line.decode("utf-8", "replace"))

    @property
    def sequence(self) -> int:
        """Its number; 0 if it has none."""
        number = self.facts.get("sequence")
        return number if isinstance(number, int) and not isinstance(number, bool) else 0

    @property
    def time(self) -> str:
        """When, RFC 3339 in UTC; empty if it does not say."""
        return self._text("time")

    @property
    def caller(self) -> str:
        """Who, such as "uid:1000"; empty if that is not known."""
        who = self.facts.get("caller")
        return str(who.get("owner", "")) if isinstance(who, dict) else ""

    @property
    def method(self) -> str:
        """What was called; of a refused connection "connection"."""
        return self._text("method") or self._text("what")

    @property
    def result(self) -> str:
        """How it ended."""
        return self._text("result")

    def document(self) -> dict[str, object]:
        """The JSON form: the record itself; of a line that is none {"unreadable": line}."""
        return dict(self.facts) if self.facts else {"unreadable": self.line}

    def _text(self, key: str) -> str:
        value = self.facts.get(key)
        return value if isinstance(value, str) else ""


@record
class AuditFilter:
    """Which records are wanted; what is empty does not matter.

    Attributes:
        since: At this time or later.
        until: Before this time.
        method: "Service/Method", or either half.
        caller: The owner, the systemd unit, the uid, or a name in the certificate.
        result: One of RESULTS.
        request_id: The id of the call, or the name that its connection had (which the ids of its changes begin with).
        target: The guest.
    """

    since: datetime | None = None
    until: datetime | None = None
    method: str = ""
    caller: str = ""
    result: str = ""
    request_id: str = ""
    target: str = ""

    def __post_init__(self) -> None:
        """Raises UsageError for a result that no record has."""
        if self.result and self.result not in RESULTS:
            raise UsageError(f"result: {self.result!r:.40}, expected one of {', '.join(RESULTS)}", field="result")

    @property
    def everything(self) -> bool:
        """Whether nothing is left out, lines that are no records included."""
        return self == AuditFilter()

    def admits(self, one: AuditRecord) -> bool:
        """Whether the record is wanted."""
        facts = one.facts
        if not facts:
            return self.everything
        return (
            (self.since is None or one.time >= stamp(self.since))
            and (self.until is None or one.time < stamp(self.until))
            and (not self.method or self.method in (one.method, *one.method.split("/")))
            and (not self.caller or self.caller in _names(facts.get("caller")))
            and (not self.result or one.result == self.result)
            and (not self.target or facts.get("target") == self.target)
            and (not self.request_id or _is_named(str(facts.get("request_id", "")), self.request_id))
        )


def stamp(moment: datetime) -> str:
    """A time as records have it: to be compared as text."""
    from datetime import UTC

    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def open_files(path: str) -> list[BinaryIO]:
    """The files of a trail, oldest first, all opened: what is put aside meanwhile is read once and no file twice.

    Raises:
        OSError: The files cannot be read; a trail without any file is not there.
    """
    folder, name = os.path.split(path)
    numbers = []
    for entry in os.listdir(folder or "."):
        found = _NUMBER.fullmatch(entry[len(name) :]) if entry.startswith(name) else None
        if found:
            numbers.append(int(found[1]))
    out: list[BinaryIO] = []
    try:
        for one in (*(f"{path}.{number}" for number in sorted(numbers, reverse=True)), path):
            try:
                out.append(open(one, "rb"))  # noqa: SIM115 - closed by whoever reads
            except FileNotFoundError:
                continue
    except OSError:
        for file in out:
            file.close()
        raise
    if not out:
        raise FileNotFoundError(2, os.strerror(2), path)
    return out


def records(files: Iterable[BinaryIO]) -> Iterator[AuditRecord]:
    """Every line of the files as a record; closes each when it was read."""
    for file in files:
        with file:
            while line := file.readline(LINE_BYTES + 1):
                yield AuditRecord.decode(line.rstrip(b"\n"))


def newest_first(files: Sequence[BinaryIO]) -> Iterator[AuditRecord]:
    """Every line of the files as a record, the last one first; closes each when it was read.

    Read in pieces from the end, so that a few records cost little of a long trail.
    """
    for file in reversed(files):
        with file:
            rest, end = b"", file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - _PIECE_BYTES)
                file.seek(start)
                first, *lines = (file.read(end - start) + rest).split(b"\n")
                yield from (AuditRecord.decode(line) for line in reversed(lines) if line)
                rest, end = first[-LINE_BYTES:], start
            if rest:
                yield AuditRecord.decode(rest)


@mutable_record
class Findings:
    """What a look at the chain found.

    Attributes:
        count: Records.
        first: Number of the first record.
        last: Number of the last record.
        unchained: Records of an earlier version, which carry no hash.
        problems: Where it was changed, each as one sentence.
        notes: What is worth knowing and no change.
        head: SHA-256 of the last line, hex: with `last` it stands for the whole trail.
    """

    count: int = 0
    first: int = 0
    last: int = 0
    unchained: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    head: str = ""

    @property
    def intact(self) -> bool:
        """Whether nothing was changed."""
        return not self.problems

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "intact": self.intact,
            "records": self.count,
            "first": self.first,
            "last": self.last,
            "unchained": self.unchained,
            "head": self.head,
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def verify(trail: Iterable[AuditRecord]) -> Findings:
    """Follows the chain through a whole trail, oldest record first."""
    from hashlib import sha256

    out = Findings()
    torn = 0
    for one in trail:
        head = sha256(one.line.encode("utf-8", "replace")).hexdigest()
        previous, number = one.facts.get("previous"), one.sequence
        if not one.facts:
            torn += bool(one.line)
        elif previous is None:
            out.unchained += 1
        else:
            out.count += 1
            _follow(out, one, previous == out.head, torn)
            torn = 0
            out.first = out.first or number
            out.last = number
        if one.line:
            out.head = head
    if torn:
        out.notes.append(f"{torn} lines at the end are unfinished")
    return out


def _follow(out: Findings, one: AuditRecord, joined: bool, torn: int) -> None:
    """Adds what is wrong, or of note, between the line before and this record."""
    from hashlib import sha256

    number = one.sequence
    first = not out.head
    if first and one.facts.get("previous") != sha256(b"").hexdigest():
        out.notes.append(f"the trail begins with record {number}; files before it are gone")
    if not joined and not first:
        out.problems.append(
            f"record {number} ({one.time}): the line before it is not the one that it followed: "
            f"something was changed or taken out after record {out.last}"
        )
    elif torn:
        out.notes.append(f"before record {number}: {torn} unfinished lines, as a crash or a full disk leaves them")
    if out.last and number != out.last + 1 and joined:
        out.problems.append(
            f"record {number} ({one.time}) follows record {out.last}: those in between are in the system's journal "
            "alone, because the file could not be written"
            if number > out.last
            else f"record {number} ({one.time}) follows record {out.last}: the numbers went back"
        )
    if one.facts.get("what") == "trail":
        out.notes.append(f"record {number} ({one.time}): {one.facts.get('message')}")


def moment(text: str, now: datetime) -> datetime:
    """A time that a person names: RFC 3339, a date, or how long ago ("90s", "15m", "2h", "3d").

    Raises:
        MalformedInput: It is none of these.
    """
    from datetime import UTC, datetime, timedelta

    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    try:
        if unit in units and number.isascii() and number.isdigit() and len(number) < 8:
            return now - timedelta(seconds=int(number) * units[unit])
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise MalformedInput(
            f"{text!r:.60}: expected a time such as 2026-03-01T12:00:00Z, a date, or how long ago, such as 2h"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _names(who: object) -> set[str]:
    if not isinstance(who, dict):
        return set()
    names = who.get("names")
    return {str(who.get(key)) for key in ("owner", "unit", "uid") if who.get(key) is not None} | {
        str(one) for one in (names if isinstance(names, list) else ())
    }


def _is_named(request_id: str, wanted: str) -> bool:
    return request_id == wanted or request_id.startswith(f"{wanted}.")
