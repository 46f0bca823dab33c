"""A guest run through the synchronous client.

with host.run_guest(guest_id) as run:
    for exit in run:
        run.complete(exit, b"\\xff" * sev.running.wanted(exit.what))
print(run.state)
"""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc

from sev.running import CLOSE_SECONDS, Conversation

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from sev.errors import SevError
    from sev.running import GuestExit, RunState

WAIT_SECONDS = 0.2
"""How long a wait may go on without a look at signals."""


class GuestRun:
    """One run: an iterator of exits, which ends when the guest has stopped or is paused by somebody else.

    Leaving it (`close`, or the end of the block) pauses the guest; exits that were not completed come again first on
    the next run. Not for several threads at once. Ctrl-C may come at any moment: the stream is read by a thread of its
    own, since gRPC does not survive an exception in the middle of a read; the daemon sends no more than what the
    vCPUs may be ahead. A program that wants Ctrl-C to end the iteration at a safe point, and nowhere else, has its
    signal handler call `interrupt`.

    Raises (while iterating):
        SevError: The guest was deleted or lost, or the daemon has ended.
    """

    def __init__(
        self, talk: Conversation, dial: Callable[[Any], Any], lost: Callable[[grpc.RpcError], SevError]
    ) -> None:
        self._talk = talk
        self._lost = lost
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._answers: SimpleQueue[bytes | grpc.RpcError | KeyboardInterrupt | None] = SimpleQueue()
        self._requests.put(talk.first())
        self._call = dial(iter(self._requests.get, None))
        self._ended = False
        Thread(target=self._read, name="sev-run", daemon=True).start()

    @property
    def state(self) -> RunState | None:
        """The last state that the daemon told."""
        return self._talk.state

    def begin(self) -> None:
        """Waits until the guest runs. Raises grpc.RpcError where it is refused."""
        answer = self._next_answer()
        if isinstance(answer, bytes):
            self._talk.receive(answer)
            return
        self._end()
        if answer is not None:
            raise answer

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GuestExit:
        while (found := self._talk.next()) is None:
            if self._ended:
                raise StopIteration
            self._send(self._talk.flush())
            answer = self._next_answer()
            if isinstance(answer, bytes):
                self._talk.receive(answer)
                continue
            if isinstance(answer, KeyboardInterrupt):
                raise answer
            self._end()
            if answer is not None:
                raise self._lost(answer) from None
        return found

    def interrupt(self) -> None:
        """Ends the iteration with KeyboardInterrupt, after the exits that have arrived. For signal handlers."""
        self._answers.put(KeyboardInterrupt())

    def complete(self, done: GuestExit, data: bytes = b"") -> None:
        """The exit was dealt with; `data` is what a read gives. Sent with the others of its batch, or by `flush`.

        Raises:
            UsageError: Not as many bytes as the exit asks for.
        """
        self._send(self._talk.complete(done, data))

    def flush(self) -> None:
        """Sends what was completed now, for a caller that does something else before the next exit."""
        self._send(self._talk.flush())

    def pause(self) -> None:
        """Halts the vCPUs; the run stays. `state` tells once it has happened."""
        self._control("pause")

    def resume(self) -> None:
        """Goes on after `pause`."""
        self._control("resume")

    def stop(self) -> None:
        """Ends the guest for good: it never runs again."""
        self._control("stop")

    def close(self) -> None:
        """Ends the run and waits until the guest stands still. Completed exits are sent before."""
        if self._ended:
            return
        self.flush()
        self._requests.put(None)
        until = monotonic() + CLOSE_SECONDS
        try:
            while (answer := self._answers.get(timeout=max(until - monotonic(), 0))) is not None:
                if isinstance(answer, bytes):
                    self._talk.receive(answer)
                elif isinstance(answer, grpc.RpcError):
                    break
            while self._talk.next() is not None:
                continue  # these come again on the next run
        except Empty:
            pass  # the daemon is slow; it pauses the guest all the same
        finally:
            self._end()

    def _next_answer(self) -> bytes | grpc.RpcError | KeyboardInterrupt | None:
        """Waits for the next answer; a signal that comes just before the wait is seen when it is over."""
        while True:
            try:
                return self._answers.get(timeout=WAIT_SECONDS)
            except Empty:
                continue

    def _read(self) -> None:
        """Runs on a thread, to the end of the stream."""
        end: grpc.RpcError | None = None
        try:
            for raw in self._call:
                self._answers.put(raw)
        except grpc.RpcError as error:
            end = error
        finally:
            self._answers.put(end)

    def _send(self, message: bytes | None) -> None:
        if message is not None and not self._ended:
            self._requests.put(message)

    def _control(self, word: str) -> None:
        self._send(self._talk.flush())
        self._send(self._talk.control(word))

    def _end(self) -> None:
        self._ended = True
        self._requests.put(None)
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
