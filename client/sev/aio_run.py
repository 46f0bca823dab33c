"""A guest run through the asyncio client.

async with host.run_guest(guest_id) as run:
    async for exit in run:
        await run.complete(exit, b"\\xff" * sev.running.wanted(exit.what))
print(run.state)
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from sev.running import CLOSE_SECONDS, Conversation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from sev.errors import SevError
    from sev.running import GuestExit, RunState


class AsyncGuestRun:
    """One run: an async iterator of exits; see `sev.client_run.GuestRun`. To be entered before it is used."""

    def __init__(
        self,
        talk: Conversation,
        begin: Callable[[bytes], Awaitable[tuple[Any, Any]]],
        lost: Callable[[grpc.RpcError], SevError],
    ) -> None:
        self._talk = talk
        self._begin = begin
        self._lost = lost
        self._call: Any = None
        self._ended = False

    @property
    def state(self) -> RunState | None:
        """The last state that the daemon told."""
        return self._talk.state

    async def __aenter__(self) -> Self:
        self._call, raw = await self._begin(self._talk.first())
        if raw is not grpc.aio.EOF:
            self._talk.receive(raw)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GuestExit:
        while (found := self._talk.next()) is None:
            if self._ended:
                raise StopAsyncIteration
            await self._send(self._talk.flush())
            await self._receive()
        return found

    async def complete(self, done: GuestExit, data: bytes = b"") -> None:
        """The exit was dealt with; `data` is what a read gives. Sent with the others of its batch, or by `flush`.

        Raises:
            UsageError: Not as many bytes as the exit asks for.
        """
        await self._send(self._talk.complete(done, data))

    async def flush(self) -> None:
        """Sends what was completed now, for a caller that does something else before the next exit."""
        await self._send(self._talk.flush())

    async def pause(self) -> None:
        """Halts the vCPUs; the run stays. `state` tells once it has happened."""
        await self._control("pause")

    async def resume(self) -> None:
        """Goes on after `pause`."""
        await self._control("resume")

    async def stop(self) -> None:
        """Ends the guest for good: it never runs again."""
        await self._control("stop")

    async def close(self) -> None:
        """Ends the run and waits until the guest stands still. Completed exits are sent before."""
        if self._ended or self._call is None:
            return
        await self.flush()
        try:
            with suppress(grpc.RpcError, TimeoutError, asyncio.InvalidStateError):
                await self._call.done_writing()
                async with asyncio.timeout(CLOSE_SECONDS):
                    while (raw := await self._call.read()) is not grpc.aio.EOF:
                        self._talk.receive(raw)
            while self._talk.next() is not None:
                continue  # these come again on the next run
        finally:
            self._end()

    async def _receive(self) -> None:
        try:
            raw = await self._call.read()
        except grpc.RpcError as error:
            self._end()
            raise self._lost(error) from None
        if raw is grpc.aio.EOF:
            self._end()
        else:
            self._talk.receive(raw)

    async def _send(self, message: bytes | None) -> None:
        if message is None or self._ended:
            return
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the end is told by what is read
            await self._call.write(message)

    async def _control(self, word: str) -> None:
        await self._send(self._talk.flush())
        await self._send(self._talk.control(word))

    def _end(self) -> None:
        self._ended = True
        self._call.cancel()
