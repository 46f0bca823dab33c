"""Memory that a process lends for one request: worked on in copies, and written back at the end.

A request of many commands on the process's own small structures would cross into its memory many times for each. Who
lends a range leaves it alone until the answer comes.
"""

from __future__ import annotations

from collections.abc import Callable


class LentMemory:
    """Copies of ranges.

    Args:
        write: Writes bytes to an address of the process.
    """

    __slots__ = ("_copies", "_write")

    def __init__(self, write: Callable[[int, bytearray], None]) -> None:
        self._write = write
        self._copies: list[_Copy] = []

    def __bool__(self) -> bool:
        return bool(self._copies)

    def add(self, address: int, copy: bytearray) -> None:
        """A range and what is there; none that is partly in another one."""
        if not self.touches(address, len(copy)):
            self._copies.append(_Copy(address, copy))

    def read(self, address: int, size: int) -> bytes | None:
        """Bytes of a copy; None if no copy holds them."""
        found = self._find(address, size)
        if found is None:
            return None
        copy, offset = found
        return bytes(copy.data[offset : offset + size])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> bool:
        """Changes a copy; False if no copy holds the range."""
        found = self._find(address, len(data))
        if found is None:
            return False
        copy, offset = found
        end = offset + len(data)
        copy.data[offset:end] = data
        copy.low, copy.high = min(copy.low, offset), max(copy.high, end)
        return True

    def touches(self, address: int, size: int) -> bool:
        """Whether a range is partly in a copy: then all must be given back before it is looked at."""
        return any(copy.address < address + size and address < copy.address + len(copy.data) for copy in self._copies)

    def give_back(self) -> None:
        """Writes back what was changed, and forgets the copies. Raises as `write`."""
        copies, self._copies = self._copies, []
        for copy in copies:
            if copy.low < copy.high:
                self._write(copy.address + copy.low, copy.data[copy.low : copy.high])

    def _find(self, address: int, size: int) -> tuple[_Copy, int] | None:
        for copy in self._copies:
            offset = address - copy.address
            if offset >= 0 and offset + size <= len(copy.data):
                return copy, offset
        return None


class _Copy:
    """What lies at an address; `low` to `high` of it was changed."""

    __slots__ = ("address", "data", "high", "low")

    def __init__(self, address: int, data: bytearray) -> None:
        self.address = address
        self.data = data
        self.low, self.high = len(data), 0
