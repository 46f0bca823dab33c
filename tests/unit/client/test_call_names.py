"""The names of a client's calls: what a connection's name becomes in reads and in changes."""

from __future__ import annotations

import asyncio
import re

import pytest

import sev
import sev.aio
from sev import calls
from sev.calls import NAME, NAME_CHARACTERS, Attempts, Call, check_name, new_request_id
from sev.errors import UsageError
from sev.target import Target

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Empty:
    def SerializeToString(self) -> bytes:
        return b""


def attempts(*, request_id: str = "", name: str = "") -> Attempts:
    call = Call("S/M", Empty(), object, request_id=request_id)
    return Attempts(call, Target("unix:/x", "/x", "test"), 5.0, 0.0, seen=False, name=name)


@pytest.mark.parametrize(
    ("request_id", "name", "expected"),
    [("field", "", "field"), ("", "name", "name"), ("name.1", "name", "name.1"), ("", "", None)],
)
def test_the_id_that_goes_along(request_id: str, name: str, expected: str | None) -> None:
    made = attempts(request_id=request_id, name=name)
    ((key, value),) = made.metadata
    assert key == "x-request-id"
    assert value == expected if expected is not None else re.fullmatch("[0-9a-f]{16}", value)
    assert made.request_id == value


def test_an_id_that_metadata_cannot_carry_stays_in_the_request() -> None:
    assert attempts(request_id=" é\n").metadata == ()


def test_changes_are_each_unique_under_a_name() -> None:
    assert UUID.fullmatch(new_request_id())
    token = NAME.set("x" * NAME_CHARACTERS)
    try:
        made = {new_request_id() for _ in range(3)}
    finally:
        NAME.reset(token)
    assert len(made) == 3
    assert all(one.startswith("x" * NAME_CHARACTERS + ".") and len(one) <= 64 for one in made)


@pytest.mark.parametrize("name", ["", "a", "A.b_c-9", "-", "x" * 48])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", [" ", "a b", "é", "a\n", "a/b", "x" * 49, "²"])
def test_no_names(name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        check_name(name)
    for connect in (sev.connect, sev.aio.connect):
        with pytest.raises(UsageError):
            connect("unix:/nonexistent", request_id=name)


def test_a_name_is_that_of_its_connection_alone() -> None:
    def operation() -> calls.Operation[str]:
        yield from ()
        return new_request_id()

    async def both() -> tuple[str, str, str]:
        async def one(name: str) -> str:
            async with sev.aio.connect("unix:/nonexistent", request_id=name) as host:
                await asyncio.sleep(0)
                return await host.run(operation())

        return await asyncio.gather(one("one"), one("two"), one(""))

    first, second, third = asyncio.run(both())
    assert (first.split(".")[0], second.split(".")[0]) == ("one", "two")
    assert UUID.fullmatch(third)
    with sev.connect("unix:/nonexistent", request_id="three") as host:
        assert host.run(operation()).startswith("three.")
    assert UUID.fullmatch(new_request_id())
