"""The event stream: who sees what, in which order, and what happens to a reader that lags."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sev.errors import LimitReached
from sevd.access.identity import Caller
from sevd.access.roles import Role
from sevd.events import Event, Events


def caller(uid: int, role: Role = Role.LAUNCHER) -> Caller:
    return Caller.local(uid, uid, 1, role)


async def take(events: Events, who: Caller, action: object) -> list[Event]:
    subscription = events.subscribe(who)
    assert callable(action)
    action()
    events.close()
    return [event async for event in subscription]


def test_sequence_counts_up_by_one_and_simulation_shows() -> None:
    events = Events(simulated=True)
    first, second = events.publish("a.b", "one"), events.publish("a.c", "two", details={"k": "v"})
    assert (first.sequence, second.sequence) == (1, 2)
    assert first.simulated
    assert second.details == {"k": "v"}


@pytest.mark.parametrize(
    ("uid", "role", "kinds"),
    [
        (1, Role.LAUNCHER, ["mine", "all"]),
        (2, Role.LAUNCHER, ["all"]),
        (2, Role.VIEWER, ["all"]),
        (3, Role.ADMIN, ["mine", "all"]),
    ],
)
def test_only_owner_and_admin_see_what_is_owned(uid: int, role: Role, kinds: list[str]) -> None:
    events = Events()

    def act() -> None:
        events.publish("mine", "of uid 1", "guest-0001", "uid:1")
        events.publish("all", "of everybody")

    assert [event.kind for event in asyncio.run(take(events, caller(uid, role), act))] == kinds


def test_a_lagging_reader_gets_what_is_queued_then_an_error() -> None:
    async def run() -> None:
        events = Events(queue_events=3)
        subscription = events.subscribe(caller(1))
        for number in range(5):
            events.publish("k", str(number))
        assert [(await anext(subscription)).message for _ in range(3)] == ["0", "1", "2"]
        with pytest.raises(LimitReached):
            await anext(subscription)

    asyncio.run(run())


def test_publishing_from_another_thread_wakes_the_reader() -> None:
    async def run() -> Event:
        events = Events()
        subscription = events.subscribe(caller(1))
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        thread = threading.Thread(target=events.publish, args=("k", "from afar"))
        thread.start()
        event = await asyncio.wait_for(waiting, 5)
        thread.join()
        return event

    assert asyncio.run(run()).message == "from afar"


def test_a_failing_listener_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    seen: list[str] = []

    def bad(event: Event) -> None:
        raise RuntimeError("listener")

    events.listen(bad)
    stop = events.listen(lambda event: seen.append(event.kind))
    events.publish("one", "")
    stop()
    events.publish("two", "")
    assert seen == ["one"]
    assert "a listener failed" in caplog.text


def test_a_subscription_after_closing_ends_at_once() -> None:
    async def run() -> list[Event]:
        events = Events()
        events.close()
        return [event async for event in events.subscribe(caller(1))]

    assert asyncio.run(run()) == []
