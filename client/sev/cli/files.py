"""Files that commands read and write: bounded, named in every error, secrets for their owner only."""

from __future__ import annotations

import os
import stat
import sys

from sev.errors import UsageError

_CHUNK = 1 << 20
_BLOB_LIMIT = 1 << 16
"""Bytes of the largest file that may spell a few bytes in text."""


def read_file(path: str, what: str, limit: int) -> bytes:
    """The whole content of a file, or of stdin for `-`.

    Args:
        path: The path as the person wrote it.
        what: What it is in the sentence of an error, such as "the firmware image".
        limit: Most bytes to accept; nothing larger is held in memory.

    Raises:
        UsageError: It cannot be read, or is larger than `limit` bytes.
    """
    try:
        descriptor = sys.stdin.fileno() if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = _read_all(descriptor, limit)
        finally:
            if path != "-":
                os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unusable("read", what, path, error) from None
    if data is None:
        raise UsageError(f"{what} {path!r} is larger than {limit} bytes", remedy="Is it the right file?", field=path)
    return data


def read_secret(path: str, what: str, limit: int) -> bytes:
    """As `read_file`, for a key or a secret: from now on this process leaves no core."""
    _no_core()
    return read_file(path, what, limit)


def _read_all(descriptor: int, limit: int) -> bytes | None:
    """The content, of a regular file in one read and without a copy; None if it is larger than `limit` bytes."""
    facts = os.fstat(descriptor)
    size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    if size > limit:
        return None
    chunks, have = [], 0
    while chunk := os.read(descriptor, min(size or _CHUNK, limit + 1 - have)):
        chunks.append(chunk)
        have += len(chunk)
        if have > limit:
            return None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def read_bytes(word: str, what: str, size: int, *, files: bool = True, secret: bool = False) -> bytes:
    """`size` bytes from a file (raw, hex or base64), or else from the word itself in hex or base64.

    Args:
        word: A path, or the bytes spelled.
        what: What it is in the sentence of an error.
        size: How many bytes are expected.
        files: The word may be a path.
        secret: It must be one: the words of a command line are seen by every process.

    Raises:
        UsageError: It cannot be read, or is something else.
    """
    from sev.cli.values import decoded

    if secret:
        _no_core()
    if files and (secret or word == "-" or os.path.exists(word)):
        data = read_file(word, what, _BLOB_LIMIT)
        if len(data) == size:
            return data
        text = data.decode("ascii", "replace").strip()
    else:
        text = word.strip()
    found = decoded(text, size)
    if found is None:
        raise UsageError(f"{what}: expected {size} bytes, raw in a file, or in hex or base64", field=what)
    return found


def write_file(path: str, data: bytes, *, secret: bool = False) -> None:
    """Writes a whole file: complete under its name or not there at all.

    It is written under a temporary name beside `path` and renamed. What is there and is not a regular file (a pipe,
    a device, a symbolic link) is written through. A secret is 0600 from the start and never written through anything.

    Raises:
        UsageError: It cannot be written.
    """
    if secret:
        _no_core()
    try:
        mode = os.lstat(path).st_mode
        through = not stat.S_ISREG(mode)
    except (OSError, ValueError):
        through = False
    if through and secret:
        raise UsageError(
            f"{path}: is not a regular file, and secrets are written to nothing else",
            remedy="Name a new file in a directory of your own.",
            field=path,
        )
    try:
        if through:
            with open(path, "wb") as file:
                file.write(data)
            return
        _replace(path, data, 0o600 if secret else 0o666)
    except (OSError, ValueError) as error:
        raise _unusable("write", "", path, error) from None


def _replace(path: str, data: bytes, mode: int) -> None:
    temporary = f"{path}.{os.getpid()}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def hash_file(path: str, what: str) -> bytes:
    """SHA-256, 32 bytes, of a file of any size, or of stdin for `-`; read piece by piece.

    Raises:
        UsageError: It cannot be read.
    """
    from hashlib import sha256

    digest = sha256()
    try:
        descriptor = sys.stdin.fileno() if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while chunk := os.read(descriptor, _CHUNK):
                digest.update(chunk)
        finally:
            if path != "-":
                os.close(descriptor)
    except (OSError, ValueError) as error:
        raise _unusable("read", what, path, error) from None
    return digest.digest()


def _no_core() -> None:
    from sev.cores import no_core

    no_core()


def _unusable(verb: str, what: str, path: str, error: OSError | ValueError) -> UsageError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UsageError(f"cannot {verb} {what}{' ' if what else ''}{path!r}: {reason}", field=path)
