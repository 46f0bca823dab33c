"""When a call is tried again, and what it means when not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sev import errors, target
from sev.calls import CLOSED_PROBES, RECONNECT_SECONDS, Attempts, Call, Failure

UNAVAILABLE = Failure("UNAVAILABLE", "connection reset")


class _Target(target.Target):
    """A target whose probe answers what the test says."""

    __slots__ = ("number", "waits")

    def __init__(self, number: int, path: str = "/run/x") -> None:
        super().__init__(f"unix:{path}", path, "as asked for")
        self.number = number
        self.waits: list[float] = []

    def probe(self, seconds: float = target.PROBE_SECONDS) -> int:
        self.waits.append(seconds)
        return self.number


class _Empty:
    def SerializeToString(self) -> bytes:
        return b""


def _call(*, repeatable: bool = True, seconds: float = 0.0, request_id: str = "") -> Call[object]:
    return Call("S/M", _Empty(), object, repeatable=repeatable, seconds=seconds, request_id=request_id)


def _attempts(
    number: int = 0, *, seen: bool = False, call: Call[object] | None = None, path: str = "/run/x"
) -> Attempts:
    return Attempts(call or _call(), _Target(number, path), 5.0, 100.0, seen=seen)


def test_unavailable_is_tried_again_until_the_timeout() -> None:
    attempts = _attempts()
    assert attempts.after(UNAVAILABLE, 100.0) == RECONNECT_SECONDS
    assert attempts.after(UNAVAILABLE, 104.9) == RECONNECT_SECONDS
    with pytest.raises(errors.Unreachable, match="waited 5 s"):
        attempts.after(UNAVAILABLE, 105.0)


def test_a_daemon_that_has_answered_before_is_looked_at_briefly_and_now_and_then_closely() -> None:
    one = _Target(0)
    attempts = Attempts(_call(), one, 5.0, 100.0, seen=True)
    for _ in range(8):
        attempts.after(UNAVAILABLE, 100.0)
    assert one.waits == [0, 0, 0, target.PROBE_SECONDS] * 2


@pytest.mark.parametrize("seen", [True, False])
def test_a_daemon_that_closes_is_looked_at_closely_until_it_is_sure(seen: bool) -> None:
    attempts = Attempts(_call(), one := _Target(0), 5.0, 100.0, seen=seen)
    for number in [0, 0, 0, *[errno.ECONNABORTED] * (CLOSED_PROBES - 1)]:
        one.number = number
        attempts.after(UNAVAILABLE, 100.0)
    with pytest.raises(errors.NotPermitted):
        attempts.after(UNAVAILABLE, 100.0)
    assert one.waits[-CLOSED_PROBES:] == [target.PROBE_SECONDS] * CLOSED_PROBES


def test_a_daemon_that_was_never_heard_of_is_looked_at_closely_first() -> None:
    attempts = Attempts(_call(), one := _Target(0), 5.0, 100.0, seen=False)
    for _ in range(4):
        attempts.after(UNAVAILABLE, 100.0)
    assert one.waits == [target.PROBE_SECONDS, 0, 0, target.PROBE_SECONDS]


def test_refused_is_waited_for() -> None:
    attempts = _attempts(errno.ECONNREFUSED)
    assert attempts.after(UNAVAILABLE, 100.0) == RECONNECT_SECONDS
    with pytest.raises(errors.Unreachable, match="Connection refused") as caught:
        attempts.after(UNAVAILABLE, 106.0)
    assert caught.value.errno == errno.ECONNREFUSED


def test_no_socket_is_told_at_once() -> None:
    with pytest.raises(errors.Unreachable, match="no such socket"):
        _attempts(errno.ENOENT).after(UNAVAILABLE, 100.0)


def test_a_socket_that_was_there_is_a_restart() -> None:
    attempts = _attempts(errno.ENOENT, seen=True)
    assert attempts.after(UNAVAILABLE, 100.0) == RECONNECT_SECONDS
    with pytest.raises(errors.Unreachable):
        attempts.after(UNAVAILABLE, 105.0)


def test_no_permission_is_told_at_once() -> None:
    with pytest.raises(errors.NotPermitted):
        _attempts(errno.EACCES).after(UNAVAILABLE, 100.0)


def test_a_plain_file_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.Unreachable, match="not a socket"):
        _attempts(errno.ECONNREFUSED, path=str(tmp_path / "file")).after(UNAVAILABLE, 100.0)


def test_what_cannot_be_repeated_is_not() -> None:
    with pytest.raises(errors.Unreachable):
        _attempts(call=_call(repeatable=False)).after(UNAVAILABLE, 100.0)


def test_a_call_that_a_stopping_daemon_drops_is_tried_again_until_the_timeout() -> None:
    dropped = Failure("CANCELLED", "CANCELLED")
    assert _attempts().after(dropped, 100.0) == RECONNECT_SECONDS
    with pytest.raises(errors.NotNow):
        _attempts().after(dropped, 105.0)
    with pytest.raises(errors.NotNow):
        _attempts(call=_call(repeatable=False)).after(dropped, 100.0)


@pytest.mark.parametrize("details", ["Channel closed!", "Locally cancelled by application!"])
def test_a_call_that_was_cancelled_here_is_not_tried_again(details: str) -> None:
    with pytest.raises(errors.NotNow):
        _attempts().after(Failure("CANCELLED", details), 100.0)


@pytest.mark.parametrize("code", ["INTERNAL", "NOT_FOUND", "ABORTED", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"])
def test_nothing_else_is_tried_again(code: str) -> None:
    with pytest.raises(errors.SevError):
        _attempts().after(Failure(code, "no"), 100.0)


def test_deadline_is_not_now() -> None:
    attempts = _attempts(call=_call(seconds=60.0, request_id="r"))
    assert attempts.seconds == 65.0
    with pytest.raises(errors.NotNow, match="no answer within 65 s") as caught:
        attempts.after(Failure("DEADLINE_EXCEEDED", ""), 165.0)
    assert type(caught.value) is errors.NotNow
    assert caught.value.request_id == "r"
    assert "not known" in caught.value.remedy


def test_a_lost_stream_says_so() -> None:
    lost = _attempts().lost(UNAVAILABLE)
    assert isinstance(lost, errors.Unreachable)
    assert "again" in lost.remedy
    assert isinstance(_attempts().lost(Failure("NOT_FOUND", "x")), errors.NotFound)


def test_a_daemon_that_closes_at_once_again_and_again_does_not_admit() -> None:
    attempts = _attempts(errno.ECONNABORTED)
    assert attempts.after(UNAVAILABLE, 100.0) == RECONNECT_SECONDS
    assert attempts.after(UNAVAILABLE, 100.1) == RECONNECT_SECONDS
    with pytest.raises(errors.NotPermitted, match="no role"):
        attempts.after(UNAVAILABLE, 100.2)
