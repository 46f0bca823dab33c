"""What each identity uses at the moment, over all its connections, and what it is refused beyond.

An account lives as long as its identity has a connection or a call. All of it belongs to one event loop.
"""

from __future__ import annotations

from collections import deque

from sev.errors import LimitReached
from sev.records import field, mutable_record, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevd.access.identity import Caller
    from sevd.access.turns import Waiter

RETRY_SECONDS = 1.0
"""What a caller is advised to wait where a limit passes by itself and nobody knows when."""


@record
class GateLimits:
    """How many connections there may be.

    Attributes:
        connections: In all.
        connections_per_identity: Of one identity that has no limit of its own.
    """

    connections: int = 2048
    connections_per_identity: int = 256


@record
class CallLimits:
    """What calls of one identity may use, where it has no limits of its own.

    Attributes:
        calls: Calls in flight, streams included.
        bytes_in_flight: Bytes of requests that were received and are not done with.
    """

    calls: int = 256
    bytes_in_flight: int = 256 << 20


@mutable_record
class Account:
    """What one identity uses at the moment.

    Attributes:
        owner: The identity.
        connections: Open connections.
        calls: Calls in flight.
        held: Bytes of requests that were received and are not done with.
        debt: Seconds of the event loop that it has cost and not paid for (sevd.access.turns).
        paid_at: When it was last reckoned up.
        begun: Calls that were passed to the server.
        arrived: Calls that have come to their handlers.
        received: Bytes of messages that were passed to the server.
        delivered: Bytes of messages that have come to their handlers.
        grown_from: Memory of the process when it began to be watched (sevd.access.fullness).
        line: Its connections that wait for its turn (sevd.access.turns).
        awaited: They will be looked at.
        seen: How many had when it was last looked at.
        seen_at: When that changed.
    """

    owner: str
    connections: int = 0
    calls: int = 0
    held: int = 0
    debt: float = 0.0
    paid_at: float = 0.0
    begun: int = 0
    arrived: int = 0
    received: int = 0
    delivered: int = 0
    grown_from: int = 0
    line: deque[Waiter] = field(default_factory=deque)
    awaited: bool = False
    seen: int = 0
    seen_at: float = 0.0

    def admit_connection(self, caller: Caller, limits: GateLimits) -> None:
        """Counts a connection in. Raises LimitReached."""
        most = caller.limits.connections or limits.connections_per_identity
        if self.connections >= most:
            raise reached(
                "connections_per_identity",
                most,
                f"{self.owner} has {self.connections} connections",
                "Use one connection for many calls.",
            )
        self.connections += 1

    def admit_call(self, caller: Caller, limits: CallLimits) -> None:
        """Counts a call in. Raises LimitReached."""
        most = caller.limits.calls or limits.calls
        if self.calls >= most:
            raise reached(
                "calls_per_identity",
                most,
                f"{self.calls} calls of {self.owner} are in flight",
                "Wait for some of them to end.",
            )
        self.calls += 1

    def hold(self, size: int, caller: Caller, limits: CallLimits) -> None:
        """Counts a request's bytes in; to be followed by `held -= size`. Raises LimitReached."""
        most = caller.limits.bytes_in_flight or limits.bytes_in_flight
        if self.held + size > most:
            raise reached(
                "bytes_in_flight",
                most,
                f"{self.held + size} bytes of requests of {self.owner} are in flight",
                "Wait for earlier calls to end, or send less at once.",
            )
        self.held += size


class Accounts:
    """All accounts."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def __iter__(self) -> Iterator[Account]:
        return iter(tuple(self._accounts.values()))

    def of(self, owner: str) -> Account:
        """The account of an identity; a new one is kept from here on, until `settle` finds nothing in it."""
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = Account(owner)
        return account

    def get(self, owner: str) -> Account | None:
        """The account of an identity that has something in use."""
        return self._accounts.get(owner)

    def settle(self, account: Account) -> None:
        """Forgets an account of which nothing is in use."""
        if not (account.connections or account.calls) and self._accounts.get(account.owner) is account:
            del self._accounts[account.owner]

    def move(self, connections: int, calls: int, held: int, before: Account, after: Account) -> None:
        """What was one identity's is another's from here on: the configuration knows it by another name now."""
        for account, sign in ((before, -1), (after, 1)):
            account.connections += sign * connections
            account.calls += sign * calls
            account.held += sign * held
        self.settle(before)


def reached(limit: str, value: int, what: str, remedy: str) -> LimitReached:
    """The refusal beyond a limit: which, how much, and when to try again."""
    return LimitReached(
        f"{what}: no more than {value} are allowed to one identity",
        remedy=remedy,
        metadata={"limit": limit, "value": str(value)},
        retry_after=RETRY_SECONDS,
    )
