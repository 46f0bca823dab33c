"""ATTESTATION_REPORT: what the SNP firmware signs about a guest, 1184 bytes, little-endian.

Source: SEV-SNP firmware ABI (AMD 56860), ATTESTATION_REPORT, versions 2 to 5; later bits of PLATFORM_INFO from newer
revisions. Version 3 brought the CPUID bytes, version 5 the mitigation vectors; version 4 has the layout of version 3.
Bytes 0x000 to 0x29F are signed, as they were received: they are kept and never rebuilt from fields.

Decoding is lenient: a newer version is read as the newest known one, reserved bytes and unknown bits are kept and
shown. Whether any of that is acceptable is decided by verification and by the caller's policy.
"""

from __future__ import annotations

from struct import Struct

from sev.abi.policy import SnpPolicy
from sev.abi.report_fields import Field, LaterNumber, Number, Octets, Tcb, Version
from sev.errors import MalformedInput
from sev.products import ALL, by_cpuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.products import Product

SIZE = 0x4A0
SIGNED_SIZE = 0x2A0
"""Bytes of the report, and how many of them the signature covers."""

SIGNATURE_AT = 0x2A0
SIGNATURE_PART = 72
"""R and S stand one after the other, little-endian, 72 bytes each of which P-384 fills 48."""

HEAD = Struct("<I44xII16xI308xQBB")
"""What verification looks at, read at once: version, vmpl, signature_algo, key_info, reported_tcb and, from version 3
on, cpuid_fam_id and cpuid_mod_id."""

OLDEST_VERSION = 2
NEWEST_VERSION = 5
"""Versions whose layout is known here."""

ALGORITHM_ECDSA_P384_SHA384 = 1
HOST_VMPL = 0xFFFFFFFF
"""VMPL of a report that the host asked for, not the guest."""

SIGNING_KEYS = {0: "vcek", 1: "vlek", 7: "none"}
"""Name by number of the key that signed; 7 says that the report is not signed."""

PLATFORM_BITS: dict[str, int] = {
    "smt_en": 0,
    "tsme_en": 1,
    "ecc_en": 2,
    "rapl_dis": 3,
    "ciphertext_hiding_dram_en": 4,
    "alias_check_complete": 5,
    "iommu_write_safe": 6,
    "tio_en": 7,
}
"""Bit number by name in PLATFORM_INFO, lowest first."""

RESERVED: tuple[tuple[int, int, int], ...] = (
    (0x04C, 0x050, 2),
    (0x188, 0x18B, 0),
    (0x18B, 0x1A0, 2),
    (0x1EB, 0x1EC, 2),
    (0x1EF, 0x1F0, 2),
    (0x1F8, 0x208, 0),
    (0x208, 0x2A0, 2),
)
"""(from, to, kind) of what has no name: kind 2 in every version, kind 0 only before the field there (`_LATER`) came."""

_KEY_INFO_KNOWN = 0x1F
_PLATFORM_KNOWN = (1 << len(PLATFORM_BITS)) - 1
_LATER = {0x188: 3, 0x1F8: 5}


class Report:
    """One attestation report; immutable, equal if the bytes are.

    Fields have the names of the ABI in lower case. TCB versions are None where the byte order is not known: version 2
    names no processor, and only a chip id that needs 64 bytes tells that the order is Milan's and Genoa's.

    Attributes:
        raw: The 1184 bytes as received.
    """

    __slots__ = ("_layout", "raw")

    raw: bytes

    version = Number(0x000, 4)
    guest_svn = Number(0x004, 4)
    family_id = Octets(0x010, 16)
    image_id = Octets(0x020, 16)
    vmpl = Number(0x030, 4)
    signature_algo = Number(0x034, 4)
    current_tcb = Tcb(0x038)
    key_info = Number(0x048, 4)
    report_data = Octets(0x050, 64)
    measurement = Octets(0x090, 48)
    host_data = Octets(0x0C0, 32)
    id_key_digest = Octets(0x0E0, 48)
    author_key_digest = Octets(0x110, 48)
    report_id = Octets(0x140, 32)
    report_id_ma = Octets(0x160, 32)
    reported_tcb = Tcb(0x180)
    cpuid_fam_id = LaterNumber(0x188, 1, since=3)
    cpuid_mod_id = LaterNumber(0x189, 1, since=3)
    cpuid_step = LaterNumber(0x18A, 1, since=3)
    chip_id = Octets(0x1A0, 64)
    committed_tcb = Tcb(0x1E0)
    current_version = Version(0x1E8)
    committed_version = Version(0x1EC)
    launch_tcb = Tcb(0x1F0)
    launch_mit_vector = LaterNumber(0x1F8, 8, since=5)
    current_mit_vector = LaterNumber(0x200, 8, since=5)

    def __init__(self, raw: bytes, layout: Product | None = None) -> None:
        self.raw = raw
        self._layout = layout

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview, product: Product | None = None) -> Report:
        """The report in exactly 1184 bytes. Any version is taken; `verify` decides about it.

        Args:
            data: The report. `sev.attestation.recognise` finds it in other forms.
            product: Processor line to read the TCB versions by, where the report does not tell (version 2).

        Raises:
            MalformedInput: Any other length.
        """
        if len(data) != SIZE:
            short = "truncated" if len(data) < SIZE else "bytes left over"
            raise MalformedInput(f"attestation report: {len(data)} bytes, expected {SIZE} ({short})", field="report")
        return cls(bytes(data), product)

    def for_product(self, product: Product) -> Report:
        """The same report, TCB versions read by this line's byte order where the report itself tells none."""
        return Report(self.raw, product)

    @property
    def product(self) -> Product | None:
        """The processor line by the CPUID bytes; None for version 2 and for an unknown processor."""
        family, model = self.cpuid_fam_id, self.cpuid_mod_id
        return by_cpuid(family, model) if family is not None and model is not None else None

    @property
    def tcb_layout(self) -> Product | None:
        """The processor line whose TCB byte order applies; None if nothing tells it."""
        own = self.product
        if own is not None and own.has_snp:
            return own
        if self._layout is not None and self._layout.has_snp:
            return self._layout
        # Chip ids that need all 64 bytes exist only on lines that share one byte order.
        return _WIDE if _WIDE is not None and self.version < 3 and any(self.raw[0x1A8:0x1E0]) else None

    def tcb_raw(self, field: str) -> int:
        """The eight bytes of a TCB field by name, as a little-endian integer; needs no byte order."""
        offset = FIELDS[field].offset
        return int.from_bytes(self.raw[offset : offset + 8], "little")

    @property
    def policy(self) -> SnpPolicy:
        """Guest policy, as given at launch."""
        return SnpPolicy(int.from_bytes(self.raw[0x008:0x010], "little"))

    @property
    def platform_info(self) -> int:
        """PLATFORM_INFO as a number; PLATFORM_BITS names its bits."""
        return int.from_bytes(self.raw[0x040:0x048], "little")

    @property
    def platform_info_unknown(self) -> int:
        """Bits of PLATFORM_INFO that have no name here, in place."""
        return self.platform_info & ~_PLATFORM_KNOWN

    @property
    def author_key_en(self) -> bool:
        """The author key digest means something."""
        return bool(self.key_info & 1)

    @property
    def mask_chip_key(self) -> bool:
        """The host forbade the use of the VCEK."""
        return bool(self.key_info >> 1 & 1)

    @property
    def signing_key(self) -> str:
        """The key that signed: "vcek", "vlek", "none", or "reserved-N" for a number without a name."""
        number = self.key_info >> 2 & 7
        return SIGNING_KEYS.get(number) or f"reserved-{number}"

    @property
    def key_info_unknown(self) -> int:
        """Bits of the key information word that have no name here, in place."""
        return self.key_info & ~_KEY_INFO_KNOWN

    @property
    def provisional(self) -> bool:
        """The running firmware is not the committed one: it can still be rolled back."""
        return self.current_version != self.committed_version or self.raw[0x038:0x040] != self.raw[0x1E0:0x1E8]

    @property
    def signed(self) -> bytes:
        """The signed bytes, 672 of them."""
        return self.raw[:SIGNED_SIZE]

    @property
    def signature_r(self) -> int:
        """R of the ECDSA signature; all 72 bytes count."""
        return int.from_bytes(self.raw[SIGNATURE_AT : SIGNATURE_AT + SIGNATURE_PART], "little")

    @property
    def signature_s(self) -> int:
        """S of the ECDSA signature; all 72 bytes count."""
        start = SIGNATURE_AT + SIGNATURE_PART
        return int.from_bytes(self.raw[start : start + SIGNATURE_PART], "little")

    @property
    def reserved(self) -> dict[str, str]:
        """Reserved ranges that are not zero: offset to contents, both hexadecimal. A newer ABI may use them."""
        version = self.version
        out: dict[str, str] = {}
        for start, end, kind in RESERVED:
            if kind == 0 and version >= _LATER[start]:
                continue
            content = self.raw[start:end]
            if any(content):
                out[f"{start:#05x}"] = content.hex()
        return out

    def document(self) -> dict[str, object]:
        """The report as a JSON object: ABI names, None for fields that this version has not."""
        from sev.abi.report_text import document

        return document(self)

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, Report) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"<Report version {self.version}, measurement {self.measurement.hex()[:16]}…>"


FIELDS: dict[str, Field] = {name: one for name, one in vars(Report).items() if isinstance(one, Field)}
"""The fields by name, in the order of their offsets."""


def _wide_layout() -> Product | None:
    wide = [product for product in ALL if product.has_snp and product.chip_id_bytes == 64]
    return wide[0] if wide and all(one.tcb_bytes == wide[0].tcb_bytes for one in wide) else None


_WIDE = _wide_layout()
