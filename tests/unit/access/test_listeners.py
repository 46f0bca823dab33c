"""Sockets that are bound, replaced, refused, and taken from systemd."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from sev.errors import UsageError
from sevd.access.listeners import ADMIN, CLIENT, KINDS, MAX_PATH_BYTES, MONITOR, Listener, bind, passed
from sevd.access.roles import Role


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_every_kind_says_its_mode_and_roles() -> None:
    assert {kind.name: (kind.floor, kind.ceiling) for kind in KINDS.values()} == {
        "sevd": (Role.VIEWER, Role.ADMIN),
        "monitor": (Role.VIEWER, Role.VIEWER),
        "admin": (Role.ADMIN, Role.ADMIN),
        "fd": (Role.LAUNCHER, Role.ADMIN),
        "metrics": (Role.VIEWER, Role.VIEWER),
        "mtls": (Role.VIEWER, Role.ADMIN),
    }
    assert all(not kind.group_mode & 0o007 and kind.own_mode == 0o600 for kind in KINDS.values())


def test_a_socket_without_a_group_is_the_owner_s_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        listener = bind(tmp_path / "s", CLIENT)
    finally:
        os.umask(umask)
    assert mode(tmp_path / "s") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    listener.close()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("kind", "expected"), [(CLIENT, 0o660), (MONITOR, 0o660), (ADMIN, 0o600)])
def test_a_socket_with_a_group(tmp_path: Path, kind: object, expected: int) -> None:
    assert kind in (CLIENT, MONITOR, ADMIN)
    listener = bind(tmp_path / "s", kind, group=os.getegid())
    assert mode(tmp_path / "s") == expected
    assert os.lstat(tmp_path / "s").st_gid == os.getegid()
    listener.close()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    listener = bind(tmp_path / "s", CLIENT)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
    listener.close()


def test_a_socket_where_somebody_answers_is_refused_and_left_alone(tmp_path: Path) -> None:
    first = bind(tmp_path / "s", CLIENT)
    before = os.lstat(tmp_path / "s").st_ino
    with pytest.raises(UsageError, match="another daemon answers"):
        bind(tmp_path / "s", CLIENT)
    assert os.lstat(tmp_path / "s").st_ino == before
    first.close()


def test_a_full_backlog_counts_as_an_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(tmp_path / "s"))
        busy.listen(0)
        waiting = []
        for _ in range(4):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            client.connect_ex(str(tmp_path / "s"))
            waiting.append(client)
        with pytest.raises(UsageError, match="another daemon answers"):
            bind(tmp_path / "s", CLIENT)
        for client in waiting:
            client.close()


@pytest.mark.parametrize("what", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_refused_and_left_alone(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no socket"):
        bind(path, CLIENT)
    assert os.path.lexists(path)


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"at most {MAX_PATH_BYTES}"):
        bind(tmp_path / ("x" * 200), CLIENT)
    with pytest.raises(UsageError, match="No such file"):
        bind(tmp_path / "absent" / "s", CLIENT)


def test_the_longest_path_works(tmp_path: Path) -> None:
    room = MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1
    path = tmp_path / ("s" * room)
    listener = bind(path, CLIENT)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


def test_closing_leaves_the_path_of_a_newer_daemon(tmp_path: Path) -> None:
    first = bind(tmp_path / "s", CLIENT)
    first.socket.close()
    second = bind(tmp_path / "s", CLIENT)
    first.close()
    assert (tmp_path / "s").exists()
    second.close()
    second.close()


def environment(count: object, names: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names}


def listening(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    out = socket.socket(socket.AF_UNIX, kind)
    out.bind(str(path))
    if kind == socket.SOCK_STREAM:
        out.listen()
    return out


def in_a_row(sockets: list[socket.socket]) -> int:
    """Moves sockets to neighbouring descriptors; the first of them."""
    first = 200
    for index, one in enumerate(sockets):
        os.dup2(one.fileno(), first + index)
        one.close()
    return first


def test_sockets_of_systemd_go_by_name_not_by_order(tmp_path: Path) -> None:
    first = in_a_row([listening(tmp_path / "a"), listening(tmp_path / "b"), listening(tmp_path / "c")])
    found = passed(environment(3, "admin.socket:sevd:monitor"), first=first)
    assert [listener.kind for listener in found] == [ADMIN, CLIENT, MONITOR]
    assert all(not listener.socket.get_inheritable() and not listener.socket.getblocking() for listener in found)
    for listener in found:
        listener.close()
    assert (tmp_path / "a").exists()


def test_sockets_for_another_process_are_not_ours() -> None:
    assert passed({}) == []
    assert passed({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []


@pytest.mark.parametrize(
    ("names", "says"),
    [("what", "expected sevd, monitor, admin"), ("", "expected sevd"), ("sevd:sevd", "two sockets")],
    ids=["unknown name", "no name", "twice"],
)
def test_names_that_are_none(tmp_path: Path, names: str, says: str) -> None:
    first = in_a_row([listening(tmp_path / "a"), listening(tmp_path / "b")])
    taken: list[Listener] = []
    with pytest.raises(UsageError, match=says):
        taken = passed(environment(2, names), first=first)
    assert taken == []
    for descriptor in (first, first + 1):
        try:
            os.close(descriptor)
        except OSError:
            continue


@pytest.mark.parametrize("count", ["-1", "x", "99999999", ""])
def test_counts_that_are_none(count: str) -> None:
    with pytest.raises(UsageError, match="LISTEN_FDS"):
        passed(environment(count, "sevd"))


def test_descriptors_that_are_no_listening_stream_sockets(tmp_path: Path) -> None:
    first = in_a_row([listening(tmp_path / "d", socket.SOCK_DGRAM)])
    with pytest.raises(UsageError, match="no listening Unix stream socket"):
        passed(environment(1, "sevd"), first=first)
    os.close(first)
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(UsageError, match="is no socket"):
        passed(environment(1, "sevd"), first=file)
    os.close(file)
