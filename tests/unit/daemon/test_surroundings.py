"""The service manager, the log, the state directory, and the sockets of a configuration."""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from sev.errors import UsageError
from sevd import listening
from sevd.config import Settings
from sevd.logs import LineFormatter
from sevd.notify import Notifier
from sevd.state import StateDirectory


def test_the_manager_is_told_by_datagram(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "n")})
        notifier.ready("all\nwell")
        assert manager.recv(1000) == b"READY=1\nSTATUS=all well"
        notifier.status("x")
        assert manager.recv(1000) == b"STATUS=x"
        notifier.stopping()
        assert manager.recv(1000) == b"STOPPING=1\nSTATUS=stopping"
        notifier.alive()
        assert manager.recv(1000) == b"WATCHDOG=1"
        notifier.reloading()
        assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_an_abstract_manager_and_none_at_all(caplog: pytest.LogCaptureFixture) -> None:
    name = f"sevd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).alive()
        assert manager.recv(100) == b"WATCHDOG=1"
    Notifier({}).ready("nobody hears")
    assert caplog.text == ""
    Notifier({"NOTIFY_SOCKET": "/nonexistent"}).alive()
    assert "cannot be told" in caplog.text


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_the_watchdog_s_patience(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog_seconds == seconds


def record(message: str, *, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("sevd.x", logging.ERROR, __file__, 1, message, (), info)


@pytest.mark.parametrize("journal", [True, False])
def test_a_record_is_one_line_whatever_is_in_it(journal: bool) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as caught:
        line = LineFormatter(journal=journal).format(record("a\r\nb\x1b[31m\u2028c", error=caught))
    assert line.isprintable()
    assert "a\\r\\nb\\x1b" in line
    assert "ValueError: two\\nlines" in line
    assert line.startswith("<3>") if journal else " error sevd.x: " in line


def test_a_state_directory_is_private_and_locked(tmp_path: Path) -> None:
    path = tmp_path / "a" / "state"
    with StateDirectory(path) as state:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(path / "lock").st_mode) == 0o600
        with pytest.raises(UsageError, match="another daemon uses"):
            StateDirectory(path)
        folder = state.folder("x")
        os.chmod(folder, 0o755)
        assert stat.S_IMODE(os.stat(state.folder("x")).st_mode) == 0o700
    StateDirectory(path).close()


def test_a_state_directory_where_others_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir()
    os.chmod(path, 0o777)
    with pytest.raises(UsageError, match="another user may write") as caught:
        StateDirectory(path)
    assert caught.value.field == "state_dir"


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="File exists"):
        StateDirectory(tmp_path / "file")


def test_the_sockets_of_a_configuration(tmp_path: Path) -> None:
    settings = Settings(socket=tmp_path / "a", monitor_socket=tmp_path / "b", admin_socket=tmp_path / "c")
    found = listening.sockets(settings, {})
    assert [listener.kind.name for listener in found] == ["sevd", "monitor", "admin"]
    assert stat.S_IMODE(os.stat(tmp_path / "c").st_mode) == 0o600
    for listener in found:
        listener.close()


def test_one_bad_socket_leaves_none_behind(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("precious")
    with pytest.raises(UsageError, match="no socket"):
        listening.sockets(Settings(socket=tmp_path / "a", monitor_socket=tmp_path / "b"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_runtime_directory_is_made_and_no_other(tmp_path: Path) -> None:
    (listener,) = listening.sockets(Settings(socket=tmp_path / "sevd" / "s"), {})
    listener.close()
    with pytest.raises(UsageError, match="No such file"):
        listening.sockets(Settings(socket=tmp_path / "absent" / "s"), {})
    with pytest.raises(UsageError, match="no socket to listen on"):
        listening.sockets(Settings(), {})


def test_logs_go_to_stderr() -> None:
    from sevd import logs

    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        logs.set_up("warning", {})
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler, logging.StreamHandler)
        assert handler.stream is sys.stderr
        assert logging.getLogger().level == logging.WARNING
    finally:
        logging.getLogger().handlers[:], level = before
        logging.getLogger().setLevel(level)
