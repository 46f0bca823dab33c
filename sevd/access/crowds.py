"""Users who have as many connections as they may have, and go on connecting: refused without being looked at.

Who a caller is takes a dozen system calls to find out. For somebody whose last connection was one too many, and whose
refusals are too many to be recorded, his user suffices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.errors import LimitReached
from sevd.access.peer import uid_of

if TYPE_CHECKING:
    import socket

    from sev.errors import SevError
    from sevd.access.accounts import Accounts
    from sevd.access.refusals import Refusals


class Crowds:
    """Those users. On one event loop."""

    def __init__(self, accounts: Accounts, refusals: Refusals) -> None:
        self._accounts = accounts
        self._refusals = refusals
        self._most: dict[int, int] = {}

    def note(self, uid: int, error: SevError) -> None:
        """A user's connection was refused."""
        if error.metadata.get("limit") == "connections_per_identity":
            self._most[uid] = int(error.metadata["value"])

    def clear(self) -> None:
        """Other limits hold."""
        self._most.clear()

    def full(self, client: socket.socket, *, units: bool) -> bool:
        """Whether the user at the other end still has as many connections as he may have, and one more refusal would
        not be recorded; counts it then. Where units have rules (`units`) a user may be several identities: False."""
        if not self._most:
            return False
        try:
            uid = uid_of(client)
        except OSError:
            return False
        most, owner = self._most.get(uid), f"uid:{uid}"
        if most is None:
            return False
        account = self._accounts.get(owner)
        if account is None or account.connections < most or units:
            del self._most[uid]
            return False
        return not self._refusals.recorded(owner, LimitReached.reason)
