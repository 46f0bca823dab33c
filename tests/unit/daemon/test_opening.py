"""Endorsements that are opened while the daemon serves: who comes early waits, a failure is said, a stop is not held up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sev.errors import DeviceMissing
from sevd.endorsements import EndorsementSet
from sevd.opening import LateEndorsements

SET = EndorsementSet((), b"table", (), True)


class Store:
    """Stands for the store; remembers what was done with it."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    async def open(self, identity: Any) -> EndorsementSet:
        self.said.append(("open", identity))
        return SET

    def current(self) -> EndorsementSet:
        return SET

    async def import_(self, contents: list[bytes], *, validate_only: bool = False) -> tuple[Any, ...]:
        self.said.append(("import", contents, validate_only))
        return ()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        self.said.append("locked")
        yield
        self.said.append("unlocked")

    async def refresh(self, identity: Any) -> EndorsementSet:
        self.said.append(("refresh", identity))
        return SET

    def close(self) -> None:
        self.said.append("closed")


def late(make: Any, *, missing: bool = False) -> LateEndorsements:
    async def identity() -> Any:
        if missing:
            raise DeviceMissing("no device")
        return "this chip"

    return LateEndorsements(make, identity)


def test_who_comes_early_waits_and_everything_reaches_the_store() -> None:
    store, go = Store(), threading.Event()

    def make() -> Any:
        go.wait(10)
        return store

    async def run() -> None:
        endorsements = late(make)
        endorsements.start()
        early = asyncio.ensure_future(endorsements.current())
        await asyncio.sleep(0.05)
        assert not early.done()
        go.set()
        assert await early is SET
        assert await endorsements.table() == b"table"
        await endorsements.import_([b"x"], validate_only=True)
        async with endorsements.exclusive():
            identity: Any = "that chip"
            await endorsements.refresh(identity)
        await endorsements.close()

    asyncio.run(run())
    assert store.said == [
        ("open", "this chip"),
        ("import", [b"x"], True),
        "locked",
        ("refresh", "that chip"),
        "unlocked",
        "closed",
    ]


def test_without_a_device_the_store_opens_for_no_chip() -> None:
    store = Store()

    async def run() -> None:
        endorsements = late(lambda: store, missing=True)
        endorsements.start()
        await endorsements.current()
        await endorsements.close()

    asyncio.run(run())
    assert store.said == [("open", None), "closed"]


def test_a_failure_is_logged_at_once_and_told_to_whoever_asks(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Any:
        raise RuntimeError("broken store")

    async def run() -> None:
        endorsements = late(make)
        endorsements.start()
        await asyncio.sleep(0.2)
        assert "broken store" in caplog.text
        for _ in range(2):
            with pytest.raises(RuntimeError, match="broken store"):
                await endorsements.current()
        await endorsements.close()

    asyncio.run(run())


def test_a_stop_gives_an_opening_up() -> None:
    store = Store()

    async def run() -> None:
        never = asyncio.Event()

        async def identity() -> Any:
            await never.wait()

        endorsements = LateEndorsements(lambda: store, identity)  # type: ignore[arg-type,return-value]
        endorsements.start()
        await asyncio.sleep(0.1)
        await asyncio.wait_for(endorsements.close(), 5)
        await LateEndorsements(lambda: store, identity).close()  # type: ignore[arg-type,return-value]

    asyncio.run(run())
    assert store.said == []
