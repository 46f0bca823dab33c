"""Which sockets the daemon listens on: those that systemd passed, else those of the configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from sev.errors import UsageError
from sevd.access.listeners import (
    ADMIN,
    CLIENT,
    FD,
    MAX_PATH_BYTES,
    METRICS,
    MONITOR,
    MTLS,
    REMOTE_BACKLOG,
    Kind,
    Listener,
    bind,
    passed,
)
from sevd.access.policy import gid_of
from sevd.config import Settings

log = logging.getLogger(__name__)


def sockets(settings: Settings, environ: Mapping[str, str]) -> list[Listener]:
    """All listeners, listening already.

    Raises:
        UsageError: A path cannot be bound, or what systemd passed cannot be used. What was bound is closed again.
    """
    given = passed(environ)
    if given:
        return _with_metrics(_with_remote(given, settings), settings)
    group = gid_of(settings.socket_group) if os.geteuid() == 0 and settings.socket_group else None
    wanted: list[tuple[Path | None, Kind]] = [
        (settings.socket, CLIENT),
        (settings.monitor_socket, MONITOR),
        (settings.admin_socket, ADMIN),
        (settings.fd_socket, FD),
    ]
    out: list[Listener] = []
    try:
        for path, kind in wanted:
            if kind is FD and path is not None and len(os.fsencode(path)) > MAX_PATH_BYTES:
                # It stands beside another socket, whose own path may be as long as can be.
                log.warning("no descriptors are passed: %s is too long for a socket's path", path)
            elif path is not None:
                _make_directory(path.parent)
                out.append(bind(path, kind, group=group if kind is not ADMIN else None))
    except UsageError:
        for listener in out:
            listener.close()
        raise
    if all(listener.kind is FD for listener in out):
        for listener in out:
            listener.close()
        raise UsageError("no socket to listen on", field="socket", remedy="Name one with --socket.")
    return _with_metrics(_with_remote(out, settings), settings)


def _with_remote(listeners: list[Listener], settings: Settings) -> list[Listener]:
    """The listeners, and that of remote callers: passed, configured, or none. Raises UsageError as `sockets`."""
    given = next((one for one in listeners if one.kind is MTLS), None)
    if given is not None:
        given.socket.listen(REMOTE_BACKLOG)
    if given is not None or not settings.remote_listen:
        return listeners
    # Loaded where there are remote callers alone.
    from sevd import remote_listening

    try:
        return [*listeners, remote_listening.listen(settings.remote_listen)]
    except UsageError:
        for listener in listeners:
            listener.close()
        raise


def _with_metrics(listeners: list[Listener], settings: Settings) -> list[Listener]:
    """The listeners, and that of metrics: passed, configured, or none. Raises UsageError as `sockets`."""
    try:
        found = next((one for one in listeners if one.kind is METRICS), None)
        if found is None and not settings.metrics_listen:
            return listeners
        # Loaded where metrics are served alone.
        from sevd.metrics import serving

        serving.check_library()
        if found is None:
            return [*listeners, Listener(serving.listen(settings.metrics_listen), METRICS)]
        serving.check_loopback(found.socket)
    except UsageError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _make_directory(path: Path) -> None:
    """Makes the runtime directory of the default sockets; any other must be there already."""
    if path.name != "sevd":
        return
    try:
        path.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path}: {os.strerror(error.errno or 0)}",
            field="socket",
            remedy="Name a socket in a directory that is there with --socket.",
        ) from None
