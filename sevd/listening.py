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
    out = passed(environ)
    try:
        if not out:
            _add_local(out, settings)
        _add_remote(out, settings)
        _add_metrics(out, settings)
    except UsageError:
        for listener in out:
            listener.close()
        raise
    return out


def _add_local(listeners: list[Listener], settings: Settings) -> None:
    """The sockets of the configuration. Raises UsageError as `sockets`."""
    group = gid_of(settings.socket_group) if os.geteuid() == 0 and settings.socket_group else None
    wanted: list[tuple[Path | None, Kind]] = [
        (settings.socket, CLIENT),
        (settings.monitor_socket, MONITOR),
        (settings.admin_socket, ADMIN),
        (settings.fd_socket, FD),
    ]
    for path, kind in wanted:
        if kind is FD and path is not None and len(os.fsencode(path)) > MAX_PATH_BYTES:
            # It stands beside another socket, whose own path may be as long as can be.
            log.warning("no descriptors are passed: %s is too long for a socket's path", path)
        elif path is not None:
            _make_directory(path.parent)
            listeners.append(bind(path, kind, group=group if kind is not ADMIN else None))
    if all(listener.kind is FD for listener in listeners):
        raise UsageError("no socket to listen on", field="socket", remedy="Name one with --socket.")


def _add_remote(listeners: list[Listener], settings: Settings) -> None:
    """The socket of remote callers: passed, configured, or none. Raises UsageError as `sockets`."""
    given = next((one for one in listeners if one.kind is MTLS), None)
    if given is not None:
        given.socket.listen(REMOTE_BACKLOG)
    elif settings.remote_listen:
        # Loaded where there are remote callers alone.
        from sevd import remote_listening

        listeners.append(remote_listening.listen(settings.remote_listen))


def _add_metrics(listeners: list[Listener], settings: Settings) -> None:
    """The socket of metrics: passed, configured, or none. Raises UsageError as `sockets`."""
    given = next((one for one in listeners if one.kind is METRICS), None)
    if given is None and not settings.metrics_listen:
        return
    # Loaded where metrics are served alone.
    from sevd.metrics import serving

    serving.check_library()
    if given is None:
        listeners.append(Listener(serving.listen(settings.metrics_listen), METRICS))
    else:
        serving.check_loopback(given.socket)


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
