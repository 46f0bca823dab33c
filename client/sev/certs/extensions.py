"""Certificate extensions: the four of RFC 5280 that AMD's authorities use, and AMD's own of VCEK and VLEK.

Source: VCEK/VLEK specification (AMD 57230), arc 1.3.6.1.4.1.3704.1. Patch levels are INTEGERs 0 to 255; hwID is raw
bytes inside extnValue, 64 for Milan and Genoa and 8 from Turin on, of which a form wrapped in a second OCTET STRING
has been seen too.
"""

from __future__ import annotations

from sev.certs import der
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_AMD_ARC = bytes.fromhex("2b060104019c7801")

LEVELS = {1: "bootloader", 2: "tee", 3: "snp", 8: "microcode", 9: "fmc"}
"""TCB component by the last number of its patch-level extension."""

LEVEL_NUMBERS = {name: number for number, name in LEVELS.items()}
"""The reverse."""

RESERVED_LEVELS = (4, 5, 6, 7)
_LEVEL_NUMBERS = frozenset((*LEVELS, *RESERVED_LEVELS))
_LEVEL_START = bytes((der.SEQUENCE, 17, der.OID, 10)) + _AMD_ARC + b"\x03"
_LEVEL_VALUE = bytes((der.OCTET_STRING, 3, der.INTEGER, 1))
_LEVEL_SIZE = 19
HWID_SIZES = (64, 8)

MAX_EXTENSIONS = 32
KEY_CERT_SIGN, CRL_SIGN = 5, 6
"""Bit numbers of keyUsage."""


class Extensions:
    """What the extensions of one certificate say; None, 0, False or empty where they say nothing.

    Attributes:
        is_ca: basicConstraints, cA.
        path_length: basicConstraints, pathLenConstraint.
        key_usage: Bit numbers that keyUsage sets; None if there is no keyUsage.
        subject_key_id, authority_key_id: Key identifiers.
        crl_url: First URL of cRLDistributionPoints.
        struct_version: structVersion of a leaf.
        product_name: productName of a leaf.
        level_numbers: Patch levels by the last number of their extension.
        hwid: hwID, 64 or 8 bytes.
        csp_id: cspID.
        others: Dotted OIDs of extensions that are not critical and not known here.
    """

    __slots__ = (
        "authority_key_id", "crl_url", "csp_id", "hwid", "is_ca", "key_usage", "level_numbers", "others", "path_length",
        "product_name", "struct_version", "subject_key_id",
    )  # fmt: skip

    def __init__(self) -> None:
        self.is_ca = False
        self.path_length: int | None = None
        self.key_usage: frozenset[int] | None = None
        self.subject_key_id: bytes | None = None
        self.authority_key_id: bytes | None = None
        self.crl_url = ""
        self.struct_version: int | None = None
        self.product_name = ""
        self.level_numbers: dict[int, int] = {}
        self.hwid: bytes | None = None
        self.csp_id: str | None = None
        self.others: tuple[str, ...] = ()

    def may_sign_certificates(self) -> bool:
        """Whether keyUsage allows signing certificates; a certificate without keyUsage restricts nothing."""
        return self.key_usage is None or KEY_CERT_SIGN in self.key_usage

    def may_sign_lists(self) -> bool:
        """Whether keyUsage allows signing revocation lists; a certificate without keyUsage restricts nothing."""
        return self.key_usage is None or CRL_SIGN in self.key_usage

    def read(self, data: bytes, at: int, end: int) -> None:
        """Fills this from the contents of the [3] element at `at` to `end`.

        Raises:
            MalformedInput: Any extension that is malformed, comes twice, or is critical and not understood.
        """
        at, stop = der.expect(data, at, end, der.SEQUENCE, "extensions")
        der.finish(stop, end, "extensions")
        if at == stop:
            raise MalformedInput("extensions: present but empty", field="extensions")
        seen: set[bytes] = set()
        levels, starts = self.level_numbers, data.startswith
        while at < stop:
            # Eight of a VCEK's eleven extensions: a patch level below 128, every length in short form.
            if starts(_LEVEL_START, at) and at + _LEVEL_SIZE <= stop and starts(_LEVEL_VALUE, at + 14):
                number, value = data[at + 13], data[at + 18]
                if value < 0x80 and number in _LEVEL_NUMBERS and number not in levels:
                    levels[number] = value
                    at += _LEVEL_SIZE
                    continue
            oid, critical, start, at = one(data, at, stop)
            if oid in seen or len(seen) == MAX_EXTENSIONS:
                what = "a second time" if oid in seen else f"one more than {MAX_EXTENSIONS}"
                raise MalformedInput(f"extension {der.oid_text(oid)}: {what}, at offset {start}", field="extensions")
            seen.add(oid)
            if oid.startswith(_AMD_ARC):
                known = self._amd(oid[len(_AMD_ARC) :], data, start, at)
            else:
                reader = _STANDARD.get(oid)
                known = reader is not None
                if reader is not None:
                    reader(self, data, start, at)
            if not known:
                if critical:
                    raise MalformedInput(f"extension {der.oid_text(oid)}: critical and not understood at {start}")
                self.others += (der.oid_text(oid),)

    @property
    def levels(self) -> dict[str, int]:
        """Patch level by TCB component."""
        return {name: self.level_numbers[number] for number, name in LEVELS.items() if number in self.level_numbers}

    @property
    def reserved_levels(self) -> dict[int, int]:
        """Patch levels 4 to 7, which have no component, by number."""
        return {number: self.level_numbers[number] for number in RESERVED_LEVELS if number in self.level_numbers}

    def _amd(self, suffix: bytes, data: bytes, start: int, stop: int) -> bool:
        if len(suffix) == 2 and suffix[0] == 3 and suffix[1] in _LEVEL_NUMBERS:
            value, at = der.integer(data, start, stop, "patch level")
            der.finish(at, stop, "patch level")
            if value > 0xFF or suffix[1] in self.level_numbers:
                raise MalformedInput(
                    f"patch level {suffix[1]}: {value} at offset {start}, expected once and 0 to 255",
                    field="patch level",
                )
            self.level_numbers[suffix[1]] = value
            return True
        if len(suffix) != 1:
            return False
        number = suffix[0]
        if number == 1:
            self.struct_version, at = der.integer(data, start, stop, "structVersion")
            der.finish(at, stop, "structVersion")
        elif number == 2:
            self.product_name = _ia5(data, start, stop, "productName")
        elif number == 4:
            self.hwid = _hwid(data, start, stop)
        elif number == 5:
            self.csp_id = _ia5(data, start, stop, "cspID")
        else:
            return False
        return True


def one(data: bytes, at: int, stop: int) -> tuple[bytes, bool, int, int]:
    """The Extension at `at`: OID content, critical, start and end of the value; it ends where the value does.

    Raises:
        MalformedInput: Any other shape.
    """
    expect = der.expect
    inner, end = expect(data, at, stop, der.SEQUENCE, "extension")
    inner, value = expect(data, inner, end, der.OID, "extnID")
    oid = data[inner:value]
    critical = False
    if value < end and data[value] == der.BOOLEAN:
        critical, value = der.boolean(data, value, end, "critical")
        if not critical:
            raise MalformedInput(f"extension {der.oid_text(oid)}: the default, not critical, is written out")
    value, value_end = expect(data, value, end, der.OCTET_STRING, "extnValue")
    der.finish(value_end, end, "extension")
    return oid, critical, value, value_end


def sequence(data: bytes, at: int, end: int) -> list[tuple[bytes, bool, int, int]]:
    """The Extensions at `at`, each as `one` has it, each OID once, 32 at most.

    Raises:
        MalformedInput: Any other shape.
    """
    at, stop = der.expect(data, at, end, der.SEQUENCE, "extensions")
    der.finish(stop, end, "extensions")
    found: list[tuple[bytes, bool, int, int]] = []
    while at < stop:
        found.append(one(data, at, stop))
        at = found[-1][3]
    oids = {extension[0] for extension in found}
    if not found or len(oids) != len(found) or len(found) > MAX_EXTENSIONS:
        raise MalformedInput(f"extensions: {len(found)}, expected 1 to {MAX_EXTENSIONS}, each once", field="extensions")
    return found


def _ia5(data: bytes, start: int, stop: int, what: str) -> str:
    at, end = der.expect(data, start, stop, der.IA5, what)
    der.finish(end, stop, what)
    content = data[at:end]
    text = content.decode("ascii", "replace")
    if not content.isascii() or not text.isprintable() or not 1 <= len(text) <= 256:
        raise MalformedInput(f"{what}: at offset {start}, expected 1 to 256 printable ASCII characters", field=what)
    return text


def _hwid(data: bytes, start: int, stop: int) -> bytes:
    content = data[start:stop]
    # A raw identifier has exactly one of the two sizes; the wrapper makes it two bytes longer.
    if len(content) in HWID_SIZES:
        return content
    if len(content) - 2 in HWID_SIZES:
        at, end = der.expect(data, start, stop, der.OCTET_STRING, "hwID")
        der.finish(end, stop, "hwID")
        return data[at:end]
    raise MalformedInput(f"hwID: {len(content)} bytes at offset {start}, expected 64 or 8", field="hwID")


def _basic_constraints(out: Extensions, data: bytes, start: int, stop: int) -> None:
    what = "basicConstraints"
    at, end = der.expect(data, start, stop, der.SEQUENCE, what)
    der.finish(end, stop, what)
    if at < end and data[at] == der.BOOLEAN:
        out.is_ca, at = der.boolean(data, at, end, what)
        if not out.is_ca:
            raise MalformedInput(f"{what}: the default, no CA, is written out at offset {start}", field=what)
    if at < end:
        out.path_length, at = der.integer(data, at, end, what)
    der.finish(at, end, what)


def _key_usage(out: Extensions, data: bytes, start: int, stop: int) -> None:
    at, end = der.expect(data, start, stop, der.BIT_STRING, "keyUsage")
    der.finish(end, stop, "keyUsage")
    content = data[at:end]
    if not 2 <= len(content) <= 3 or content[0] > 7 or content[-1] & (1 << content[0]) - 1 or not content[-1]:
        raise MalformedInput(f"keyUsage: {content.hex()} at offset {start}, expected 1 to 9 named bits")
    value = content[1:]
    out.key_usage = frozenset(bit for bit in range(8 * len(value)) if value[bit >> 3] >> (7 - (bit & 7)) & 1)


def _subject_key_id(out: Extensions, data: bytes, start: int, stop: int) -> None:
    at, end = der.expect(data, start, stop, der.OCTET_STRING, "subjectKeyIdentifier")
    der.finish(end, stop, "subjectKeyIdentifier")
    out.subject_key_id = data[at:end]


def authority_key_id(data: bytes, start: int, stop: int) -> bytes | None:
    """keyIdentifier of an authorityKeyIdentifier; None if it names the issuer in another way.

    Raises:
        MalformedInput: Not such an extension.
    """
    what = "authorityKeyIdentifier"
    at, end = der.expect(data, start, stop, der.SEQUENCE, what)
    der.finish(end, stop, what)
    found: bytes | None = None
    while at < end:
        tag, inner, at = der.element(data, at, end, what)
        if tag == 0x80:
            found = data[inner:at]
    return found


def _authority_key_id(out: Extensions, data: bytes, start: int, stop: int) -> None:
    out.authority_key_id = authority_key_id(data, start, stop)


def _crl_url(out: Extensions, data: bytes, start: int, stop: int) -> None:
    what = "cRLDistributionPoints"
    at, end = der.expect(data, start, stop, der.SEQUENCE, what)
    der.finish(end, stop, what)
    at, end = der.expect(data, at, end, der.SEQUENCE, what)
    # DistributionPoint { [0] DistributionPointName { [0] fullName { [6] URI } } }; other forms are of no use here.
    for tag in (0xA0, 0xA0, 0x86):
        found, at, end = der.element(data, at, end, what)
        if found != tag:
            return
    out.crl_url = data[at:end].decode("ascii", "replace")


_STANDARD: dict[bytes, Callable[[Extensions, bytes, int, int], None]] = {
    b"\x55\x1d\x0e": _subject_key_id,
    b"\x55\x1d\x0f": _key_usage,
    b"\x55\x1d\x13": _basic_constraints,
    b"\x55\x1d\x1f": _crl_url,
    b"\x55\x1d\x23": _authority_key_id,
}
