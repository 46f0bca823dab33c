"""SNP guest policy: 64 bits that the guest owner fixes at launch and that every report repeats.

Source: SEV-SNP firmware ABI (AMD 56860), guest policy; later bits from the Linux header and newer ABI revisions.
Bits 0 to 15 are the least ABI version of the firmware, bit 17 must be one. Bits without a name here are kept in
`unknown`.
"""

from __future__ import annotations

from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

BITS: dict[str, int] = {
    "smt": 16,
    "reserved_mbo": 17,
    "migrate_ma": 18,
    "debug": 19,
    "single_socket": 20,
    "cxl_allow": 21,
    "mem_aes_256_xts": 22,
    "rapl_dis": 23,
    "ciphertext_hiding_dram": 24,
    "page_swap_disable": 25,
}
"""Bit number by name, lowest first."""

RESERVED_MBO = 1 << 17
"""The bit that must be one."""

DEFAULT = RESERVED_MBO | 1 << 16
"""What launches use when nothing else is asked for: SMT allowed, everything else off."""

_KNOWN = 0xFFFF | sum(1 << bit for bit in BITS.values())


class SnpPolicy:
    """A guest policy; immutable, hashable, kept as the 64-bit number it is.

    Attributes:
        raw: The number.
    """

    __slots__ = ("raw",)

    raw: int

    def __init__(self, raw: int) -> None:
        """Raises UsageError: not a 64-bit number."""
        if not 0 <= raw < 1 << 64:
            raise UsageError(f"guest policy {raw:#x}: expected a 64-bit number", field="policy")
        object.__setattr__(self, "raw", raw)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"SnpPolicy is immutable; {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"SnpPolicy is immutable; {name} cannot be deleted")

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return SnpPolicy, (self.raw,)

    @classmethod
    def of(cls, *, abi_major: int = 0, abi_minor: int = 0, **bits: bool) -> SnpPolicy:
        """The policy with these bits; `reserved_mbo` is one unless it is given.

        Raises:
            UsageError: An unknown name, or a version part that is not 0 to 255.
        """
        raw = 0
        for name, value, shift in (("abi_minor", abi_minor, 0), ("abi_major", abi_major, 8)):
            if not 0 <= value <= 0xFF:
                raise UsageError(f"guest policy: {name} is {value}, expected 0 to 255", field="policy")
            raw |= value << shift
        for name, on in {"reserved_mbo": True, **bits}.items():
            if name not in BITS:
                raise UsageError(f"guest policy: unknown bit {name!r}; known are {', '.join(BITS)}", field="policy")
            raw |= int(on) << BITS[name]
        return cls(raw)

    @classmethod
    def parse(cls, text: str) -> SnpPolicy:
        """A policy from what people write.

        Accepted: a number (decimal or `0x`), names separated by commas (`smt,debug`, and `abi=1.55`; the bit that must
        be one is added), and the JSON object that `document` makes.

        Raises:
            UsageError: Anything else.
        """
        plain = text.strip()
        if plain.startswith("{"):
            return cls._from_json(plain)
        try:
            return cls(int(plain, 0))
        except ValueError:
            pass
        bits: dict[str, bool] = {}
        version = (0, 0)
        for word in (part.strip().lower() for part in plain.split(",")):
            if word.startswith("abi="):
                version = _abi(word[4:])
            elif word in BITS:
                bits[word] = True
            else:
                raise UsageError(
                    f"guest policy {text!r}: expected a number, or names of {', '.join(BITS)}, or abi=MAJOR.MINOR",
                    field="policy",
                )
        return cls.of(abi_major=version[0], abi_minor=version[1], **bits)

    @classmethod
    def _from_json(cls, text: str) -> SnpPolicy:
        from json import JSONDecodeError, loads

        try:
            parsed: object = loads(text)
        except (JSONDecodeError, RecursionError) as error:
            raise UsageError(f"guest policy: not a JSON object ({error})", field="policy") from None
        if not isinstance(parsed, dict):
            raise UsageError("guest policy: expected a JSON object", field="policy")
        return cls.from_document(parsed)

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> SnpPolicy:
        """The policy that `document` (or a part of one) describes: names, `raw`, or both in agreement.

        Raises:
            UsageError: An unknown name, a value of the wrong type, or names that contradict `raw`.
        """
        bits: dict[str, bool] = {}
        numbers = {"abi_major": 0, "abi_minor": 0}
        for name, value in document.items():
            if name in BITS and isinstance(value, bool):
                bits[name] = value
            elif name in numbers and isinstance(value, int) and not isinstance(value, bool):
                numbers[name] = value
            elif name not in ("raw", "unknown"):
                raise UsageError(f"guest policy: {name}={value!r} is not a bit with true or false", field="policy")
        raw = document.get("raw")
        if raw is None:
            return cls.of(abi_major=numbers["abi_major"], abi_minor=numbers["abi_minor"], **bits)
        try:
            whole = cls(int(raw, 16)) if isinstance(raw, str) else None
        except ValueError:
            whole = None
        if whole is None:
            raise UsageError(f"guest policy: raw is {raw!r}, expected 16 hexadecimal digits", field="policy")
        for name in document:
            if name not in ("raw", "unknown") and whole.document()[name] != document[name]:
                raise UsageError(f"guest policy: {name} is {document[name]}, but raw says otherwise", field="policy")
        return whole

    @property
    def abi_minor(self) -> int:
        """Least ABI minor version of the firmware."""
        return self.raw & 0xFF

    @property
    def abi_major(self) -> int:
        """Least ABI major version of the firmware."""
        return self.raw >> 8 & 0xFF

    @property
    def smt(self) -> bool:
        """Simultaneous multithreading may be on."""
        return bool(self.raw >> 16 & 1)

    @property
    def reserved_mbo(self) -> bool:
        """The bit that must be one."""
        return bool(self.raw >> 17 & 1)

    @property
    def migrate_ma(self) -> bool:
        """The guest may have a migration agent."""
        return bool(self.raw >> 18 & 1)

    @property
    def debug(self) -> bool:
        """The host may read and write guest memory through debug commands."""
        return bool(self.raw >> 19 & 1)

    @property
    def single_socket(self) -> bool:
        """The guest may run on one socket only."""
        return bool(self.raw >> 20 & 1)

    @property
    def cxl_allow(self) -> bool:
        """CXL memory and devices may be present."""
        return bool(self.raw >> 21 & 1)

    @property
    def mem_aes_256_xts(self) -> bool:
        """Memory must be encrypted by AES-256-XTS."""
        return bool(self.raw >> 22 & 1)

    @property
    def rapl_dis(self) -> bool:
        """Running average power limit must be disabled."""
        return bool(self.raw >> 23 & 1)

    @property
    def ciphertext_hiding_dram(self) -> bool:
        """Ciphertext hiding must be on."""
        return bool(self.raw >> 24 & 1)

    @property
    def page_swap_disable(self) -> bool:
        """Commands that move or swap guest pages are refused."""
        return bool(self.raw >> 25 & 1)

    @property
    def unknown(self) -> int:
        """Bits that have no name here, in place."""
        return self.raw & ~_KNOWN

    def document(self) -> dict[str, object]:
        """The JSON form: every bit by name, `unknown` as a number, `raw` as 16 hexadecimal digits."""
        out: dict[str, object] = {"abi_major": self.abi_major, "abi_minor": self.abi_minor}
        for name, bit in BITS.items():
            out[name] = bool(self.raw >> bit & 1)
        out["unknown"] = self.unknown
        out["raw"] = f"{self.raw:016x}"
        return out

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, SnpPolicy) else NotImplemented

    def __hash__(self) -> int:
        return hash((SnpPolicy, self.raw))

    def __str__(self) -> str:
        words = [name for name, bit in BITS.items() if self.raw >> bit & 1 and name != "reserved_mbo"]
        if not self.reserved_mbo:
            words.append("reserved bit 17 is zero")
        if self.unknown:
            words.append(f"unknown {self.unknown:#x}")
        return f"{self.raw:#x} (ABI {self.abi_major}.{self.abi_minor}; {', '.join(words) or 'nothing allowed'})"

    def __repr__(self) -> str:
        return f"<SnpPolicy {self}>"


def _abi(text: str) -> tuple[int, int]:
    major, dot, minor = text.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal() and major.isascii() and minor.isascii()):
        raise UsageError(f"guest policy: abi={text}, expected abi=MAJOR.MINOR", field="policy")
    if len(major) > 3 or len(minor) > 3:
        raise UsageError(f"guest policy: abi={text}, expected numbers from 0 to 255", field="policy")
    return int(major), int(minor)
