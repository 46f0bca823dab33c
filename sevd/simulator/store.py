"""Files of the simulated chip: written whole or not at all, checked when read, never silently replaced.

Every file is written under a temporary name in the same directory, synced, and renamed; private ones have mode 0600
from the start. JSON documents carry a format number and a checksum of their own; other files count once a document
lists their SHA-256. What does not check out is a CorruptState error that names the file; it is moved away only by
`set_aside`, on somebody's explicit wish.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from pathlib import Path

from sev.errors import MalformedInput, NotNow, UsageError
from sevd import durable

FORMAT = 1
"""Format number of the documents; a larger one is refused, since a newer program wrote it."""

SIZE_MAX = 1 << 20
"""No file of ours is larger; a larger one is damage, and is not read into memory."""


class CorruptState(MalformedInput):
    """The simulated chip's stored state is damaged or incomplete."""

    reason = "STATE_CORRUPT"

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path}: {what}",
            field=path.name,
            remedy=f"Restore {path.parent} from a backup, or move it away for the simulator to make a new chip.",
        )


class NotStored(NotNow):
    """The simulated chip's state cannot be written; what was stored before is still there."""

    reason = "STATE_NOT_STORED"
    default_remedy = "Free space on the disk, or make the directory writable, and try again."


def write(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Puts `data` in place of the file at once: readers see the old bytes or the new, also after a power loss.

    Raises:
        NotStored: The disk is full, or the directory cannot be written to.
    """
    try:
        durable.write(path, data, 0o600 if secret else 0o644)
    except OSError as error:
        raise NotStored(f"{path}: cannot be written: {error.strerror or error}", field="state_dir") from None


def read(path: Path, digest: str | None = None) -> bytes:
    """The bytes of a file, compared with their SHA-256 (hex) where one is given.

    Raises:
        CorruptState: It is missing, too large, or not what was written.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_MAX + 1)
    except FileNotFoundError:
        raise CorruptState(path, "the file is missing") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", field="state_dir") from None
    if len(data) > SIZE_MAX:
        raise CorruptState(path, f"the file is larger than {SIZE_MAX} bytes")
    if digest is not None and not hmac.compare_digest(hashlib.sha256(data).hexdigest(), digest):
        raise CorruptState(path, "the contents do not match the checksum recorded for them")
    return data


def write_document(path: Path, document: dict[str, object], *, secret: bool = False) -> None:
    """Stores a JSON object with format number and checksum."""
    body: dict[str, object] = {"format": FORMAT, **document}
    write(path, _encode({**body, "checksum": _checksum(body)}), secret=secret)


def read_document(path: Path) -> dict[str, object]:
    """A JSON object stored by `write_document`, without format and checksum.

    Raises:
        CorruptState: It is missing, no such document, or its checksum is wrong.
        UsageError: A newer program wrote it.
    """
    data = read(path)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise CorruptState(path, "the file is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise CorruptState(path, "the file has no format number")
    if document["format"] > FORMAT:
        raise UsageError(
            f"{path}: format {document['format']} was written by a newer version; this one knows up to {FORMAT}",
            field="state_dir",
            remedy="Use the newer version, or another state directory.",
        )
    checksum = document.pop("checksum", None)
    if not isinstance(checksum, str) or not hmac.compare_digest(checksum.encode(), _checksum(document).encode()):
        raise CorruptState(path, "the contents do not match their checksum")
    del document["format"]
    return document


def hex_field(document: dict[str, object], path: Path, name: str, size: int) -> bytes:
    """A byte string of a document, `size` bytes long.

    Raises:
        CorruptState: It is missing or of another size.
    """
    value = document.get(name)
    if isinstance(value, str):
        try:
            data = bytes.fromhex(value)
        except ValueError:
            data = b""
        if len(data) == size:
            return data
    raise CorruptState(path, f"the field {name} is not {size} bytes in hexadecimal")


def set_aside(directory: Path) -> Path:
    """Moves a chip's directory out of the way, beside itself, and answers its new path; nothing is deleted."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = directory.with_name(f"{directory.name}.aside-{stamp}-{secrets.token_hex(3)}")
    durable.disk.rename(directory, target)
    durable.sync_directory(directory.parent)
    return target


def _encode(document: dict[str, object]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _checksum(document: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
