"""A request id acts once, whatever comes in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sev.errors import KernelError, OutcomeUnknown, UsageError
from sevd.api.once import Once
from sevd.journal import Journal, Outcome

DONE = Outcome(0, b"answer")


class Act:
    """Counts how often it acts; may wait to be let go."""

    def __init__(self, outcome: Outcome = DONE) -> None:
        self.times = 0
        self.go = asyncio.Event()
        self.go.set()
        self._outcome = outcome

    async def __call__(self) -> Outcome:
        self.times += 1
        await self.go.wait()
        return self._outcome


def runner(once: Once, act: Act) -> Callable[..., Awaitable[tuple[Outcome, bool]]]:
    async def run(
        owner: str = "uid:1", request_id: str = "id", method: str = "/m", digest: str = "d", by_caller: bool = False
    ) -> tuple[Outcome, bool]:
        return await once.run(owner, request_id, method, digest, act, cancelled_by_caller=lambda: by_caller)

    return run


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


async def test_twice_acts_once(journal: Journal) -> None:
    act = Act()
    run = runner(Once(journal), act)
    assert await run() == (DONE, False)
    assert await run() == (DONE, True)
    assert act.times == 1


async def test_a_failure_is_an_outcome_too(journal: Journal) -> None:
    failed = Outcome(9, b"details", "message", "WRONG_STATE")
    act = Act(failed)
    run = runner(Once(journal), act)
    assert await run() == (failed, False)
    assert await run() == (failed, True)
    assert act.times == 1


async def test_a_restart_remembers(journal: Journal, tmp_path: Path) -> None:
    await runner(Once(journal), Act())()
    journal.close()
    act = Act()
    assert await runner(Once(Journal(tmp_path / "journal.jsonl")), act)() == (DONE, True)
    assert act.times == 0


async def test_a_crash_in_between_leaves_it_unknown(journal: Journal, tmp_path: Path) -> None:
    journal.begin("uid:1", "id", "/m", "d")
    journal.close()
    act = Act()
    with pytest.raises(OutcomeUnknown):
        await runner(Once(Journal(tmp_path / "journal.jsonl")), act)()
    assert act.times == 0


@pytest.mark.parametrize("change", [{"method": "/other"}, {"digest": "other"}], ids=["another method", "other content"])
@pytest.mark.parametrize("running", [False, True], ids=["afterwards", "meanwhile"])
async def test_an_id_is_bound_to_its_request(journal: Journal, change: dict[str, str], running: bool) -> None:
    act = Act()
    run = runner(Once(journal), act)
    if running:
        act.go.clear()
        first = asyncio.ensure_future(run())
        await asyncio.sleep(0.05)
    else:
        await run()
    with pytest.raises(UsageError, match="request_id"):
        await run(**change)
    act.go.set()
    if running:
        await first
    assert act.times == 1


async def test_another_identity_has_other_ids(journal: Journal) -> None:
    act = Act()
    run = runner(Once(journal), act)
    await run()
    assert await run(owner="uid:2", method="/other") == (DONE, False)
    assert act.times == 2


async def test_a_retry_that_comes_early_waits_for_the_first(journal: Journal) -> None:
    act = Act()
    act.go.clear()
    run = runner(Once(journal), act)
    both = asyncio.gather(run(), run())
    await asyncio.sleep(0.05)
    act.go.set()
    assert sorted(repeated for _, repeated in await both) == [False, True]
    assert act.times == 1


async def test_a_broken_connection_does_not_stop_the_call(journal: Journal) -> None:
    act = Act()
    act.go.clear()
    run = runner(Once(journal), act)
    first = asyncio.ensure_future(run())
    await asyncio.sleep(0.05)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    act.go.set()
    assert await run() == (DONE, True)
    assert act.times == 1


async def test_a_caller_who_cancels_stops_it_and_the_outcome_is_unknown(journal: Journal) -> None:
    act = Act()
    act.go.clear()
    run = runner(Once(journal), act)
    first = asyncio.ensure_future(run(by_caller=True))
    await asyncio.sleep(0.05)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.sleep(0.05)
    with pytest.raises(OutcomeUnknown):
        await run()
    assert act.times == 1


async def test_a_journal_that_cannot_be_written_lets_nothing_act(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "begin", full)
    act = Act()
    with pytest.raises(KernelError, match="nothing was done") as caught:
        await runner(Once(journal), act)()
    assert caught.value.errno == 28
    assert act.times == 0


@pytest.mark.parametrize("request_id", ["x" * 65, "ümlaut", "new\nline"])
async def test_ids_that_are_none(journal: Journal, request_id: str) -> None:
    act = Act()
    with pytest.raises(UsageError, match="printable ASCII"):
        await runner(Once(journal), act)(request_id=request_id)
    assert act.times == 0


async def test_draining_waits_then_cancels(journal: Journal) -> None:
    act = Act()
    act.go.clear()
    once = Once(journal)
    first = asyncio.ensure_future(runner(once, act)())
    await asyncio.sleep(0.05)
    await once.drain(0.05)
    with pytest.raises(OutcomeUnknown):
        await first
