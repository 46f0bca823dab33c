"""Tells systemd how the daemon does: sd_notify(3) without libsystemd, one datagram per message."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """The service manager, if there is one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._watchdog = _microseconds(environ)

    @property
    def watchdog_seconds(self) -> float | None:
        """Seconds within which the manager wants a sign of life; None if it wants none."""
        return self._watchdog / 1e6 if self._watchdog else None

    def ready(self, status: str) -> None:
        """The daemon serves."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, waits_for: str = "", seconds: float = 0.0) -> None:
        """The daemon stops; it waits for this, and may do so for so long, whatever the manager's own patience is."""
        if waits_for:
            text = f"stopping, waiting for {_line(waits_for)}"
            self._send(f"STATUS={text}\nEXTEND_TIMEOUT_USEC={int((seconds + 15) * 1e6)}")
        else:
            self._send("STOPPING=1\nSTATUS=stopping")

    def alive(self) -> None:
        """A sign of life."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as manager:
            manager.setblocking(False)
            try:
                manager.sendto(text.encode(), self._address)
            except OSError as error:
                log.warning("the service manager cannot be told: %s", os.strerror(error.errno or 0))


def _line(text: str) -> str:
    """The text without line breaks, which would end the variable."""
    return " ".join(text.split())


def _microseconds(environ: Mapping[str, str]) -> int:
    """WATCHDOG_USEC, if it is meant for this process; else 0."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
