"""The simulated processors: CPUID as bare metal shows it, ASIDs, clock, by processor line.

Values are those of usual two-thread server parts of each line (AMD PPRs; SEV leaves as published tools print them).
CPUID leaves that are not here read as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

from sev import products
from sev.products import Product
from sev.records import record

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""


@record
class Hardware:
    """One simulated part.

    Attributes:
        cpuid: Registers by (leaf, subleaf); subleaf 0 where a leaf has none.
        asids: Encrypted guests at once (CPUID 0x8000001F ECX); ASIDs are 1 to this number.
        min_sev_asid: Lowest ASID of SEV guests without ES; SEV-ES and SNP guests have those below it.
        tsc_khz: Reference clock of the time stamp counter.
        smt: Two threads per core are enabled.
        aes_256_xts: Memory is encrypted with AES-256-XTS.
    """

    cpuid: Mapping[tuple[int, int], Registers]
    asids: int
    min_sev_asid: int
    tsc_khz: int
    smt: bool
    aes_256_xts: bool

    def registers(self, leaf: int, subleaf: int = 0) -> Registers:
        """CPUID of bare metal; zeros for a leaf that the part does not have."""
        return self.cpuid.get((leaf, subleaf), (0, 0, 0, 0))


def of(product: Product) -> Hardware:
    """The part that stands for a processor line that can be simulated."""
    return _PARTS[product.name]


_VENDOR = (0x68747541, 0x444D4163, 0x69746E65)  # "AuthenticAMD" as EBX, ECX, EDX


def _brand(text: str) -> dict[tuple[int, int], Registers]:
    """Leaves 0x80000002 to 4: the brand string in 48 bytes."""
    data = text.encode().ljust(48, b"\0")
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, 48, 4)]
    return {
        (0x80000002 + part, 0): (words[4 * part], words[4 * part + 1], words[4 * part + 2], words[4 * part + 3])
        for part in range(3)
    }


_COMMON: dict[tuple[int, int], Registers] = {
    (0x00000000, 0): (0x10, *_VENDOR),
    (0x00000005, 0): (0x40, 0x40, 0x3, 0x11),
    (0x00000006, 0): (0x4, 0, 0x1, 0),
    (0x0000000B, 0): (0x1, 0x2, 0x100, 0),
    (0x0000000B, 1): (0x7, 0x80, 0x201, 0),
    (0x0000000D, 2): (0x100, 0x240, 0, 0),
    (0x0000000D, 9): (0x8, 0x980, 0, 0),
    (0x0000000D, 0xB): (0x10, 0, 0x1, 0),
    (0x0000000D, 0xC): (0x18, 0, 0x1, 0),
    (0x0000000F, 0): (0, 0xFF, 0, 0x2),
    (0x0000000F, 1): (0, 0x40, 0xFF, 0x7),
    (0x00000010, 0): (0, 0x2, 0, 0),
    (0x00000010, 1): (0xF, 0, 0, 0xF),
    (0x80000005, 0): (0xFF40FF40, 0xFF40FF40, 0x20080140, 0x20080140),
    (0x80000006, 0): (0x48002200, 0x68004200, 0x02006140, 0x08009140),
    (0x80000007, 0): (0, 0x3B, 0, 0x6799),
    (0x80000019, 0): (0xF040F040, 0xF0400000, 0, 0),
    (0x8000001A, 0): (0x6, 0, 0, 0),
    (0x8000001B, 0): (0x3FF, 0, 0, 0),
    (0x8000001D, 0): (0x4121, 0x01C0003F, 0x3F, 0),
    (0x8000001D, 1): (0x4122, 0x01C0003F, 0x3F, 0),
    (0x8000001D, 2): (0x4143, 0x01C0003F, 0x3FF, 0x2),
    (0x8000001D, 3): (0x3C163, 0x03C0003F, 0x7FFF, 0x1),
    (0x8000001E, 0): (0, 0x100, 0, 0),
}

_AVX512: dict[tuple[int, int], Registers] = {
    (0x0000000D, 0): (0x2E7, 0x988, 0x988, 0),
    (0x0000000D, 1): (0xF, 0x240, 0x1800, 0),
    (0x0000000D, 5): (0x40, 0x340, 0, 0),
    (0x0000000D, 6): (0x200, 0x380, 0, 0),
    (0x0000000D, 7): (0x400, 0x580, 0, 0),
    (0x80000000, 0): (0x80000028, *_VENDOR),
    (0x80000020, 0): (0, 0x1E, 0, 0),
    (0x80000020, 1): (0xB, 0, 0, 0xF),
    (0x80000020, 2): (0xB, 0, 0, 0xF),
    (0x80000020, 3): (0, 0x7, 0x7F, 0),
    (0x80000022, 0): (0x7, 0x4106, 0xFFF, 0),
    (0x80000023, 0): (0x1, 0x3F, 0, 0),
    (0x80000026, 0): (0x1, 0x2, 0x100, 0),
    (0x80000026, 1): (0x4, 0x10, 0x201, 0),
}


def _part(product: Product, brand: str, leaves: dict[tuple[int, int], Registers]) -> dict[tuple[int, int], Registers]:
    signature = products.cpuid_signature(*product.sample_cpuid)
    return {
        **_COMMON,
        **_brand(brand),
        (0x00000001, 0): (signature, 0x00800800, 0x7EFA320B, 0x178BFBFF),
        (0x80000001, 0): (signature, 0x40000000, 0x75C237FF, 0x2FD3FBFF),
        **leaves,
    }


_PARTS = {
    "naples": Hardware(
        cpuid=_part(
            products.NAPLES,
            "AMD EPYC 7601 32-Core Processor",
            {
                (0x00000007, 0): (0, 0x209C01A9, 0, 0),
                (0x0000000D, 0): (0x7, 0x340, 0x340, 0),
                (0x0000000D, 1): (0xF, 0x340, 0, 0),
                (0x80000000, 0): (0x8000001F, *_VENDOR),
                (0x80000008, 0): (0x3030, 0x1007, 0x603F, 0),
                (0x8000000A, 0): (0x1, 0x8000, 0, 0x0001BCFF),
                (0x8000001F, 0): (0xF, 0x16F, 15, 5),
            },
        ),
        asids=15,
        min_sev_asid=5,
        tsc_khz=2_200_000,
        smt=True,
        aes_256_xts=False,
    ),
    "rome": Hardware(
        cpuid=_part(
            products.ROME,
            "AMD EPYC 7742 64-Core Processor",
            {
                (0x00000007, 0): (0, 0x219C91A9, 0x00400004, 0),
                (0x0000000D, 0): (0x207, 0x340, 0x988, 0),
                (0x0000000D, 1): (0xF, 0x240, 0, 0),
                (0x80000000, 0): (0x80000020, *_VENDOR),
                (0x80000008, 0): (0x3030, 0x010EB757, 0x707F, 0),
                (0x8000000A, 0): (0x1, 0x8000, 0, 0x0013BCFF),
                (0x8000001F, 0): (0x1000F, 0x16F, 509, 100),
                (0x80000020, 0): (0, 0x2, 0, 0),
                (0x80000020, 1): (0xB, 0, 0, 0xF),
            },
        ),
        asids=509,
        min_sev_asid=100,
        tsc_khz=2_250_000,
        smt=True,
        aes_256_xts=False,
    ),
    "milan": Hardware(
        cpuid=_part(
            products.MILAN,
            "AMD EPYC 7763 64-Core Processor",
            {
                (0x00000007, 0): (0, 0x219C97A9, 0x0040069C, 0x00000010),
                (0x0000000D, 0): (0x207, 0x988, 0x988, 0),
                (0x0000000D, 1): (0xF, 0x240, 0x1800, 0),
                (0x80000000, 0): (0x80000023, *_VENDOR),
                (0x80000008, 0): (0x3030, 0x111EF657, 0x707F, 0x10007),
                (0x8000000A, 0): (0x1, 0x8000, 0, 0x101BBCFF),
                (0x8000001F, 0): (0x0101FD3B, 0x4173, 509, 100),
                (0x80000020, 0): (0, 0x2, 0, 0),
                (0x80000020, 1): (0xB, 0, 0, 0xF),
                (0x80000021, 0): (0x4D, 0, 0, 0),
            },
        ),
        asids=509,
        min_sev_asid=100,
        tsc_khz=2_450_000,
        smt=True,
        aes_256_xts=False,
    ),
    "genoa": Hardware(
        cpuid=_part(
            products.GENOA,
            "AMD EPYC 9654 96-Core Processor",
            {
                **_AVX512,
                (0x00000007, 0): (0x1, 0xF1BF97A9, 0x00405FCE, 0x10000010),
                (0x00000007, 1): (0x20, 0, 0, 0),
                (0x80000008, 0): (0x3934, 0x791EF257, 0x807F, 0x10007),
                (0x8000000A, 0): (0x1, 0x8000, 0, 0x1EBFBCFF),
                (0x8000001F, 0): (0x037BFD3B, 0x4173, 1006, 100),
                (0x80000021, 0): (0x62FCF, 0x15C, 0, 0),
            },
        ),
        asids=1006,
        min_sev_asid=100,
        tsc_khz=2_400_000,
        smt=True,
        aes_256_xts=True,
    ),
    "turin": Hardware(
        cpuid=_part(
            products.TURIN,
            "AMD EPYC 9755 128-Core Processor",
            {
                **_AVX512,
                (0x00000007, 0): (0x1, 0xF1BF97A9, 0x18405FCE, 0x10000110),
                (0x00000007, 1): (0x30, 0, 0, 0x4000),
                (0x80000008, 0): (0x3934, 0x791EF257, 0x807F, 0x10007),
                (0x8000000A, 0): (0x1, 0x8000, 0, 0x3EBFBCFF),
                (0x8000001F, 0): (0x037BFD3B, 0x4173, 1006, 100),
                (0x80000021, 0): (0x7A2FCF, 0x15C, 0, 0),
            },
        ),
        asids=1006,
        min_sev_asid=100,
        tsc_khz=2_700_000,
        smt=True,
        aes_256_xts=True,
    ),
}
