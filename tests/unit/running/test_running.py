"""The daemon's side of a run: who may, what passes, what is said of states, and workers that misbehave."""

from __future__ import annotations

import asyncio
import json
import select
import socket
from typing import Any

import pytest

from sev.errors import InternalError, MalformedInput, NotFound, NotNow, NotPermitted, UsageError, WrongState
from sevd.access.identity import Caller
from sevd.access.roles import Role
from sevd.guests.hosted import Hosted
from sevd.guests.model import CreateGuest, GuestState
from sevd.guests.registry import Registry
from sevd.guests.running import Moved, Run, Running
from sevd.worker import run_wire, wire

ALICE = Caller.local(1001, 1001, 11, Role.LAUNCHER)
BOB = Caller.local(1002, 1002, 12, Role.LAUNCHER)
ROOT = Caller.local(0, 0, 1, Role.ADMIN)
GUEST = "guest-of-alice"


class Worker:
    """A machine, and its worker's end of the run connection."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.asked = 0

    def run_connection(self) -> socket.socket:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(10)
        self.asked += 1
        return ours

    def hear(self) -> bytes:
        assert self.sock is not None
        return self.sock.recv(1 << 17)

    def say(self, packet: bytes) -> None:
        assert self.sock is not None
        self.sock.send(packet)

    def state(self, word: str, reason: str = "", *, failed: bool = False) -> None:
        self.say(run_wire.STATE + json.dumps({"state": word, "reason": reason, "failed": failed}).encode())

    def has_room(self) -> bool:
        """Whether the connection takes a packet now."""
        assert self.sock is not None
        return bool(select.select([], [self.sock], [], 0)[1])

    def hang_up(self) -> None:
        assert self.sock is not None
        self.sock.close()


class Room:
    """One guest of Alice's, READY."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.told: list[tuple[GuestState, str]] = []
        self.registry = Registry()
        self.guest = Hosted(CreateGuest(4096, 0, 1, 0), GUEST, ALICE.owner, simulated=False)
        self.guest.state = GuestState.READY
        machine: Any = self.worker
        self.guest.machine = machine
        self.registry.reserve(ALICE.owner, GUEST)
        self.registry.add(self.guest)
        self.running = Running(self.registry, self._become)

    def _become(self, guest: Hosted, state: GuestState, kind: str, what: str) -> None:
        guest.state = state
        self.told.append((state, kind))

    async def run(self, posted: int = 0) -> Run:
        run = await self.running.open(ALICE, GUEST, posted)
        assert self.worker.hear() == run_wire.START + posted.to_bytes(4, "little")
        self.worker.state("running")
        assert await anext(run) == Moved(GuestState.RUNNING)
        return run

    async def over(self, run: Run) -> None:
        """The worker sees the end, and ends too."""
        closing = asyncio.ensure_future(run.close())
        await asyncio.sleep(0)
        assert await asyncio.to_thread(self.worker.hear) == b""
        self.worker.hang_up()
        await closing


async def test_what_passes_is_not_looked_at() -> None:
    room = Room()
    run = await room.run(7)
    await run.send(b"\x1a\x02\x08\x01")
    assert room.worker.hear() == run_wire.REQUEST + b"\x1a\x02\x08\x01"
    for piece in (b"one", b"two", b"three"):
        room.worker.say(run_wire.EXITS + piece)
    assert await anext(run) == b"onetwothree"
    await room.over(run)
    assert room.told == [(GuestState.RUNNING, "guest.running"), (GuestState.PAUSED, "guest.paused")]


async def test_a_state_behind_exits_comes_behind_them() -> None:
    room = Room()
    run = await room.run()
    room.worker.say(run_wire.EXITS + b"exit")
    room.worker.state("paused")
    room.worker.say(run_wire.EXITS + b"later")
    assert [await anext(run) for _ in range(3)] == [b"exit", Moved(GuestState.PAUSED), b"later"]
    await room.over(run)


async def test_a_stop_ends_the_stream_and_says_why() -> None:
    room = Room()
    run = await room.run()
    room.worker.state("stopped", "a triple fault", failed=False)
    assert await anext(run) == Moved(GuestState.STOPPED, "a triple fault")
    room.worker.hang_up()
    with pytest.raises(StopAsyncIteration):
        await anext(run)
    assert room.guest.failure == "a triple fault"
    with pytest.raises(WrongState, match="STOPPED"):
        await room.running.open(ALICE, GUEST)


async def test_the_owner_alone_runs_and_those_who_see_may_pause() -> None:
    room = Room()
    with pytest.raises(NotFound):
        await room.running.open(BOB, GUEST)
    with pytest.raises(NotPermitted, match="owner's alone"):
        await room.running.open(ROOT, GUEST)
    with pytest.raises(NotFound):
        await room.running.pause(BOB, GUEST)
    with pytest.raises(WrongState, match="pause_guest"):
        await room.running.pause(ROOT, GUEST)
    assert room.worker.asked == 0
    run = await room.run()
    assert (await room.running.pause(ROOT, GUEST, validate_only=True)).state is GuestState.RUNNING
    pausing = asyncio.ensure_future(room.running.pause(ROOT, GUEST))
    assert await asyncio.to_thread(room.worker.hear) == b""
    room.worker.hang_up()
    assert (await pausing).state is GuestState.PAUSED
    assert await anext(run) == Moved(GuestState.PAUSED)
    with pytest.raises(StopAsyncIteration):
        await anext(run)
    assert (await room.running.pause(ALICE, GUEST)).state is GuestState.PAUSED


async def test_one_stream_at_a_time_and_the_next_waits_for_the_end_of_the_last() -> None:
    room = Room()
    run = await room.run()
    with pytest.raises(NotNow, match="another stream"):
        await room.running.open(ALICE, GUEST)
    closing = asyncio.ensure_future(run.close())
    await asyncio.sleep(0)
    opening = asyncio.ensure_future(room.running.open(ALICE, GUEST))
    await asyncio.sleep(0.05)
    assert not opening.done()
    room.worker.hang_up()
    await closing
    second = await opening
    assert room.worker.asked == 2
    room.worker.hang_up()
    await second.close()


@pytest.mark.parametrize("posted", [-1, 257])
async def test_posted_writes_have_bounds(posted: int) -> None:
    with pytest.raises(UsageError, match="posted_writes"):
        await Room().running.open(ALICE, GUEST, posted)


async def test_a_request_must_fit_a_packet() -> None:
    room = Room()
    run = await room.run()
    with pytest.raises(UsageError, match="65536"):
        await run.send(bytes(65537))
    await room.over(run)


async def test_what_the_worker_refuses_is_told_as_it_said_it() -> None:
    room = Room()
    run = await room.run()
    refusal = UsageError("vcpu: 7, expected 0 to 0", field="completions.vcpu")
    room.worker.say(run_wire.ERROR + json.dumps(wire.error_document(refusal)).encode())
    room.worker.hang_up()
    with pytest.raises(UsageError, match="vcpu: 7") as raised:
        await anext(run)
    assert raised.value.field == "completions.vcpu"
    assert room.guest.state is GuestState.PAUSED


async def test_an_error_of_the_client_ends_the_stream() -> None:
    room = Room()
    run = await room.run()
    waiting = asyncio.ensure_future(anext(run))
    await asyncio.sleep(0.02)
    run.fail(MalformedInput("no message"))
    assert await asyncio.to_thread(room.worker.hear) == b""
    room.worker.hang_up()
    with pytest.raises(MalformedInput, match="no message"):
        await waiting


BAD: dict[str, bytes] = {
    "no JSON": run_wire.STATE + b"{",
    "no state": run_wire.STATE + b"{}",
    "another state": run_wire.STATE + b'{"state": "flying", "reason": "", "failed": false}',
    "a list": run_wire.STATE + b"[1]",
    "no error": run_wire.ERROR + b"[]",
    "another kind": b"?",
}


@pytest.mark.parametrize("packet", BAD.values(), ids=BAD)
async def test_a_worker_that_talks_nonsense_ends_the_stream_with_an_error(packet: bytes) -> None:
    room = Room()
    run = await room.run()
    room.worker.say(packet)
    room.worker.hang_up()
    with pytest.raises((MalformedInput, InternalError, NotNow)):
        await anext(run)
    assert room.guest.state is GuestState.PAUSED


async def test_a_worker_that_ends_is_a_guest_that_is_lost() -> None:
    room = Room()
    run = await room.run()
    room.worker.hang_up()
    waiting = asyncio.ensure_future(anext(run))
    await asyncio.sleep(0.1)
    room.guest.stopping, room.guest.failure = True, "its worker was killed"
    room.guest.state = GuestState.LOST
    with pytest.raises(WrongState, match="its worker was killed"):
        await waiting


async def test_a_guest_that_is_deleted_ends_its_stream() -> None:
    room = Room()
    run = await room.run()
    room.guest.stopping = True
    room.worker.hang_up()
    with pytest.raises(NotFound, match="deleted"):
        await anext(run)


async def test_a_client_that_does_not_read_makes_the_daemon_hold_nothing() -> None:
    room = Room()
    run = await room.run()
    said = 0
    while room.worker.has_room():
        room.worker.say(run_wire.EXITS + bytes(1000))
        said += 1
    await asyncio.sleep(0.1)
    assert not room.worker.has_room()  # nobody took anything meanwhile
    got = 0
    while got < said * 1000:
        item = await anext(run)
        assert isinstance(item, bytes)
        assert len(item) <= 64 * 1000
        got += len(item)
    await room.over(run)


async def test_the_end_of_the_daemon_pauses_everything() -> None:
    room = Room()
    run = await room.run()
    closing = asyncio.ensure_future(room.running.close())
    assert await asyncio.to_thread(room.worker.hear) == b""
    room.worker.state("stopped", "it ended meanwhile")
    room.worker.hang_up()
    await closing
    assert room.guest.state is GuestState.STOPPED
    assert await anext(run) == Moved(GuestState.STOPPED, "it ended meanwhile")
