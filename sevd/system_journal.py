"""The system's journal, written in its own protocol: fields instead of a line.

One datagram to /run/systemd/journal/socket is one entry: `NAME=value` and a line break for each field; a value with a
line break in it is `NAME`, a line break, its length as 64 bits little-endian, the value, a line break
(systemd, "Native Journal Protocol"). An entry too large for a datagram travels as a sealed memfd (SCM_RIGHTS).
Names are capital letters, digits and underscores, not beginning with an underscore, which are the journal's own.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress

SOCKET = "/run/systemd/journal/socket"
"""Where the journal listens."""

SEND_SECONDS = 0.2
"""How long an entry waits for a journal that does not read: a journal that hangs must not hang the daemon."""

CUT_BYTES = 16 << 10
"""Longest value of an entry that is too large and for which there is no memfd."""


def is_stderr(environ: Mapping[str, str], descriptor: int = 2) -> bool:
    """Whether the descriptor leads to the journal: $JOURNAL_STREAM is its device and inode (systemd.exec(5)).

    The variable alone does not say so: it is inherited by programs whose stderr was put elsewhere.
    """
    device, colon, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
        return bool(colon) and (int(device), int(inode)) == (found.st_dev, found.st_ino)
    except (OSError, ValueError):
        return False


def encode(fields: Mapping[str, str]) -> bytes:
    """The fields as one entry."""
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts.append(b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(data)), data))
        else:
            parts.append(b"%b=%b\n" % (name.encode(), data))
    return b"".join(parts)


class SystemJournal:
    """A way to the journal. From any thread."""

    def __init__(self, path: str = SOCKET) -> None:
        """`path` is where the journal listens; it need not be there yet."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # Not settimeout: a datagram socket that is not connected is always writable, and it would spin.
        pause = struct.pack("ll", 0, int(SEND_SECONDS * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, pause)

    def send(self, fields: Mapping[str, str]) -> None:
        """Sends one entry.

        Raises:
            BlockingIOError: The journal does not read: the entry is lost.
            OSError: There is no journal, or it cannot be reached.
        """
        data = encode(fields)
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_large(fields, data)

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()

    def _send_large(self, fields: Mapping[str, str], data: bytes) -> None:
        try:
            memory = os.memfd_create("sevd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:  # not allowed here
            self._socket.sendto(encode({name: value[:CUT_BYTES] for name, value in fields.items()}), self._path)
            return
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(memory, view) :]
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))]
            self._socket.sendmsg([b""], rights, 0, self._path)
        finally:
            with suppress(OSError):
                os.close(memory)
