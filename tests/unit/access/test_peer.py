"""Who the kernel says is there; what is refused; other users for real where the tests run as root."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sev.errors import LimitReached, NotPermitted
from sevd.access import peer as module
from sevd.access.peer import Peer, peer_of


def connected(path: Path) -> tuple[socket.socket, socket.socket, socket.socket]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return listener, client, listener.accept()[0]


def test_this_process_is_recognised(tmp_path: Path) -> None:
    sockets = connected(tmp_path / "s")
    found = peer_of(sockets[2])
    assert (found.uid, found.gid, found.pid) == (os.geteuid(), os.getegid(), os.getpid())
    assert set(found.groups) == set(os.getgroups())
    assert found.alive()
    found.close()
    assert found.pidfd is None
    for one in sockets:
        one.close()


def test_a_tcp_socket_has_no_kernel_told_identity() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted, pytest.raises(NotPermitted, match="not one of a Unix socket"):
            peer_of(accepted)


class FakeSocket:
    """A socket whose options are as the test says: a value, or an errno."""

    def __init__(self, **options: Any) -> None:
        pid, uid, gid = options.get("credentials", (1, 1000, 1000))
        self.options = {
            socket.SO_DOMAIN: socket.AF_UNIX,
            socket.SO_PEERCRED: module._CREDENTIALS.pack(pid, uid, gid),
            module.SO_PEERGROUPS: options.get("groups", b""),
            module.SO_PEERPIDFD: options.get("pidfd", errno.ENOPROTOOPT),
        }
        self.failing = options.get("failing", (module.SO_PEERPIDFD,))

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        value = self.options[option]
        if option in self.failing:
            raise OSError(value, os.strerror(value))
        return value


def fake(**options: Any) -> Any:
    return FakeSocket(**options)


@pytest.mark.parametrize(
    ("credentials", "says"),
    [((0, 1000, 1000), "PID namespace"), ((1, 65534, 1000), "not mapped"), ((1, 0xFFFFFFFF, 1000), "not mapped")],
    ids=["pid 0", "overflow uid", "uid -1"],
)
def test_who_cannot_be_identified_is_refused(credentials: tuple[int, int, int], says: str) -> None:
    with pytest.raises(NotPermitted, match=says):
        peer_of(fake(credentials=credentials))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ESRCH, errno.ENODATA])
def test_a_peer_that_is_gone_is_refused(number: int) -> None:
    with pytest.raises(NotPermitted, match="gone"):
        peer_of(fake(pidfd=number))


def test_an_older_kernel_without_pidfds_serves_all_the_same() -> None:
    found = peer_of(fake(groups=b"\x05\x00\x00\x00\x07\x00\x00\x00"))
    assert found == Peer(1000, 1000, 1, (5, 7), None)
    assert found.alive()
    assert found.unit() == ""


def test_no_descriptor_left_is_a_limit_and_no_refusal() -> None:
    with pytest.raises(LimitReached):
        peer_of(fake(pidfd=errno.EMFILE))


def test_groups_of_an_older_kernel_are_none() -> None:
    both = (module.SO_PEERGROUPS, module.SO_PEERPIDFD)
    assert peer_of(fake(groups=errno.ENOPROTOOPT, failing=both)).groups == ()


def test_a_process_that_ended_is_seen() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = Peer(0, 0, child.pid, (), os.pidfd_open(child.pid))
    assert found.alive()
    child.communicate(b"\n")
    assert not found.alive()
    assert found.unit() == ""
    found.close()


CHILD = """
import os, socket, sys
path, uid, gid, groups = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(g) for g in sys.argv[4].split(",") if g]
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
s = socket.socket(socket.AF_UNIX); s.connect(path); s.recv(1)
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("uid", "gid", "groups"),
    [(61001, 61002, (61003, 61004)), (61001, 61002, ()), (61001, 61002, tuple(range(70000, 70300)))],
    ids=["some groups", "no groups", "more groups than a small buffer holds"],
)
def test_another_user_is_seen_as_such(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    need_root()
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        os.chmod(folder, 0o755)
        listener.bind(f"{folder}/s")
        os.chmod(f"{folder}/s", 0o666)
        listener.listen()
        arguments = [f"{folder}/s", str(uid), str(gid), ",".join(map(str, groups))]
        child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments])
        listener.settimeout(20)
        accepted, _ = listener.accept()
        found = peer_of(accepted)
        assert (found.uid, found.gid, found.pid, set(found.groups)) == (uid, gid, child.pid, set(groups))
        found.close()
        accepted.close()
        child.wait(10)


def need_root() -> None:
    if os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        pytest.fail("other users can be tried as root only, and this is the run that must try them")
    pytest.skip("other users can be tried as root only")
