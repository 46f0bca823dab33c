"""Notices a caller who fills the daemon's memory with messages that never become whole.

What a handler has been given is counted exactly. What waits inside gRPC for the rest of its message nobody tells; known
are the bytes that went in and the bytes that came out. Their difference also has what was thrown away with calls that
ended, so it is a suspicion and no proof: the proof is that the process has grown meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sevd.access.accounts import Account

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of memory that this process has (proc_pid_statm(5)); 0 if that cannot be told."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def too_full(account: Account, most: int, measure: Callable[[], int] = resident) -> bool:
    """Whether an identity has more than `most` bytes waiting that have become no messages.

    From half of it on it is watched: if the process has not grown by a quarter of what has come since then, nothing
    waits, and counting begins anew.
    """
    waiting = account.received - account.delivered
    if waiting < most // 2:
        account.grown_from = 0
        return False
    if not account.grown_from:
        account.grown_from = measure()
        return False
    if waiting < most:
        return False
    grown = measure() - account.grown_from
    account.grown_from = 0
    account.delivered = account.received
    return grown > most // 8
