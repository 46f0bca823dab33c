"""When to ask again: what a limit says of it crosses the wire and reaches the person."""

from __future__ import annotations

import pytest

from sev import packets
from sev.calls import Failure
from sev.cli.output import Output
from sev.errors import NEVER, LimitReached, NotFound, SevError
from sev.rpc_errors import DETAILS_KEY, from_failure
from sevd.api.faults import failure


def crossed(error: SevError) -> SevError:
    lost = failure(error)
    return from_failure(Failure(lost.code.name, lost.message, ((DETAILS_KEY, lost.details),)))


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        pytest.param(LimitReached("no more", retry_after=12.25), 12.25, id="known"),
        pytest.param(LimitReached("no more"), 1.0, id="not known"),
        pytest.param(LimitReached("never", retry_after=NEVER), None, id="it does not pass"),
        pytest.param(LimitReached("no ASID", errno=16), None, id="the host's limit"),
        pytest.param(NotFound("none"), None, id="no limit"),
    ],
)
def test_the_wait_crosses_the_wire(error: SevError, seconds: float | None) -> None:
    assert crossed(error).retry_after == seconds


@pytest.mark.parametrize("seconds", [NEVER, 1e9])
def test_a_wait_that_is_no_advice_is_left_out(seconds: float) -> None:
    assert crossed(LimitReached("no more", retry_after=seconds)).retry_after is None
    again = packets.error_from(packets.error_document(LimitReached("no more", retry_after=seconds)))
    assert again.retry_after is None


def test_it_crosses_the_socket_of_descriptors_too() -> None:
    again = packets.error_from(packets.error_document(LimitReached("no more", retry_after=2.5)))
    assert (type(again), again.retry_after) == (LimitReached, 2.5)


def test_people_are_not_told_to_wait_in_vain(capsys: pytest.CaptureFixture[str]) -> None:
    error = LimitReached("never", remedy="Ask for less.", retry_after=NEVER)
    Output().error(error)
    assert capsys.readouterr().err == "sev: never\n     Ask for less.\n"
    assert "retry_after_seconds" not in error.document()


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "in 1 s."), (12.25, "in 13 s."), (180.0, "in 3 min.")])
def test_people_are_told(seconds: float, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = LimitReached("no more", retry_after=seconds)
    Output().error(error)
    assert capsys.readouterr().err.endswith(f"Try again {words}\n")
    assert error.document()["retry_after_seconds"] == seconds
