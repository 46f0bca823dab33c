"""TCB_VERSION: eight bytes of security patch levels, whose order depends on the processor line.

Source: SEV-SNP firmware ABI (AMD 56860), TCB_VERSION; the byte of each component is the `tcb_bytes` column of
`sev.products`. The 64-bit integer form is those eight bytes read as little-endian. Bytes that a line does not name are
kept and shown in `raw`; they are never dropped.
"""

from __future__ import annotations

from sev.errors import MalformedInput, UsageError
from sev.products import TCB_COMPONENTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sev.products import Product

SIZE = 8
"""Bytes of TCB_VERSION."""


class TcbVersion:
    """One TCB version of one processor line; immutable, hashable.

    Two versions are equal if their eight bytes and their byte orders are. There is no `<`: versions are compared per
    component, by `at_most` and `exceeding`, because one number hides a component that went down.

    Attributes:
        raw: The eight bytes as a little-endian integer.
        product: The processor line whose byte order applies.
    """

    __slots__ = ("product", "raw")

    raw: int
    product: Product

    def __init__(self, raw: int, product: Product) -> None:
        """Raises UsageError: `raw` is not a 64-bit value, or the line has no SNP."""
        if not 0 <= raw < 1 << 64:
            raise UsageError(f"TCB version {raw:#x}: expected a 64-bit number", field="tcb")
        if not product.tcb_bytes:
            raise UsageError(f"{product.name} has no SNP, so it has no TCB version", field="product")
        object.__setattr__(self, "raw", raw)
        object.__setattr__(self, "product", product)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"TcbVersion is immutable; {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"TcbVersion is immutable; {name} cannot be deleted")

    def __reduce__(self) -> tuple[object, tuple[int, str]]:
        return _restore, (self.raw, self.product.name)

    @classmethod
    def from_int(cls, raw: int, product: Product) -> TcbVersion:
        """The version whose eight bytes, read as a little-endian integer, are `raw`."""
        return cls(raw, product)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, product: Product) -> TcbVersion:
        """The version in eight bytes of firmware memory.

        Raises:
            MalformedInput: Not eight bytes.
        """
        if len(data) != SIZE:
            raise MalformedInput(f"TCB version: {len(data)} bytes, expected {SIZE}", field="tcb")
        return cls(int.from_bytes(data, "little"), product)

    @classmethod
    def of(
        cls,
        product: Product,
        *,
        fmc: int | None = None,
        bootloader: int = 0,
        tee: int = 0,
        snp: int = 0,
        microcode: int = 0,
    ) -> TcbVersion:
        """The version with these components, 0 to 255 each; `fmc` only where the line has it.

        Raises:
            UsageError: A component out of range, or one that this line does not have.
        """
        named = {"bootloader": bootloader, "tee": tee, "snp": snp, "microcode": microcode}
        have = product.components
        # A zero for a component that the line has not is the default; an fmc that was given is meant.
        values = {name: value for name, value in named.items() if value or name in have}
        return cls._build(product, values if fmc is None else {"fmc": fmc, **values})

    @classmethod
    def parse(cls, text: str, product: Product) -> TcbVersion:
        """A version from what people write.

        Accepted: `bootloader=4,snp=24` (components not named are 0), `0x` and hexadecimal digits or exactly 16 of them
        (most significant first), and the JSON object that `document` makes.

        Raises:
            UsageError: Anything else.
        """
        plain = text.strip()
        if plain.startswith("{"):
            return cls._from_json(plain, product)
        if "=" in plain:
            values: dict[str, int] = {}
            for part in plain.split(","):
                name, _, number = (word.strip() for word in part.partition("="))
                if name in values:
                    raise UsageError(f"TCB version {text!r}: {name} is given twice", field="tcb")
                values[name] = _number(number, name, text)
            return cls._build(product, values)
        digits = plain[2:] if plain[:2] in ("0x", "0X") else plain
        if digits.isascii() and digits.isalnum() and (len(digits) == 2 * SIZE or digits is not plain):
            try:
                return cls(int(digits, 16), product)
            except ValueError:
                pass
        raise UsageError(
            f"TCB version {text!r}: expected name=number pairs ({', '.join(product.components)}), "
            "16 hexadecimal digits, or a JSON object",
            field="tcb",
        )

    @classmethod
    def _from_json(cls, text: str, product: Product) -> TcbVersion:
        from json import JSONDecodeError, loads

        try:
            parsed: object = loads(text)
        except (JSONDecodeError, RecursionError) as error:
            raise UsageError(f"TCB version: not a JSON object ({error})", field="tcb") from None
        if not isinstance(parsed, dict):
            raise UsageError("TCB version: expected a JSON object", field="tcb")
        return cls.from_document(parsed, product)

    @classmethod
    def from_document(cls, document: Mapping[str, object], product: Product) -> TcbVersion:
        """The version that `document` (or a part of one) describes: components, `raw`, or both in agreement.

        Raises:
            UsageError: An unknown name, a value out of range, or components that contradict `raw`.
        """
        raw_text = document.get("raw")
        values: dict[str, int] = {}
        for name, value in document.items():
            if name == "raw" or value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"TCB version: {name} is {value!r}, expected a number from 0 to 255", field="tcb")
            values[name] = value
        if raw_text is None:
            return cls._build(product, values)
        if not isinstance(raw_text, str):
            raise UsageError(f"TCB version: raw is {raw_text!r}, expected 16 hexadecimal digits", field="tcb")
        whole = cls.parse(raw_text if "=" not in raw_text and "{" not in raw_text else "", product)
        for name, value in values.items():
            if whole.get(name) != value:
                raise UsageError(f"TCB version: {name} is {value}, but raw says {whole.get(name)}", field="tcb")
        return whole

    @classmethod
    def _build(cls, product: Product, values: Mapping[str, int]) -> TcbVersion:
        places = dict(product.tcb_bytes)
        raw = 0
        for name, value in values.items():
            if name not in places:
                known = ", ".join(product.components) or "none"
                raise UsageError(f"TCB version: {product.name} has no component {name!r}; it has {known}", field="tcb")
            if not 0 <= value <= 0xFF:
                raise UsageError(f"TCB version: {name} is {value}, expected 0 to 255", field="tcb")
            raw |= value << 8 * places[name]
        return cls(raw, product)

    def encode(self) -> bytes:
        """The eight bytes as firmware keeps them."""
        return self.raw.to_bytes(SIZE, "little")

    def get(self, component: str) -> int | None:
        """The value of a component; None if this line does not have it."""
        for name, place in self.product.tcb_bytes:
            if name == component:
                return self.raw >> 8 * place & 0xFF
        return None

    @property
    def fmc(self) -> int | None:
        """First mutable code; None before Turin."""
        return self.get("fmc")

    @property
    def bootloader(self) -> int | None:
        """Boot loader of the secure processor."""
        return self.get("bootloader")

    @property
    def tee(self) -> int | None:
        """Operating system of the secure processor."""
        return self.get("tee")

    @property
    def snp(self) -> int | None:
        """SNP firmware."""
        return self.get("snp")

    @property
    def microcode(self) -> int | None:
        """Lowest microcode patch level of all cores."""
        return self.get("microcode")

    @property
    def unknown(self) -> int:
        """The bytes that this line names no component for, in place, as a 64-bit mask of what is set there."""
        mask = 0
        for _, place in self.product.tcb_bytes:
            mask |= 0xFF << 8 * place
        return self.raw & ~mask

    def components(self) -> dict[str, int]:
        """Component values by name, most significant first."""
        places = dict(self.product.tcb_bytes)
        return {name: self.raw >> 8 * places[name] & 0xFF for name in TCB_COMPONENTS if name in places}

    def replace(self, **components: int) -> TcbVersion:
        """A copy with these components changed; bytes that are not named keep their value."""
        changed = self._build(self.product, components).raw
        places = dict(self.product.tcb_bytes)
        mask = 0
        for name in components:
            mask |= 0xFF << 8 * places[name]
        return TcbVersion(self.raw & ~mask | changed, self.product)

    def exceeding(self, other: TcbVersion) -> tuple[str, ...]:
        """The components that are greater here than in `other`, most significant first.

        Raises:
            UsageError: The two belong to lines with different byte orders.
        """
        if self.product.tcb_bytes != other.product.tcb_bytes:
            raise UsageError(
                f"TCB versions of {self.product.name} and {other.product.name} cannot be compared", field="tcb"
            )
        theirs = other.components()
        return tuple(name for name, value in self.components().items() if value > theirs[name])

    def at_most(self, other: TcbVersion) -> bool:
        """Whether no component exceeds the same one of `other`."""
        return not self.exceeding(other)

    def document(self) -> dict[str, object]:
        """The JSON form: components most significant first, and `raw` as 16 hexadecimal digits."""
        return {**self.components(), "raw": f"{self.raw:016x}"}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TcbVersion):
            return NotImplemented
        return self.raw == other.raw and self.product.tcb_bytes == other.product.tcb_bytes

    def __hash__(self) -> int:
        return hash((self.raw, self.product.tcb_bytes))

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.components().items())

    def __repr__(self) -> str:
        return f"<TcbVersion {self.product.name} {self} raw={self.raw:016x}>"


def _restore(raw: int, product: str) -> TcbVersion:
    from sev.products import by_name

    return TcbVersion(raw, by_name(product))


def _number(digits: str, name: str, text: str) -> int:
    try:
        return int(digits, 0)
    except ValueError:
        raise UsageError(f"TCB version {text!r}: {name} has no number", field="tcb") from None
