"""Operations described without doing them: what is called, what is answered, whether it may be repeated.

An operation is a generator: it yields `Call` objects, is sent each answer, and returns its result. It knows neither
sockets nor event loops; `sev.client` and `sev.aio` run the same generators. A failed call is thrown into the
generator as a SevError, so that an operation of several calls can clean up with further calls.
"""

from __future__ import annotations

from contextvars import ContextVar
from errno import ECONNABORTED
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sev.errors import NotPermitted, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator
    from typing import Protocol, TypeAlias

    from sev.errors import SevError
    from sev.target import Target

    class Message(Protocol):
        """What is used of a protobuf message."""

        def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
            """The message on the wire."""


M = TypeVar("M")
R = TypeVar("R")
S = TypeVar("S")

RECONNECT_SECONDS = 0.05
"""Pause before a call is tried again."""

CANCELLED_HERE = ("Channel closed!", "Locally cancelled by application!")
"""What gRPC says where the call was cancelled on this side."""

GLANCES = 3
"""So many looks at the socket, for each close one, do not wait for what the daemon does: mostly it restarts."""

CLOSED_PROBES = 3
"""So many connections in a row that are closed at once mean that the daemon does not admit this caller."""

HEAR_SECONDS = 1.0
"""How often a remote daemon that does not answer is asked why; it records each time."""

READ_SECONDS = 10.0
"""What a read that reaches the firmware may take beyond the connection's timeout."""

DEVICE_SECONDS = 60.0
"""What a change that reaches the firmware may take beyond the connection's timeout."""

REFRESH_SECONDS = 300.0
"""What asking a key distribution service for everything may take: up to half a minute for each thing."""


class Call(Generic[M]):
    """One RPC.

    Attributes:
        method: Service and method, such as "HostService/GetHost".
        request: The message; for an upload a function that makes a fresh iterator of messages, or of
            bytes that are messages already.
        answer: The class of the answer.
        repeatable: Calling twice is the same as calling once: the method is idempotent, or the request carries a
            request_id. Only such a call is tried again when the connection breaks.
        seconds: What the call may take beyond the connection's timeout.
        request_id: The request's id, for errors.
    """

    __slots__ = ("answer", "method", "repeatable", "request", "request_id", "seconds")

    def __init__(
        self,
        method: str,
        request: Message | Callable[[], Iterator[Message | bytes]],
        answer: type[M],
        *,
        repeatable: bool = True,
        seconds: float = 0.0,
        request_id: str = "",
    ) -> None:
        self.method = method
        self.request = request
        self.answer = answer
        self.repeatable = repeatable
        self.seconds = seconds
        self.request_id = request_id

    @property
    def path(self) -> str:
        """The path of the method on the wire."""
        return f"/sev.v1.{self.method}"

    @property
    def upload(self) -> bool:
        """Whether the request is a stream."""
        return callable(self.request)


if TYPE_CHECKING:
    Operation: TypeAlias = Generator[Call[Any], Any, R]
    """A description that ends in an `R`."""


def drive(description: Generator[S, Any, R], perform: Callable[[S], Any]) -> R:
    """Carries a description out: performs each step, tells it what came of that, answers its result.

    What a step raises is thrown into it: a description of several steps cleans up, also after Ctrl-C.
    """
    advance: Callable[[Any], S] = description.send
    given: Any = None
    while True:
        try:
            step = advance(given)
        except StopIteration as end:
            result: R = end.value
            return result
        try:
            advance, given = description.send, perform(step)
        except BaseException as error:
            advance, given = description.throw, error


async def drive_async(description: Generator[S, Any, R], perform: Callable[[S], Awaitable[Any]]) -> R:
    """As `drive`, where steps are awaited; cancelled, the description cleans up too."""
    advance: Callable[[Any], S] = description.send
    given: Any = None
    while True:
        try:
            step = advance(given)
        except StopIteration as end:
            result: R = end.value
            return result
        try:
            advance, given = description.send, await perform(step)
        except BaseException as error:
            advance, given = description.throw, error


class Later:
    """A module that is loaded when something of it is used: a command pays for the operations that it needs."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        from importlib import import_module

        return getattr(import_module(self._name), attribute)


REQUEST_ID_KEY = "x-request-id"
"""Metadata key under which a call is named; the daemon finds the name again in its log, its audit and its errors."""

NAME_CHARACTERS = 48
"""Longest name of a connection's calls: with what makes each change unique it is still a request id."""

NAME: ContextVar[str] = ContextVar("sev-calls", default="")
"""The name that the calls of a connection were given, while an operation of it runs."""


def check_name(name: str) -> str:
    """The name of a connection's calls; empty for none. Raises UsageError if it cannot be one."""
    rest = name.replace("-", "").replace("_", "").replace(".", "")
    if name and (len(name) > NAME_CHARACTERS or not name.isascii() or (rest and not rest.isalnum())):
        raise UsageError(
            f"request id {name!r:.80}: expected at most {NAME_CHARACTERS} letters, digits, dots, underscores and "
            "hyphens",
            field="request_id",
        )
    return name


def new_request_id() -> str:
    """A fresh request id: a UUID; where the calls have a name, the name with something unique behind a dot."""
    name = NAME.get()
    if name:
        import os

        return f"{name}.{os.urandom(6).hex()}"
    from uuid import uuid4

    return str(uuid4())


def device(method: str, request: Message, answer: type[M], request_id: str) -> Call[M]:
    """A call that reaches the firmware and changes something."""
    return Call(method, request, answer, seconds=DEVICE_SECONDS, request_id=request_id)


def ask(call: Call[M]) -> Operation[M]:
    """One call as an operation: its answer."""
    answer: M = yield call
    return answer


def fresh_id() -> str:
    """An id of a call that has none: shorter than a UUID, and quicker."""
    import os

    return os.urandom(8).hex()


class Stream(Generic[R]):
    """A call that is answered again and again, each answer made into an `R`."""

    __slots__ = ("call", "convert")

    def __init__(self, call: Call[Any], convert: Callable[[Any], R]) -> None:
        self.call = call
        self.convert = convert


class Failure:
    """A call that failed, as gRPC tells it: name of the code, its sentence, trailing metadata."""

    __slots__ = ("code", "details", "metadata")

    def __init__(self, code: str, details: str, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        self.code = code
        self.details = details
        self.metadata = metadata


class Attempts:
    """Decides what follows a failed call: a pause and another attempt, or an error.

    A daemon that refuses, restarts or is unavailable is waited for up to `timeout`; a socket that is not there and
    was never there, or that this caller may not open, is told at once.

    Args:
        call: The call under way.
        target: Whom it goes to.
        timeout: Seconds to wait for the daemon.
        now: The time at the start, in seconds of a monotonic clock.
        seen: The daemon has answered on this connection before, so that a missing socket means a restart.
        name: The name that calls of this connection have.

    Attributes:
        request_id: The id of the call: its request's, else the name, else one of its own.
    """

    def __init__(
        self, call: Call[Any], target: Target, timeout: float, now: float, *, seen: bool, name: str = ""
    ) -> None:
        self._call = call
        self._target = target
        self._timeout = timeout
        self._until = now + timeout
        self._seen = seen
        self._closed = 0
        self._looks = 0
        self._heard = now - HEAR_SECONDS
        self.request_id = call.request_id or name or fresh_id()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes along with the call."""
        text = self.request_id
        fits = text.isascii() and text.isprintable() and text.strip() == text
        return ((REQUEST_ID_KEY, text),) if fits else ()

    @property
    def seconds(self) -> float:
        """The deadline of one attempt."""
        return self._timeout + self._call.seconds

    def after(self, failure: Failure, now: float) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            SevError: There will be none; what the failure means.
        """
        from sev.rpc_errors import from_failure

        error = from_failure(failure, self.request_id)
        if failure.code == "DEADLINE_EXCEEDED":
            raise self._too_slow()
        if failure.code == "CANCELLED" and failure.details not in CANCELLED_HERE:
            # A daemon that stops: gRPC drops what has arrived and was not begun.
            if not self._call.repeatable or now + RECONNECT_SECONDS >= self._until:
                raise error
            return RECONNECT_SECONDS
        if failure.code != "UNAVAILABLE":
            raise error
        if self._target.remote and now >= self._heard + HEAR_SECONDS:
            self._heard = now
            refused = self._target.tls_refusal()
            if refused is not None:
                refused.request_id = refused.request_id or self._call.request_id
                raise refused
        self._looks += 1
        glance = not self._closed and (self._seen or self._looks > 1) and self._looks % (GLANCES + 1) != 0
        number = self._target.probe(0.0) if glance else self._target.probe()
        # Once may be a daemon that stops; a daemon that lives and closes again and again does not admit this caller.
        if number == ECONNABORTED or not glance:
            self._closed = self._closed + 1 if number == ECONNABORTED else 0
        if self._closed == CLOSED_PROBES:
            raise self._not_admitted()
        refusal = self._target.refusal(number)
        if refusal is not None and not self._seen:
            raise refusal
        if not self._call.repeatable or now + RECONNECT_SECONDS >= self._until:
            raise self._silent(failure, number)
        return RECONNECT_SECONDS

    def _not_admitted(self) -> NotPermitted:
        return NotPermitted(
            f"{self._target.address}: the daemon closes the connection at once: this user has no role there, "
            "or has too many connections",
            field="socket",
            remedy="Ask for membership of the group that may use this daemon (usually sev), or run as root.",
        )

    def lost(self, failure: Failure) -> SevError:
        """What it means that a stream broke after its first answer; nothing is tried again, answers may be missing."""
        from sev.rpc_errors import from_failure

        error = from_failure(failure, self.request_id)
        if failure.code == "UNAVAILABLE":
            error.remedy = "The daemon ended or was restarted; start watching again."
        return error

    def _silent(self, failure: Failure, number: int) -> SevError:
        import os

        from sev.errors import Unreachable

        why = os.strerror(number) if number else failure.details or "unavailable"
        return Unreachable(
            f"{self._target.address} does not answer ({why}); waited {self._timeout:g} s",
            errno=number or None,
            request_id=self._call.request_id,
        )

    def _too_slow(self) -> SevError:
        from sev.errors import NotNow

        return NotNow(
            f"{self._call.method}: no answer within {self.seconds:g} s",
            request_id=self.request_id,
            remedy="The daemon runs but is busy, perhaps with a slow firmware command: try again later, or wait longer "
            "with --timeout." + (" Whether the request acted is not known." if self._call.request_id else ""),
        )
