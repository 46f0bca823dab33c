"""Types of option values: integers with 0x, sizes such as 64MiB, bytes in hex. Each says what it expected.

They are argparse types: called with the word, they answer the value or raise ArgumentTypeError, which the parser turns
into a usage error that names the option.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

SIZE_UNITS = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "kib": 1 << 10,
    "kb": 1000,
    "m": 1 << 20,
    "mib": 1 << 20,
    "mb": 1000**2,
    "g": 1 << 30,
    "gib": 1 << 30,
    "gb": 1000**3,
    "t": 1 << 40,
    "tib": 1 << 40,
    "tb": 1000**4,
}
"""Unit in lower case to bytes; a single letter is binary, as QEMU has it."""


def _refuse(message: str) -> NoReturn:
    from argparse import ArgumentTypeError

    raise ArgumentTypeError(message)


def integer(minimum: int = 0, maximum: int = (1 << 64) - 1) -> Callable[[str], int]:
    """A whole number in decimal, 0x hex, 0o octal or 0b binary, from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        digits = text.strip()
        try:
            if len(digits) > 80:
                raise ValueError
            value = int(digits, 10 if digits.lstrip("+-").isdecimal() else 0)
        except ValueError:
            _refuse(f"expected a whole number such as 4 or 0x1f, not {text!r}")
        if not minimum <= value <= maximum:
            top = f"{maximum:#x}" if maximum > 1 << 20 else f"{maximum}"
            _refuse(f"expected a number from {minimum} to {top}, not {text}")
        return value

    return parse


def hex_integer(maximum: int = (1 << 64) - 1) -> Callable[[str], int]:
    """A number in hexadecimal with or without 0x, as sev-snp-measure takes guest features."""

    def parse(text: str) -> int:
        try:
            if len(text) > 80:
                raise ValueError
            value = int(text.strip(), 16)
        except ValueError:
            _refuse(f"expected a hexadecimal number such as 0x21, not {text!r}")
        if not 0 <= value <= maximum:
            _refuse(f"expected a number from 0x0 to {maximum:#x}, not {text}")
        return value

    return parse


def size(minimum: int = 0, maximum: int = 1 << 50) -> Callable[[str], int]:
    """A number of bytes: decimal or 0x, with a unit of `SIZE_UNITS` in any case (64MiB, 2G, 540672)."""

    def parse(text: str) -> int:
        word = text.strip().lower()
        number = word
        if not word.startswith("0x"):
            number = word.rstrip("abcdefghijklmnopqrstuvwxyz ")
        unit = word[len(number) :].strip()
        try:
            if unit not in SIZE_UNITS or len(number) > 40:
                raise ValueError
            value = int(number, 16 if word.startswith("0x") else 10) * SIZE_UNITS[unit]
        except ValueError:
            _refuse(f"expected a size such as 64MiB, 2G or 540672, not {text!r}")
        if not minimum <= value <= maximum:
            _refuse(f"expected a size from {minimum} to {maximum} bytes, not {text}")
        return value

    return parse


def hex_bytes(length: int | None = None, *, maximum: int | None = None) -> Callable[[str], bytes]:
    """Bytes in hex, with or without 0x, in any case; colons and spaces between bytes are allowed.

    Args:
        length: The exact number of bytes.
        maximum: The most bytes, where fewer are allowed too.
    """

    def parse(text: str) -> bytes:
        digits = text.strip().removeprefix("0x").removeprefix("0X").replace(":", "").replace(" ", "")
        try:
            value = bytes.fromhex(digits)
        except ValueError:
            shown = text if len(text) <= 40 else text[:37] + "..."
            _refuse(f"expected hexadecimal digits, two per byte, not {shown!r}")
        if length is not None and len(value) != length:
            _refuse(f"expected {length} bytes ({2 * length} hexadecimal digits), not {len(value)} bytes")
        if maximum is not None and len(value) > maximum:
            _refuse(f"expected at most {maximum} bytes ({2 * maximum} hexadecimal digits), not {len(value)} bytes")
        return value

    return parse


def decoded(text: str, length: int) -> bytes | None:
    """`length` bytes that a text spells in hex (0x allowed) or base64; None if it does not."""
    from base64 import b64decode

    digits = text.removeprefix("0x")
    try:
        if len(digits) == 2 * length:
            return bytes.fromhex(digits)
        data = b64decode(text, validate=True)
    except ValueError:
        return None
    return data if len(data) == length else None
