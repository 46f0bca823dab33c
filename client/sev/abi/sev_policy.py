"""SEV and SEV-ES guest policy: 32 bits that the guest owner fixes at launch and every measurement covers.

Source: SEV API specification (AMD 55766), guest policy structure. Bits 6 to 15 are reserved; bits 16 to 31 are the
least API version of the firmware. Most bits forbid something when they are set.
"""

from __future__ import annotations

from sev.errors import UsageError

BITS: dict[str, int] = {
    "nodbg": 0,
    "noks": 1,
    "es": 2,
    "nosend": 3,
    "domain": 4,
    "sev": 5,
}
"""Bit number by name, lowest first."""

MEANINGS: dict[str, str] = {
    "nodbg": "the host may not read or write guest memory through debug commands",
    "noks": "no other guest may share its keys",
    "es": "registers are encrypted: SEV-ES",
    "nosend": "it may not be sent to another platform",
    "domain": "it may be sent to platforms of the same owner only",
    "sev": "it may be sent to platforms with AMD's certificates only",
}

RESERVED = 0xFFC0
"""Bits that must be zero."""

DEFAULT = 1
"""What QEMU launches with when nothing else is asked for: no debugging."""


class SevPolicy:
    """A guest policy; immutable, hashable, kept as the 32-bit number it is.

    Attributes:
        raw: The number.
    """

    __slots__ = ("raw",)

    raw: int

    def __init__(self, raw: int) -> None:
        """Raises UsageError: not a 32-bit number."""
        if not 0 <= raw < 1 << 32:
            raise UsageError(f"SEV policy {raw:#x}: expected a 32-bit number", field="policy")
        object.__setattr__(self, "raw", raw)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"SevPolicy is immutable; {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"SevPolicy is immutable; {name} cannot be deleted")

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return SevPolicy, (self.raw,)

    @classmethod
    def of(cls, *names: str, api_major: int = 0, api_minor: int = 0) -> SevPolicy:
        """The policy with these bits.

        Raises:
            UsageError: An unknown name, or a version part that is not 0 to 255.
        """
        raw = 0
        for name, value, shift in (("api_major", api_major, 16), ("api_minor", api_minor, 24)):
            if not 0 <= value <= 0xFF:
                raise UsageError(f"SEV policy: {name} is {value}, expected 0 to 255", field="policy")
            raw |= value << shift
        for name in names:
            if name not in BITS:
                raise UsageError(f"SEV policy: unknown bit {name!r}; known are {', '.join(BITS)}", field="policy")
            raw |= 1 << BITS[name]
        return cls(raw)

    @classmethod
    def parse(cls, text: str) -> SevPolicy:
        """A policy from what people write: a number (decimal or `0x`), or names separated by commas
        (`nodbg,es`, and `api=1.55` for the least firmware).

        Raises:
            UsageError: Anything else.
        """
        plain = text.strip()
        try:
            return cls(int(plain, 0))
        except ValueError:
            pass
        names, version = [], (0, 0)
        for word in (part.strip().lower() for part in plain.split(",")):
            if word.startswith("api="):
                version = _version(word[4:])
            elif word in BITS:
                names.append(word)
            else:
                raise UsageError(
                    f"SEV policy {text!r}: expected a number, or names of {', '.join(BITS)}, or api=MAJOR.MINOR",
                    field="policy",
                )
        return cls.of(*names, api_major=version[0], api_minor=version[1])

    @property
    def names(self) -> tuple[str, ...]:
        """The bits that are set, by name."""
        return tuple(name for name, bit in BITS.items() if self.raw >> bit & 1)

    @property
    def es(self) -> bool:
        """The guest is an SEV-ES guest."""
        return bool(self.raw >> BITS["es"] & 1)

    @property
    def nodbg(self) -> bool:
        """Debug commands are forbidden."""
        return bool(self.raw >> BITS["nodbg"] & 1)

    @property
    def noks(self) -> bool:
        """Sharing keys is forbidden."""
        return bool(self.raw >> BITS["noks"] & 1)

    @property
    def nosend(self) -> bool:
        """Sending is forbidden."""
        return bool(self.raw >> BITS["nosend"] & 1)

    @property
    def domain(self) -> bool:
        """It may be sent to platforms of the same owner only."""
        return bool(self.raw >> BITS["domain"] & 1)

    @property
    def sev(self) -> bool:
        """It may be sent to platforms with AMD's certificates only."""
        return bool(self.raw >> BITS["sev"] & 1)

    @property
    def api_major(self) -> int:
        """Least API major version of the firmware."""
        return self.raw >> 16 & 0xFF

    @property
    def api_minor(self) -> int:
        """Least API minor version of the firmware."""
        return self.raw >> 24

    @property
    def reserved(self) -> int:
        """Reserved bits that are set, in place."""
        return self.raw & RESERVED

    def document(self) -> dict[str, object]:
        """The JSON form: every bit by name, `reserved` as a number, `raw` as 8 hexadecimal digits."""
        out: dict[str, object] = {name: bool(self.raw >> bit & 1) for name, bit in BITS.items()}
        out["api_major"], out["api_minor"] = self.api_major, self.api_minor
        out["reserved"] = self.reserved
        out["raw"] = f"{self.raw:08x}"
        return out

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, SevPolicy) else NotImplemented

    def __hash__(self) -> int:
        return hash((SevPolicy, self.raw))

    def __str__(self) -> str:
        words = [*self.names, *([f"reserved {self.reserved:#x}"] if self.reserved else ())]
        return f"{self.raw:#x} (API {self.api_major}.{self.api_minor}; {', '.join(words) or 'nothing forbidden'})"

    def __repr__(self) -> str:
        return f"<SevPolicy {self}>"


def _version(text: str) -> tuple[int, int]:
    major, dot, minor = text.partition(".")
    parts = (major, minor)
    if not dot or not all(part.isascii() and part.isdecimal() and len(part) <= 3 for part in parts):
        raise UsageError(f"SEV policy: api={text}, expected api=MAJOR.MINOR", field="policy")
    return int(major), int(minor)
