"""Which daemon is chosen, and what a name may look like."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev import target
from sev.errors import NotPermitted, Unreachable, UsageError


@pytest.mark.parametrize(
    ("text", "address", "path", "remote"),
    [
        ("/run/sevd/sevd.sock", "unix:/run/sevd/sevd.sock", "/run/sevd/sevd.sock", False),
        ("unix:/run/s", "unix:/run/s", "/run/s", False),
        ("unix:///run/s", "unix:/run/s", "/run/s", False),
        ("unix:rel.sock", "unix:rel.sock", "rel.sock", False),
        ("rel.sock", "unix:rel.sock", "rel.sock", False),
        ("a:b/c", "unix:a:b/c", "a:b/c", False),
        ("unix-abstract:name", "unix-abstract:name", None, False),
        ("dns:host.example:8443", "dns:host.example:8443", None, True),
        ("dns:///host.example:8443", "dns:///host.example:8443", None, True),
        ("ipv4:192.0.2.1:8443", "ipv4:192.0.2.1:8443", None, True),
        ("host.example:8443", "dns:host.example:8443", None, True),
    ],
)
def test_names(text: str, address: str, path: str | None, remote: bool) -> None:
    parsed = target.parse(text, "as asked for")
    assert (parsed.address, parsed.path, parsed.remote) == (address, path, remote)


@pytest.mark.parametrize(
    "text", ["", "  ", "unix:", "dns:", "dns:host:", "https://host", "a\0b", "/" + "x" * 107, "unix:/" + "é" * 60]
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        target.parse(text, "as asked for")
    assert caught.value.field == "socket"


def test_longest_path_is_taken() -> None:
    assert target.parse("/" + "x" * 106, "").path == "/" + "x" * 106


@pytest.mark.parametrize(
    ("uid", "there", "expected"),
    [
        (0, {"/run/sevd/admin.sock", "/run/sevd/sevd.sock"}, "/run/sevd/admin.sock"),
        (1000, {"/run/sevd/admin.sock", "/run/sevd/sevd.sock"}, "/run/sevd/sevd.sock"),
        (1000, {"/run/user/1000/sevd/sevd.sock"}, "/run/user/1000/sevd/sevd.sock"),
        (0, {"/run/user/0/sevd/sevd.sock"}, "/run/user/0/sevd/sevd.sock"),
        (1000, {"/run/sevd/sevd.sock", "/run/user/1000/sevd/sevd.sock"}, "/run/sevd/sevd.sock"),
    ],
)
def test_default_order(uid: int, there: set[str], expected: str) -> None:
    assert target.choose(None, {}, uid, there.__contains__).path == expected


def test_runtime_directory_of_the_user() -> None:
    chosen = target.choose(None, {"XDG_RUNTIME_DIR": "/r"}, 1000, lambda path: path == "/r/sevd/sevd.sock")
    assert chosen.path == "/r/sevd/sevd.sock"


def test_explicit_before_environment_before_default() -> None:
    environ = {"SEVD_SOCKET": "/env"}
    assert target.choose("/asked", environ, 0, lambda path: True).path == "/asked"
    from_environment = target.choose(None, environ, 0, lambda path: True)
    assert from_environment.path == "/env"
    assert from_environment.why == "$SEVD_SOCKET"


def test_empty_environment_counts_as_unset() -> None:
    assert target.choose(None, {"SEVD_SOCKET": ""}, 1, lambda path: True).path == "/run/sevd/sevd.sock"


def test_none_there_names_both() -> None:
    with pytest.raises(Unreachable, match=r"/run/sevd/sevd\.sock.*/run/user/7/sevd/sevd\.sock") as caught:
        target.choose(None, {}, 7, lambda path: False)
    assert "sev demo" in caught.value.remedy


def test_probe_tells_errnos(tmp_path: Path) -> None:
    missing = target.parse(str(tmp_path / "none"), "")
    assert missing.probe() == errno.ENOENT
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(stale))
    assert target.parse(str(stale), "").probe() == errno.ECONNREFUSED
    alive = tmp_path / "alive"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(alive))
        bound.listen(1)
        assert target.parse(str(alive), "").probe() == 0
    assert target.parse("dns:host:1", "").probe() == 0


def test_refusals(tmp_path: Path) -> None:
    one = target.parse(str(tmp_path / "x"), "as asked for")
    assert isinstance(one.refusal(errno.EACCES), NotPermitted)
    assert isinstance(one.refusal(errno.ENOENT), Unreachable)
    assert one.refusal(0) is None
    assert one.refusal(errno.EAGAIN) is None
    (tmp_path / "x").write_text("no socket")
    plain = one.refusal(errno.ECONNREFUSED)
    assert isinstance(plain, Unreachable)
    assert "not a socket" in plain.message


def test_probe_without_permission(tmp_path: Path) -> None:
    """A socket that this user may not open; root becomes somebody else for it, in a child."""
    path = tmp_path / "closed"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        bound.listen(1)
        path.chmod(0)
        one = target.parse(str(path), "")
        if os.geteuid() != 0:
            assert one.probe() == errno.EACCES
            return
        child = os.fork()
        if not child:
            answer = 255
            try:
                os.setgroups([])
                os.setgid(61234)
                os.setuid(61234)
                answer = one.probe()
            finally:
                os._exit(answer)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EACCES


@given(
    st.text(max_size=200)
    | st.tuples(st.sampled_from(["unix:", "dns:", "ipv6:[", "unix-abstract:", "unix:///"]), st.text()).map("".join)
)
def test_any_word_is_a_target_or_a_usage_error(text: str) -> None:
    try:
        parsed = target.parse(text, "")
    except UsageError:
        return
    assert parsed.address
    if parsed.path is not None:
        assert 0 < len(os.fsencode(parsed.path)) <= target.MAX_PATH
