"""Kinds of values that a policy can speak of: how each is read from a policy, compared and shown.

A kind turns what stands in a policy into a value of its own (`read`), and says whether a report's value is the expected
one (`equal`), not below a floor or not above a ceiling (`at_least`, `at_most`). Kinds without an order refuse floors.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import Any

from sev.abi.tcb import TcbVersion
from sev.errors import UsageError
from sev.products import TCB_COMPONENTS, by_name


class Kind:
    """Base: values that are equal or not."""

    ordered = False
    what = "a value"

    def read(self, value: object, field: str) -> Any:
        """The value as it stands in a policy.

        Raises:
            UsageError: It is not of this kind.
        """
        raise NotImplementedError

    def equal(self, actual: Any, expected: Any) -> bool:
        """Whether the report has what is expected."""
        return bool(actual == expected)

    def at_least(self, actual: Any, floor: Any) -> bool:
        """Whether the report's value is not below the floor."""
        return bool(actual >= floor)

    def at_most(self, actual: Any, ceiling: Any) -> bool:
        """Whether the report's value is not above the ceiling."""
        return bool(actual <= ceiling)

    def show(self, value: Any) -> object:
        """The value in JSON."""
        return value

    def refuse(self, value: object, field: str) -> UsageError:
        """The error for a value that is not of this kind."""
        return UsageError(f"policy: {field} is {value!r}, expected {self.what}", field=field)


class Number(Kind):
    """An unsigned integer of so many bits; in a policy an integer, or "0x…" where the format has no such integers."""

    ordered = True

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.what = f"an integer of at most {bits} bits"

    def read(self, value: object, field: str) -> int:
        number = value
        if isinstance(value, str) and value[:2] in ("0x", "0X"):
            try:
                number = int(value, 16)
            except ValueError:
                raise self.refuse(value, field) from None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << self.bits:
            raise self.refuse(value, field)
        return number


class Mask(Number):
    """A set of bits: a floor must be contained in it, a ceiling must contain it."""

    def at_least(self, actual: Any, floor: Any) -> bool:
        return not floor & ~actual

    def at_most(self, actual: Any, ceiling: Any) -> bool:
        return not actual & ~ceiling


class Word(Number):
    """A 64-bit word of flags as a whole: no order; shown in hexadecimal."""

    ordered = False

    def __init__(self) -> None:
        super().__init__(64)
        self.what = "a 64-bit integer, or a table of bits"

    def read(self, value: object, field: str) -> int:
        raw = getattr(value, "raw", value)
        if isinstance(raw, str) and len(raw) == 16:
            raw = f"0x{raw}"
        return super().read(raw, field)

    def show(self, value: Any) -> object:
        return f"{value:#x}"


class Octets(Kind):
    """So many bytes; in a policy hexadecimal, at full length."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.what = f"{2 * size} hexadecimal digits ({size} bytes)"

    def read(self, value: object, field: str) -> bytes:
        content: bytes | None = None
        if isinstance(value, bytes | bytearray):
            content = bytes(value)
        elif isinstance(value, str) and value.isalnum() and value.isascii():
            try:
                content = bytes.fromhex(value)
            except ValueError:
                content = None
        if content is None or len(content) != self.size:
            raise self.refuse(value, field)
        return content

    def equal(self, actual: Any, expected: Any) -> bool:
        return compare_digest(actual, expected)

    def show(self, value: Any) -> object:
        return value.hex()


class Version(Kind):
    """A version of so many numbers, as text "1.55.29"."""

    ordered = True

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self.what = f"a version like {'1.55.29' if parts == 3 else '1.55'}, as text"

    def read(self, value: object, field: str) -> tuple[int, ...]:
        words = value.split(".") if isinstance(value, str) else []
        if len(words) != self.parts or not all(word.isascii() and word.isdecimal() and len(word) < 4 for word in words):
            raise self.refuse(value, field)
        return tuple(int(word) for word in words)

    def show(self, value: Any) -> object:
        return ".".join(str(part) for part in value)


class Text(Kind):
    """A text, of a closed list or free."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices
        self.what = f"one of {', '.join(choices)}" if choices else "a text"

    def read(self, value: object, field: str) -> str:
        if not isinstance(value, str) or not value or (self.choices and value not in self.choices):
            raise self.refuse(value, field)
        return value


class ProductName(Kind):
    """A processor line by name."""

    what = "the name of a processor line"

    def read(self, value: object, field: str) -> str:
        if not isinstance(value, str):
            raise self.refuse(value, field)
        return by_name(value).name


class Flag(Kind):
    """True or false."""

    what = "true or false"

    def read(self, value: object, field: str) -> bool:
        if not isinstance(value, bool):
            raise self.refuse(value, field)
        return value


class Bit(Kind):
    """One bit, or the set of bits without a name: "required", "forbidden" or "any"."""

    what = '"required", "forbidden" or "any"'

    def read(self, value: object, field: str) -> str:
        if value not in ("required", "forbidden", "any") or not isinstance(value, str):
            raise self.refuse(value, field)
        return value

    def equal(self, actual: Any, expected: Any) -> bool:
        return bool(expected == "any" or bool(actual) == (expected == "required"))


class Tcb(Kind):
    """A TCB version, whole or by component. The processor line is known only when the report is there.

    A value is a mapping from component to number, of which only the components named count, or the 64-bit number.
    """

    ordered = True
    what = f"components ({', '.join(TCB_COMPONENTS)}) with numbers from 0 to 255, or 16 hexadecimal digits"

    def read(self, value: object, field: str) -> int | dict[str, int]:
        if isinstance(value, TcbVersion):
            return value.raw
        if isinstance(value, str):
            return self._text(value, field)
        if not isinstance(value, dict) or not value:
            raise self.refuse(value, field)
        if "raw" in value:
            # The document form: the components beside raw say the same again.
            return self._text(str(value["raw"]), field)
        return {self._component(name, field): self._level(level, name, field) for name, level in value.items()}

    def _text(self, value: str, field: str) -> int | dict[str, int]:
        if "=" in value:
            levels: dict[str, int] = {}
            for part in value.split(","):
                name, _, digits = (word.strip() for word in part.partition("="))
                if name in levels or not digits.isdecimal() or not digits.isascii() or len(digits) > 3:
                    raise self.refuse(value, field)
                levels[self._component(name, field)] = self._level(int(digits), name, field)
            return levels
        digits = value[2:] if value[:2] in ("0x", "0X") else value
        if not digits.isalnum() or len(digits) > 16 or (digits is value and len(digits) != 16):
            raise self.refuse(value, field)
        try:
            return int(digits, 16)
        except ValueError:
            raise self.refuse(value, field) from None

    def _component(self, name: object, field: str) -> str:
        if name not in TCB_COMPONENTS or not isinstance(name, str):
            raise UsageError(
                f"policy: {field} has no component {name!r}, expected {', '.join(TCB_COMPONENTS)}", field=field
            )
        return name

    def _level(self, level: object, name: str, field: str) -> int:
        if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= 0xFF:
            raise UsageError(f"policy: {field}.{name} is {level!r}, expected a number from 0 to 255", field=field)
        return level

    def equal(self, actual: Any, expected: Any) -> bool:
        if isinstance(expected, int):
            return bool(actual.raw == expected)
        return all(actual.get(name) == level for name, level in expected.items())

    def at_least(self, actual: Any, floor: Any) -> bool:
        if isinstance(floor, int):
            return TcbVersion(floor, actual.product).at_most(actual)
        levels = [(actual.get(name), level) for name, level in floor.items()]
        return all(have is not None and have >= level for have, level in levels)

    def at_most(self, actual: Any, ceiling: Any) -> bool:
        if isinstance(ceiling, int):
            return bool(actual.at_most(TcbVersion(ceiling, actual.product)))
        levels = [(actual.get(name), level) for name, level in ceiling.items()]
        return all(have is not None and have <= level for have, level in levels)

    def show(self, value: Any) -> object:
        if isinstance(value, TcbVersion):
            return value.document()
        return {"raw": f"{value:016x}"} if isinstance(value, int) else dict(value)
