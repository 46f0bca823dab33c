"""Address space identifiers of guests, as KVM keeps them (arch/x86/kvm/svm/sev.c).

A freed ASID is not clean: caches and the data fabric may hold its data. It waits, and is given again only when no fresh
one is left, after one flush of the whole machine.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from sevd.simulator.errnos import fail


class AsidPool:
    """The ASIDs first to last, both included; an empty range if last < first.

    Args:
        first: Lowest ASID.
        last: Highest ASID.
        flush: WBINVD and DF_FLUSH on the whole machine; raises OSError if the firmware refuses.
    """

    def __init__(self, first: int, last: int, flush: Callable[[], None]) -> None:
        self.first = first
        self.last = last
        self.flushes = 0
        self._flush = flush
        self._fresh = first
        self._clean: list[int] = []
        self._used: set[int] = set()
        self._dirty: set[int] = set()
        self._leaked: set[int] = set()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """How many there are."""
        return max(0, self.last - self.first + 1)

    @property
    def in_use(self) -> int:
        """How many guests hold one; leaked ones are not counted, as the misc cgroup does not."""
        with self._lock:
            return len(self._used)

    def take(self) -> int:
        """The lowest free ASID.

        Raises:
            OSError: ENOTTY: the range is empty; EBUSY: every ASID is in use.
        """
        with self._lock:
            if not self.total:
                fail(errno.ENOTTY)
            if not self._clean and self._fresh > self.last:
                self._recycle()
            if self._clean:
                asid = self._clean.pop()
            else:
                asid, self._fresh = self._fresh, self._fresh + 1
            self._used.add(asid)
            return asid

    def give(self, asid: int) -> None:
        """Gives an ASID back, to be flushed before it is used again."""
        with self._lock:
            self._used.remove(asid)
            self._dirty.add(asid)

    def leak(self, asid: int) -> None:
        """Writes an ASID off: its guest could not be decommissioned."""
        with self._lock:
            self._used.remove(asid)
            self._leaked.add(asid)

    def _recycle(self) -> None:
        if not self._dirty:
            fail(errno.EBUSY)
        try:
            self._flush()
        except OSError:
            fail(errno.EBUSY)
        self.flushes += 1
        self._clean = sorted(self._dirty, reverse=True)
        self._dirty.clear()
