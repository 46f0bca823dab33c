"""What every call passes through, whatever it calls: identity, role, limits, the journal, the audit trail, errors."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError, Message

from sev.errors import (
    ConfirmationMissing,
    DeviceMissing,
    InternalError,
    LimitReached,
    MalformedInput,
    NotFound,
    NotPermitted,
    SevError,
    Unreachable,
)
from sevd.access.accounts import Account, CallLimits
from sevd.access.gate import Connection
from sevd.access.refusals import Refusals
from sevd.access.roles import Role
from sevd.api.faults import Failure, failure
from sevd.api.once import Once, check_id
from sevd.api.receiving import Requests
from sevd.api.rules import Method
from sevd.api.trace import Trace
from sevd.audit import Audit
from sevd.calling import CURRENT
from sevd.devices.missing import remedy_of
from sevd.journal import Outcome
from sevd.metrics.tally import Tally

if TYPE_CHECKING:
    from sevd.tracing import Spans

_BOUNDED = (NotPermitted, LimitReached, NotFound)
"""Refusals that a caller can have as often as he likes: only so many are recorded one by one."""

_AUDITED = (NotPermitted, ConfirmationMissing, LimitReached, NotFound)
"""Refusals that are recorded for calls that change nothing, too."""

_NO_CONNECTION = "this connection did not come through the daemon's sockets"

log = logging.getLogger(__name__)


class Frame:
    """The surroundings of all calls of one daemon."""

    def __init__(
        self,
        connections: Mapping[str, Connection],
        audit: Audit,
        once: Once,
        missing: Callable[[str], Sequence[str]],
        *,
        limits: CallLimits | None = None,
        settle: Callable[[Account], None] = lambda account: None,
        refusals: Refusals | None = None,
        tally: Tally | None = None,
    ) -> None:
        """
        Args:
            connections: Admitted connections by what gRPC reports as their peer.
            audit: Where records go.
            once: Calls under request ids.
            missing: What is missing for the calls of a service that need the device; nothing if it is there.
            limits: What calls of one identity may use.
            refusals: Which refusals are recorded one by one.
            settle: Called with an account after the last call of a connection that has ended.
            tally: Where calls are counted.
        """
        self.tally = tally or Tally()
        self.spans: Spans | None = None
        """Where spans of calls are written."""
        self.connections = connections
        self.limits = limits or CallLimits()
        self.requests = Requests()
        self.stopping = False
        self.in_flight = 0
        """Calls in flight, streams included."""
        self._unary = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._audit = audit
        self._once = once
        self._missing = missing
        self._settle = settle
        self._refusals = refusals or Refusals(lambda owner, reason, count: None)

    def enter(
        self, peer: str, role: Role | None, name: str, *, stream: bool = False, known: bool = False
    ) -> Connection:
        """Who calls, counted in; to be followed by `leave`. A `stream` of answers is one that a stop does not wait for;
        a `known` call is one that was counted as arrived before.

        Raises:
            Unreachable: The connection has ended, or never was one of ours.
            NotPermitted: The caller's role does not suffice.
            LimitReached: Too many calls of this identity are in flight.
        """
        connection = self.connections.get(peer)
        if connection is None:
            raise Unreachable(_NO_CONNECTION, remedy="Connect again, to the daemon's socket.")
        caller, account = connection.caller, connection.account
        if not known:
            account.arrived += 1
        call = CURRENT.get()
        if call is not None:
            call.owner = caller.owner
        if role is not None and caller.role < role:
            raise NotPermitted(
                f"{name} needs the role {role.text}; {caller.owner} is {caller.role.text} here",
                remedy=_role_remedy(role),
                metadata={"role": caller.role.text, "needed": role.text},
            )
        account.admit_call(caller, self.limits)
        connection.calls += 1
        self.in_flight += 1
        if not stream:
            self._unary += 1
            self._idle.clear()
        return connection

    def crowded(self, connection: Connection) -> bool:
        """Whether another call of this identity would be refused."""
        return connection.account.calls >= (connection.caller.limits.calls or self.limits.calls)

    def leave(self, connection: Connection, *, stream: bool = False) -> None:
        """Counts a call out."""
        self.count_out(connection)
        self.in_flight -= 1
        if not stream:
            self._unary -= 1
            if not self._unary:
                self._idle.set()

    def count_out(self, connection: Connection) -> None:
        """Takes a call off what its connection and its identity have in flight."""
        connection.calls -= 1
        account = connection.account
        account.calls -= 1
        if not account.calls:
            account.delivered = account.received  # nothing can wait for a call that there is not
            if not connection.open:
                self._settle(account)

    def read(self, method: Method, raw: bytes, trace: Trace) -> Any:
        """The request, with what holds for every method checked.

        Raises:
            MalformedInput: It is no message of the method's type.
            ConfirmationMissing: The method is irreversible and was not confirmed.
            DeviceMissing: The method needs the device, and it is missing.
            UsageError: The request id is malformed.
        """
        try:
            request: Any = method.request.FromString(raw)
        except DecodeError:
            raise MalformedInput(
                f"the request is no {method.request.DESCRIPTOR.full_name}", remedy="Use a client of this API version."
            ) from None
        fields = method.fields
        if "guest_id" in fields:
            trace.target = request.guest_id[:64]
        if "validate_only" in fields:
            trace.validate_only = request.validate_only
        if "request_id" in fields:
            request_id = request.request_id
            check_id(request_id)
            trace.repeat_id = request_id
            trace.request_id = request_id or trace.request_id
        if method.destructive and not request.confirm:
            raise ConfirmationMissing(f"{method.name} cannot be undone and was not confirmed", field="confirm")
        if method.needs_device:
            self.need_device(method.name)
        return request

    def need_device(self, name: str) -> None:
        """Raises DeviceMissing with everything that is missing, if something is."""
        missing = list(self._missing(name.partition("/")[0]))
        if missing:
            raise DeviceMissing(
                f"{name} needs the device: {' '.join(missing)}",
                remedy=remedy_of(missing),
                metadata={"missing": "\n".join(missing)},
            )

    async def act(
        self,
        method: Method,
        connection: Connection,
        trace: Trace,
        raw: bytes,
        function: Callable[[], Awaitable[Message]],
    ) -> bytes:
        """Does a unary call, once under the request id if its request has one; the serialised response.

        Raises:
            SevError: It failed.
            Recorded: It failed, under a request id.
        """
        if not method.mutating or trace.validate_only or not trace.repeat_id:
            return (await function()).SerializeToString()

        async def outcome() -> Outcome:
            try:
                response = await function()
            except SevError as error:
                error.request_id = error.request_id or trace.request_id
                trace.error = error
                lost = failure(error)
                # A limit that passes by itself: nothing was done, and the same request may be sent again.
                kept = not isinstance(error, LimitReached) or error.errno is not None
                return Outcome(lost.code.value[0], lost.details, lost.message, lost.reason, kept)
            except Exception as error:
                trace.error = unexpected(error, method.name)
                lost = failure(trace.error)
                return Outcome(lost.code.value[0], lost.details, lost.message, lost.reason)
            return Outcome(0, response.SerializeToString())

        ended, trace.repeated = await self._once.run(
            connection.caller.owner,
            trace.repeat_id,
            method.path,
            hashlib.sha256(raw).hexdigest(),
            outcome,
            cancelled_by_caller=lambda: connection.open and not self.stopping,
        )
        if ended.code:
            raise Recorded(ended)
        return ended.content

    def failed(self, error: Exception, name: str, trace: Trace) -> Failure:
        """The wire form of whatever a call raised; unexpected errors are logged and answered without a trace."""
        if isinstance(error, Recorded):
            trace.error = trace.error or error.stand_in()
            lost = error.as_failure()
        else:
            if not isinstance(error, SevError):
                error = unexpected(error, name)
            error.request_id = error.request_id or trace.request_id
            trace.error = error
            lost = failure(error)
        trace.code = lost.code.name
        return lost

    def record(self, connection: Connection | None, trace: Trace, *, mutating: bool, cancelled: bool = False) -> None:
        """Counts a call that ended, and leaves its audit record if it deserves one."""
        seconds = time.monotonic() - trace.started
        code = "CANCELLED" if cancelled else trace.code
        self.tally.call(trace.method, code, None if trace.stream else seconds)
        if self.spans is not None:
            self.spans.call(trace, code, seconds)
        error = trace.error
        if connection is None or not (mutating or isinstance(error, _AUDITED)):
            return
        if isinstance(error, _BOUNDED) and not self._refusals.record(connection.caller.owner, error.reason):
            return
        facts: dict[str, object] = {"method": trace.method, "target": trace.target, "request_id": trace.request_id}
        if cancelled:
            facts["result"] = "cancelled"
        elif error is None:
            facts["result"] = "done"
        else:
            facts["result"] = "failed" if type(error) is InternalError else "refused"
            facts.update(reason=error.reason, message=error.message[:512])
            facts.update(firmware_status=error.firmware_status, errno=error.errno)
        if trace.validate_only:
            facts["validate_only"] = True
        if trace.repeated:
            facts["repeated"] = True
        facts["duration_ms"] = round(seconds * 1000, 1)
        peer, name = connection.peer, connection.listener.kind.name
        self._audit.call(connection.caller, connection.unit(), name, facts, names=peer.names, address=peer.address)

    def unanswered(self) -> int:
        """Calls that are under way, streams of answers aside, whether or not their caller still waits."""
        return max(self._unary, len(self._once))

    async def drain(self, seconds: float) -> None:
        """Waits for calls that are answered once, and for those whose caller is gone; cancels what takes longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        await self._once.drain(max(seconds / 10, 0.1))


class Recorded(Exception):
    """A failure that the journal has: it goes out as it was recorded."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome

    def stand_in(self) -> SevError:
        """An error for the audit record."""
        error = SevError(self.outcome.message)
        error.reason = self.outcome.reason
        return error

    def as_failure(self) -> Failure:
        """Its wire form."""
        code = next((code for code in grpc.StatusCode if code.value[0] == self.outcome.code), grpc.StatusCode.UNKNOWN)
        return Failure(code, self.outcome.message, self.outcome.content, self.outcome.reason)


def unexpected(error: Exception, name: str) -> InternalError:
    """Logs a bug of ours under a short id, and answers the error that names the id and nothing else."""
    incident = secrets.token_hex(4)
    log.error("unexpected failure incident=%s method=%s", incident, name, exc_info=error)
    return InternalError(
        f"unexpected failure; the daemon's log has it under {incident}",
        remedy="This is a bug in sevd; please report it with the lines of the daemon's log that name this incident.",
        metadata={"incident": incident},
    )


def _role_remedy(role: Role) -> str:
    if role is Role.ADMIN:
        return "Ask an administrator of this host (root), or call as one."
    return "Ask for membership of the group that may launch guests (usually sev)."
