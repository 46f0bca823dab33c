"""The index of the store: which object stands for which name, and where it came from.

A text file: the SHA-256 of everything after the first line, then JSON. It is written whole or not at all. Lost or
damaged it can be made again from the objects, but for what is known of their origin.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sev.errors import MalformedInput
from sev.records import record
from sevd import durable

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
"""A larger one was written by a newer program."""

INDEX_BYTES = 1 << 20
"""Largest index."""

ENTRIES_MAX = 1024
"""Most names; the store keeps fewer."""

NAME = re.compile(
    r"[a-z]{2,20}/(?:ark|ask|asvk|crl|vlek-[0-9a-f]{16}|(?:[0-9a-f]{2}){8,64}/vcek-[0-9a-f]{16}|[0-9a-f]{128}/cek)"
)
"""A product, then what it is; for a VCEK and a CEK the chip between them."""

_OBJECT = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[a-z]{1,16}")
_VALIDATOR_MAX = 256


@record
class Entry:
    """What is known of one object.

    Attributes:
        digest: SHA-256 of its content, hex, which is the name of its file.
        origin: Where it came from: "import", "offline", "kds".
        fetched: When; None: not known.
        etag: The validator that the service gave for it; empty for none.
        modified: The service's Last-Modified; empty for none.
    """

    digest: str
    origin: str = "import"
    fetched: datetime | None = None
    etag: str = ""
    modified: str = ""


def read(path: Path) -> dict[str, Entry]:
    """Entries by name.

    Raises:
        FileNotFoundError: There is no index.
        OSError: It cannot be read.
        MalformedInput: It is damaged, or of a newer format.
    """
    with path.open("rb") as file:
        data = file.read(INDEX_BYTES + 1)
    digest, newline, body = data.partition(b"\n")
    if not newline or len(data) > INDEX_BYTES:
        raise MalformedInput("it is no index")
    if not hmac.compare_digest(digest, hashlib.sha256(body).hexdigest().encode()):
        raise MalformedInput("its content does not match its checksum")
    try:
        document = json.loads(body)
        if document["format"] != FORMAT:
            raise MalformedInput(f"it has the format {document['format']!r:.20}, expected {FORMAT}")
        entries = {name: _entry(found) for name, found in document["entries"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise MalformedInput("it is no index") from None
    for name in entries:
        if not NAME.fullmatch(name):
            raise MalformedInput(f"it has an entry {name[:40]!r}")
    return entries


def write(path: Path, entries: dict[str, Entry]) -> None:
    """Puts an index in place of what is there. Raises OSError."""
    body = json.dumps(
        {"format": FORMAT, "entries": {name: _document(entries[name]) for name in sorted(entries)}}, indent=1
    ).encode()
    durable.write(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body, 0o644)


def _document(entry: Entry) -> dict[str, str]:
    fetched = "" if entry.fetched is None else entry.fetched.astimezone(UTC).isoformat(timespec="seconds")
    found = {
        "object": entry.digest,
        "origin": entry.origin,
        "fetched": fetched,
        "etag": entry.etag,
        "modified": entry.modified,
    }
    return {name: text for name, text in found.items() if text}


def _entry(found: dict[str, object]) -> Entry:
    """Raises ValueError, LookupError, TypeError."""
    texts = {name: text for name, text in found.items() if isinstance(text, str) and len(text) <= _VALIDATOR_MAX}
    if not _OBJECT.fullmatch(texts["object"]) or not _WORD.fullmatch(texts["origin"]):
        raise ValueError
    moment = datetime.fromisoformat(texts["fetched"]) if "fetched" in texts else None
    if moment is not None and moment.tzinfo is None:
        raise ValueError
    return Entry(texts["object"], texts["origin"], moment, texts.get("etag", ""), texts.get("modified", ""))
