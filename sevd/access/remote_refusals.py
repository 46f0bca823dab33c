"""Records of remote connections that were refused: so many a minute, and no more.

Whoever can reach the port can be refused as often as he likes, and the audit trail is bounded: without a limit he could
push everybody else's records out of it. Callers of this machine are counted each by itself (`sevd.access.refusals`);
a stranger may have any number of addresses and certificates, so here all together are bounded too. What is left out is
counted, and the count is recorded.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sevd.access.refusal import RemoteRefused
from sevd.access.refusals import WINDOW_SECONDS
from sevd.access.remote_peer import host_of

if TYPE_CHECKING:
    from sev.errors import SevError
    from sevd.audit import Audit

PER_CAUSE = 5
"""Records of one address, one certificate and one reason within that time: a client that tries again and again."""

PER_ADDRESS = 60
"""Records of one address within that time."""

IN_ALL = 200
"""Records within that time."""


class RemoteRefusals:
    """Those of one daemon. On one event loop."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._loop = asyncio.get_running_loop()
        self._counts: Counter[tuple[object, ...]] = Counter()
        self._recorded = 0
        self._left_out = 0
        self._end: asyncio.TimerHandle | None = None

    def record(
        self,
        socket: str,
        error: SevError,
        address: str,
        names: Sequence[str] = (),
        certificate: Mapping[str, object] | None = None,
    ) -> None:
        """Records one, if there is room for it."""
        host = (host_of(address),)
        cause = (*host, error.reason, (certificate or {}).get("serial"))
        if self._end is None:
            self._end = self._loop.call_later(WINDOW_SECONDS, self._renew, socket)
        if self._recorded >= IN_ALL or self._counts[host] >= PER_ADDRESS or self._counts[cause] >= PER_CAUSE:
            self._left_out += 1
            self._audit.count_refused(socket, error.reason)
            return
        self._recorded += 1
        self._counts.update((host, cause))
        self._audit.connection_refused(socket, None, error, names=names, address=address, certificate=certificate or {})

    def close(self) -> None:
        """Records what was left out so far."""
        if self._end is not None:
            self._end.cancel()
            self._renew("mtls")

    def _renew(self, socket: str) -> None:
        self._end = None
        self._counts.clear()
        self._recorded, left_out, self._left_out = 0, self._left_out, 0
        if left_out:
            self._audit.connection_refused(socket, None, RemoteRefused("NOT_RECORDED", f"{left_out} of them"))
