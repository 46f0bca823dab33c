"""Structures of the kernel's ABI as classes: named fields at fixed offsets, little-endian, lengths checked."""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar, Self

from sev.errors import MalformedInput


class Record:
    """Base of structures. A subclass is a frozen dataclass with slots and a FORMAT.

    FORMAT has one token of the struct module for each field, in the order of the fields, with padding tokens ("4x")
    between them. There is no implicit padding. A field of another structure has the token "<size>s" and stands in
    NESTED.
    """

    __slots__ = ()

    FORMAT: ClassVar[str] = ""
    NESTED: ClassVar[dict[str, type[Record]]] = {}
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<")

    def __init_subclass__(cls) -> None:
        cls.LAYOUT = struct.Struct("<" + cls.FORMAT)

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of the fields in the order in which they stand."""
        names: tuple[str, ...] = cls.__dict__["__match_args__"]
        return names

    @classmethod
    def size(cls) -> int:
        """Bytes of the structure."""
        return cls.LAYOUT.size

    @classmethod
    def offsets(cls) -> dict[str, tuple[int, int]]:
        """Offset and size of every field, in bytes."""
        out: dict[str, tuple[int, int]] = {}
        names = iter(cls.fields())
        offset = 0
        for token in cls.FORMAT.split():
            size = struct.calcsize("<" + token)
            if not token.endswith("x"):
                out[next(names)] = (offset, size)
            offset += size
        return out

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self:
        """Reads the structure.

        Raises:
            MalformedInput: Not exactly `size()` bytes.
        """
        if len(data) != cls.LAYOUT.size:
            raise MalformedInput(
                f"{cls.__name__}: {len(data)} bytes where exactly {cls.LAYOUT.size} were expected", field=cls.__name__
            )
        values = cls.LAYOUT.unpack(data)
        if cls.NESTED:
            values = tuple(
                cls.NESTED[name].decode(value) if name in cls.NESTED else value
                for name, value in zip(cls.fields(), values, strict=True)
            )
        return cls(*values)

    def encode(self) -> bytes:
        """Writes the structure.

        Raises:
            MalformedInput: A value does not fit its field.
        """
        values, blobs = _PLANS.get(type(self)) or _plan(type(self))
        row = values(self)
        if blobs:
            row = [*row]
            for index, name, size in blobs:
                value = row[index]
                if isinstance(value, Record):
                    row[index] = value = value.encode()
                if len(value) != size:
                    raise MalformedInput(
                        f"{type(self).__name__}.{name}: {len(value)} bytes where exactly {size} were expected",
                        field=name,
                    )
        try:
            return self.LAYOUT.pack(*row)
        except struct.error as error:
            raise MalformedInput(
                f"{type(self).__name__}: a value does not fit its field: {error}", field=type(self).__name__
            ) from None


_Plan = tuple[Callable[[Record], Any], tuple[tuple[int, str, int], ...]]
_PLANS: dict[type[Record], _Plan] = {}


def _plan(kind: type[Record]) -> _Plan:
    """How a structure is written: what fetches its values, and its fields of bytes (index, name, size)."""
    tokens = [token for token in kind.FORMAT.split() if not token.endswith("x")]
    offsets = kind.offsets()
    blobs = tuple(
        (index, name, offsets[name][1]) for index, name in enumerate(kind.fields()) if tokens[index].endswith("s")
    )
    plan = _PLANS[kind] = (attrgetter(*kind.fields()), blobs)
    return plan
