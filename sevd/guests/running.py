"""Launched guests that run: one stream of exits each, between a client and the guest's worker.

The daemon looks at neither exits nor completions: they pass as they are, serialised messages of the API (the worker
checks them; sevd.worker.run_wire has the packets). What it keeps is who runs which guest, and the state. It reads from
the worker only when the client takes more, so that a slow client holds up its own guest and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from typing import TYPE_CHECKING, NamedTuple

from sev.errors import MalformedInput, NotNow, NotPermitted, SevError, UsageError, WrongState
from sevd.guests.aside import aside
from sevd.guests.model import GuestState
from sevd.guests.states import Step
from sevd.worker import wire
from sevd.worker.run_wire import ERROR, EXITS, POSTED_WRITES, REQUEST, REQUEST_BYTES, START, STATE

if TYPE_CHECKING:
    from typing import Protocol

    from sevd.access.identity import Caller
    from sevd.guests.hosted import Hosted
    from sevd.guests.model import Guest
    from sevd.guests.registry import Registry

    class Become(Protocol):
        """Gives a guest another state, and tells everybody."""

        def __call__(self, guest: Hosted, state: GuestState, kind: str, what: str) -> None: ...


BATCH = 64
"""Packets that become one message of the stream, where so many wait."""

CLOSE_SECONDS = 35.0
"""How long a worker may take to pause its guest when a stream ends."""

LEARN_STEPS, LEARN_SECONDS = 40, 0.05
"""How often, and how long apart, a guest whose worker hung up is looked at."""

_STATES = {"running": GuestState.RUNNING, "paused": GuestState.PAUSED, "stopped": GuestState.STOPPED}

log = logging.getLogger(__name__)


class Moved(NamedTuple):
    """The guest took a state.

    Attributes:
        state: RUNNING, PAUSED or STOPPED.
        reason: Why it is STOPPED; empty otherwise.
        failed: It is STOPPED because it could not be run on.
    """

    state: GuestState
    reason: str = ""
    failed: bool = False


class Run:
    """One stream: an async iterator of serialised exits (bytes: sev.v1.RunGuestResponse) and states (Moved).

    It ends after the guest is STOPPED, or is paused by `Running.pause`. Close it when done: the guest pauses.

    Raises (while iterating):
        SevError: What the worker says of a request that it cannot take.
        NotFound: The guest was deleted.
        NotNow: The guest's worker has ended.
    """

    def __init__(self, guest: Hosted, sock: socket.socket, running: Running) -> None:
        self._guest = guest
        self._sock = sock
        self._running = running
        self._loop = asyncio.get_running_loop()
        self._reading = asyncio.Lock()
        self._held: bytes = b""
        self._last: Moved | None = None
        self._error: SevError | None = None
        self._over = False
        self._finished = False
        self._closing: asyncio.Task[None] | None = None

    def __aiter__(self) -> Run:
        return self

    async def __anext__(self) -> bytes | Moved:
        while not self._over and self._closing is None:
            item = await self._next()
            if item is not None:
                self._finished = isinstance(item, Moved) and item.state is GuestState.STOPPED
                return item
        await self.close()
        if self._finished:
            raise StopAsyncIteration
        self._finished = True
        if self._error is not None:
            raise self._error
        if self._guest.stopping or self._last is None:
            raise self._lost()
        return self._last

    async def send(self, request: bytes) -> None:
        """Passes a request of the client on: a serialised sev.v1.RunGuestRequest, at most 64 KiB.

        Raises:
            UsageError: It is too long.
        """
        if len(request) > REQUEST_BYTES:
            raise UsageError(f"request: {len(request)} bytes, expected at most {REQUEST_BYTES}", field="request")
        try:
            await self._loop.sock_sendall(self._sock, REQUEST + request)
        except OSError:
            return  # the end of the connection is for who reads

    def fail(self, error: SevError) -> None:
        """Ends the stream with this error."""
        self._error = self._error or error
        self._begin_close()

    async def close(self) -> None:
        """Ends the stream and waits until the guest stands still. Once more waits for the same end."""
        await asyncio.shield(self._begin_close())

    def _begin_close(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        return self._closing

    async def _close(self) -> None:
        unexpected = self._over and self._error is None and self._last == Moved(GuestState.RUNNING)
        try:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(CLOSE_SECONDS):
                while not self._over:
                    await self._next()
                if unexpected:
                    await self._learn()
        except TimeoutError:
            log.error("the worker of guest %s does not pause it", self._guest.lane)
        finally:
            self._over = True
            self._sock.close()
            if self._guest.state is GuestState.RUNNING and not self._guest.stopping:
                self._become(Moved(GuestState.PAUSED))
            self._running.forget(self._guest, self)

    async def _learn(self) -> None:
        """The worker hung up: whether it has ended, with the guest, is told by who watches it."""
        for _ in range(LEARN_STEPS):
            if self._guest.stopping:
                return
            await asyncio.sleep(LEARN_SECONDS)

    def _lost(self) -> SevError:
        if self._guest.state is GuestState.LOST:
            return WrongState(
                f"the guest was lost: {self._guest.failure}",
                remedy="Delete it and launch another one.",
                metadata={"state": "LOST", "allowed": "delete_guest"},
            )
        if self._guest.stopping:
            return self._guest.gone()
        return NotNow("the guest's worker does not run it", remedy="Look at the guest: sev guest show.")

    async def _next(self) -> bytes | Moved | None:
        """The next thing that the worker says; None if there was none to hand out."""
        async with self._reading:
            if self._over:
                return None
            packet, self._held = self._held, b""
            if not packet:
                packet = await self._receive()
            kind = packet[:1]
            if kind == EXITS:
                return self._exits(packet)
            if kind == STATE:
                return self._state(packet)
            if kind == ERROR:
                with contextlib.suppress(ValueError):
                    self._error = self._error or wire.error_from(json.loads(packet[1:]))
            elif packet:
                self._error = MalformedInput(f"a packet of the worker's of kind {kind!r}", field="packet")
            self._over = True
            self._begin_close()
            return None

    async def _receive(self) -> bytes:
        try:
            return await self._loop.sock_recv(self._sock, wire.PACKET_BYTES)
        except OSError:
            return b""

    def _exits(self, packet: bytes) -> bytes:
        """This packet's exits and those of the packets that wait behind it: joined, they are one message."""
        pieces = [packet[1:]]
        while len(pieces) < BATCH:
            try:
                packet = self._sock.recv(wire.PACKET_BYTES)
            except BlockingIOError:
                break
            except OSError:
                break
            if packet[:1] != EXITS:
                self._held = packet
                break
            pieces.append(packet[1:])
        return b"".join(pieces) if len(pieces) > 1 else pieces[0]

    def _state(self, packet: bytes) -> Moved | None:
        try:
            body = json.loads(packet[1:])
            moved = Moved(_STATES[body["state"]], str(body["reason"]), body["failed"] is True)
        except (ValueError, KeyError, TypeError):
            self._error = MalformedInput("a state of the worker's that is none", field="state")
            self._over = True
            return None
        if moved.state is GuestState.STOPPED:
            self._over = True
            self._begin_close()
        if self._guest.stopping:
            return None
        self._become(moved)
        return moved

    def _become(self, moved: Moved) -> None:
        self._last = moved
        self._running.moved(self._guest, moved)


class Running:
    """Who runs which guest. On one event loop."""

    def __init__(self, registry: Registry, become: Become) -> None:
        self._registry = registry
        self._become = become
        self._runs: dict[Hosted, Run | None] = {}

    async def open(self, caller: Caller, guest_id: str, posted_writes: int = 0) -> Run:
        """Runs a guest, for its owner alone: READY or PAUSED to RUNNING, as the first thing that the stream says.

        Raises:
            NotFound: It does not exist for this caller.
            NotPermitted: It is somebody else's.
            WrongState: It is not launched, or has ended.
            NotNow: Another stream runs it.
            NotOffered: Guests do not execute on this host.
            UsageError: posted_writes is not 0 to 256.
        """
        guest = self._registry.find(caller, guest_id)
        if guest.owner != caller.owner:
            raise NotPermitted(f"the guest {guest.guest_id} is its owner's alone to run", field="guest_id")
        if not 0 <= posted_writes <= POSTED_WRITES:
            raise UsageError(f"posted_writes: {posted_writes}, expected 0 to {POSTED_WRITES}", field="posted_writes")
        before = self._runs.get(guest)
        if before is not None and before._closing is not None:
            await before.close()
        if guest in self._runs:
            raise NotNow(
                f"the guest {guest.guest_id} is run by another stream",
                remedy=f"Pause it first: sev guest pause {guest.guest_id}.",
            )
        machine = guest.ready_for(Step.RUN)
        self._runs[guest] = None
        try:
            sock = await aside(machine.run_connection)
        except BaseException:
            del self._runs[guest]
            raise
        sock.setblocking(False)
        run = self._runs[guest] = Run(guest, sock, self)
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(sock, START + posted_writes.to_bytes(4, "little"))
        return run

    async def pause(self, caller: Caller, guest_id: str, *, validate_only: bool = False) -> Guest:
        """RUNNING to PAUSED; the stream that runs it ends. A guest that is PAUSED stays so.

        Raises:
            NotFound: It does not exist for this caller.
            WrongState: It never ran, or has ended.
        """
        guest = self._registry.find(caller, guest_id)
        if guest.state is not GuestState.PAUSED:
            guest.ready_for(Step.PAUSE)
        if not validate_only:
            run = self._runs.get(guest)
            if run is not None:
                await run.close()
        return guest.view()

    async def close(self) -> None:
        """Every guest that runs is paused, every stream ends."""
        runs = [run for run in self._runs.values() if run is not None]
        await asyncio.gather(*[run.close() for run in runs])

    def moved(self, guest: Hosted, moved: Moved) -> None:
        """The guest took a state, as its worker says."""
        if guest.state is moved.state:
            return
        if moved.state is GuestState.STOPPED:
            guest.failure = moved.reason
        words = {GuestState.RUNNING: "runs", GuestState.PAUSED: "is paused"}
        what = words.get(moved.state, f"has stopped: {moved.reason}")
        self._become(guest, moved.state, f"guest.{moved.state.name.lower()}", what)

    def forget(self, guest: Hosted, run: Run) -> None:
        """A stream is over."""
        if self._runs.get(guest) is run:
            del self._runs[guest]
