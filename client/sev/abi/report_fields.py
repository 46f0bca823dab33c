"""Descriptors from which the layout of the attestation report is written down: one line a field, read when asked for.

A field knows its offset, its size and the report version that brought it; in a report of an older version it is None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, overload

if TYPE_CHECKING:
    from typing import Self

    from sev.abi.tcb import TcbVersion
    from sev.products import Product


class HasBytes(Protocol):
    """What a field reads from."""

    @property
    def raw(self) -> bytes:
        """The whole structure."""

    @property
    def tcb_layout(self) -> Product | None:
        """The processor line whose TCB layout applies."""


class Field:
    """One field of the structure.

    Attributes:
        name: Its name, the attribute's.
        offset, size: Where it stands, in bytes.
        since: Report version that brought it.
    """

    __slots__ = ("name", "offset", "since", "size")

    def __init__(self, offset: int, size: int, *, since: int = 2) -> None:
        self.name = ""
        self.offset = offset
        self.size = size
        self.since = since

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def read(self, report: HasBytes) -> object:
        """The value in this report; None where its version has no such field."""
        raise NotImplementedError


class Number(Field):
    """A little-endian unsigned integer that every version has."""

    __slots__ = ()

    def read(self, report: HasBytes) -> int:
        return int.from_bytes(report.raw[self.offset : self.offset + self.size], "little")

    @overload
    def __get__(self, report: None, owner: type) -> Self: ...
    @overload
    def __get__(self, report: HasBytes, owner: type) -> int: ...
    def __get__(self, report: HasBytes | None, owner: type) -> Self | int:
        return self if report is None else self.read(report)


class LaterNumber(Field):
    """A little-endian unsigned integer that a later version brought; None before."""

    __slots__ = ()

    def read(self, report: HasBytes) -> int | None:
        raw = report.raw
        if int.from_bytes(raw[:4], "little") < self.since:
            return None
        return int.from_bytes(raw[self.offset : self.offset + self.size], "little")

    @overload
    def __get__(self, report: None, owner: type) -> Self: ...
    @overload
    def __get__(self, report: HasBytes, owner: type) -> int | None: ...
    def __get__(self, report: HasBytes | None, owner: type) -> Self | int | None:
        return self if report is None else self.read(report)


class Octets(Field):
    """Bytes, as they stand."""

    __slots__ = ()

    def read(self, report: HasBytes) -> bytes:
        return report.raw[self.offset : self.offset + self.size]

    @overload
    def __get__(self, report: None, owner: type) -> Self: ...
    @overload
    def __get__(self, report: HasBytes, owner: type) -> bytes: ...
    def __get__(self, report: HasBytes | None, owner: type) -> Self | bytes:
        return self if report is None else self.read(report)


class Tcb(Field):
    """A TCB_VERSION; None where it is not known which line's byte order applies (see `tcb_raw`)."""

    __slots__ = ()

    def __init__(self, offset: int) -> None:
        super().__init__(offset, 8)

    def read(self, report: HasBytes) -> TcbVersion | None:
        from sev.abi.tcb import TcbVersion

        layout = report.tcb_layout
        if layout is None:
            return None
        return TcbVersion(int.from_bytes(report.raw[self.offset : self.offset + 8], "little"), layout)

    @overload
    def __get__(self, report: None, owner: type) -> Self: ...
    @overload
    def __get__(self, report: HasBytes, owner: type) -> TcbVersion | None: ...
    def __get__(self, report: HasBytes | None, owner: type) -> Self | TcbVersion | None:
        return self if report is None else self.read(report)


class Version(Field):
    """A firmware version, bytes build, minor, major: read as (major, minor, build)."""

    __slots__ = ()

    def __init__(self, offset: int) -> None:
        super().__init__(offset, 3)

    def read(self, report: HasBytes) -> tuple[int, int, int]:
        raw = report.raw
        return raw[self.offset + 2], raw[self.offset + 1], raw[self.offset]

    @overload
    def __get__(self, report: None, owner: type) -> Self: ...
    @overload
    def __get__(self, report: HasBytes, owner: type) -> tuple[int, int, int]: ...
    def __get__(self, report: HasBytes | None, owner: type) -> Self | tuple[int, int, int]:
        return self if report is None else self.read(report)
