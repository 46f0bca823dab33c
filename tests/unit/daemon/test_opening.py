"""Endorsements that are opened while the daemon serves: who comes early waits, a failure is said, a stop is not held up."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sev.errors import NotNow
from sevd.endorsements import EndorsementSet
from sevd.endorsements.table_file import TableFile
from sevd.opening import LateEndorsements
from tests.support.table_readers import read_locked

SET = EndorsementSet((), b"table", (), True)


class Store:
    """Stands for the store; remembers what was done with it."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.stale = False
        self.hinder = asyncio.Event()

    async def load(self) -> None:
        self.said.append("load")

    async def settle(self) -> EndorsementSet:
        self.said.append("settle")
        return SET

    async def update(self) -> EndorsementSet:
        self.said.append("update")
        if self.hinder.is_set():
            raise NotNow("somebody reads")
        self.stale = False
        return SET

    def mark_stale(self, error: Any) -> None:
        self.said.append(error.reason)
        self.stale = True

    def current(self) -> EndorsementSet:
        return SET

    async def import_(self, contents: list[bytes], *, validate_only: bool = False) -> tuple[Any, ...]:
        self.said.append(("import", contents, validate_only))
        return ()

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        self.said.append("locked")
        yield
        self.said.append("unlocked")

    def close(self) -> None:
        self.said.append("closed")


def late(make: Any, table: TableFile | None = None) -> LateEndorsements:
    return LateEndorsements(make, table)


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
        await endorsements.import_([b"x"], validate_only=True)
        async with endorsements.changing():
            pass
        await endorsements.update()
        async with endorsements.reading() as read:
            assert read() == b""  # there is no table
        await endorsements.close()

    asyncio.run(run())
    assert store.said == ["load", "settle", ("import", [b"x"], True), "locked", "unlocked", "update", "closed"]


def test_the_table_is_locked_before_anything_else_and_until_it_is_made(tmp_path: Path) -> None:
    store, go = Store(), threading.Event()
    path = tmp_path / "certs.bin"
    path.write_bytes(b"of an earlier daemon, which was killed")

    def make() -> Any:
        go.wait(10)
        return store

    async def run() -> None:
        endorsements = late(make, TableFile(path))
        endorsements.start()
        await asyncio.sleep(0.05)
        with pytest.raises(BlockingIOError):
            read_locked(path)
        reading = asyncio.ensure_future(_content(endorsements))
        await asyncio.sleep(0.05)
        assert not reading.done()
        go.set()
        assert (await reading).startswith(b"of an earlier")  # this store writes none
        os.close(read_locked(path))
        await endorsements.close()

    asyncio.run(run())
    assert store.said == ["load", "settle", "closed"]


async def _content(endorsements: LateEndorsements) -> bytes:
    async with endorsements.reading() as read:
        return read()


def test_a_reader_that_hangs_holds_no_start_up_and_the_table_is_mended_later(tmp_path: Path) -> None:
    store = Store()
    path = tmp_path / "certs.bin"
    path.write_bytes(b"table")
    held = read_locked(path)

    async def run() -> None:
        endorsements = late(lambda: store, TableFile(path, wait_seconds=0.1))
        endorsements.start()
        assert await endorsements.current() is SET
        assert store.said == ["load", "NOT_NOW"]
        store.hinder.set()
        await endorsements.mend()
        store.hinder.clear()
        await endorsements.mend()
        assert not store.stale
        await endorsements.mend()  # there is nothing to mend any more
        await endorsements.close()

    asyncio.run(run())
    os.close(held)
    assert store.said == ["load", "NOT_NOW", "update", "update", "closed"]


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


def test_a_stop_gives_an_opening_up(tmp_path: Path) -> None:
    path = tmp_path / "certs.bin"

    class Hanging(Store):
        async def load(self) -> None:
            await asyncio.Event().wait()

    async def run() -> None:
        endorsements = late(Hanging, TableFile(path))
        endorsements.start()
        await asyncio.sleep(0.1)
        await asyncio.wait_for(endorsements.close(), 5)
        os.close(read_locked(path))  # the lock went too
        await late(Hanging).close()

    asyncio.run(run())
