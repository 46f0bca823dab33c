"""How much memory a process of the real host may lock, as the kernel reckons it for SEV: RLIMIT_MEMLOCK, CAP_IPC_LOCK.

The capability counts in the simulator's own user namespace alone, which stands for the host's first one.

Source: arch/x86/kvm/svm/sev.c, sev_pin_memory; proc(5).
"""

from __future__ import annotations

import os
import re
import resource

_CAP_IPC_LOCK = 14


def lockable(pid: int) -> int | None:
    """Bytes that a process may lock; None: any number, or it is gone."""
    limit = _limit(pid)
    if limit is None or _may_exceed(pid):
        return None
    return limit


def _limit(pid: int) -> int | None:
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
    except ProcessLookupError:
        return None
    except OSError:  # another user's: that can be read all the same
        return _limit_as_text(pid)
    return None if soft == resource.RLIM_INFINITY else soft


def _limit_as_text(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/limits", encoding="ascii") as file:
            found = re.search(r"^Max locked memory +(\d+)", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def _may_exceed(pid: int) -> bool:
    """It has CAP_IPC_LOCK."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            found = re.search(r"^CapEff:\s*([0-9a-f]+)", file.read(), re.MULTILINE)
        own, its = (os.stat(f"/proc/{name}/ns/user") for name in ("self", pid))
    except OSError:
        return False
    held = int(found[1], 16) if found else 0
    return bool(held >> _CAP_IPC_LOCK & 1) and (own.st_dev, own.st_ino) == (its.st_dev, its.st_ino)
