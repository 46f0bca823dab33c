"""Processor lines as one table: everything in this project that differs by product is a column here.

Sources: CPUID ranges and TCB layout from the SEV-SNP firmware ABI (AMD 56860) and the AMD PPRs; KDS names and
certificate forms from the VCEK/VLEK specification (AMD 57230) and the certificates that AMD's KDS serves.
"""

from __future__ import annotations

from sev.errors import UsageError

TCB_COMPONENTS = ("fmc", "bootloader", "tee", "snp", "microcode")
"""All component names, most significant first: the order in which TCBs are compared and printed."""


class Product:
    """One processor line.

    Attributes:
        name: Lower-case name, such as "genoa".
        kds_name: The name in KDS URLs and certificate names, such as "Genoa".
        cpuid: (combined family, first model, last model) ranges that belong to it.
        tcb_bytes: (component, byte index 0 to 7) of TCB_VERSION; empty before SNP.
        chip_id_bytes: Bytes of the chip identifier that mean something (64, or 8 from Turin on).
        product_name: productName extension of its VCEKs; its VLEKs carry `kds_name`.
        struct_version: structVersion extension of its VCEKs.
        has_snp: SNP exists.
        has_x509_roots: AMD publishes X.509 roots for it.
        sample_cpuid: (family, model, stepping) of a typical part, for simulation.
    """

    __slots__ = (
        "chip_id_bytes", "cpuid", "has_snp", "has_x509_roots", "kds_name", "name", "product_name", "sample_cpuid",
        "struct_version", "tcb_bytes",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        kds_name: str,
        cpuid: tuple[tuple[int, int, int], ...],
        tcb_bytes: tuple[tuple[str, int], ...],
        chip_id_bytes: int,
        product_name: str,
        struct_version: int,
        has_x509_roots: bool,
        sample_cpuid: tuple[int, int, int],
    ) -> None:
        self.name = name
        self.kds_name = kds_name
        self.cpuid = cpuid
        self.tcb_bytes = tcb_bytes
        self.chip_id_bytes = chip_id_bytes
        self.product_name = product_name
        self.struct_version = struct_version
        self.has_snp = bool(tcb_bytes)
        self.has_x509_roots = has_x509_roots
        self.sample_cpuid = sample_cpuid

    def __repr__(self) -> str:
        return f"<Product {self.name}>"

    @property
    def components(self) -> tuple[str, ...]:
        """The TCB components that this line has, most significant first."""
        have = {component for component, _ in self.tcb_bytes}
        return tuple(component for component in TCB_COMPONENTS if component in have)


_MILAN_TCB = (("bootloader", 0), ("tee", 1), ("snp", 6), ("microcode", 7))
_TURIN_TCB = (("fmc", 0), ("bootloader", 1), ("tee", 2), ("snp", 3), ("microcode", 7))

NAPLES = Product("naples", "Naples", ((0x17, 0x00, 0x0F),), (), 64, "", 0, False, (0x17, 0x01, 2))
ROME = Product("rome", "Rome", ((0x17, 0x30, 0x3F),), (), 64, "", 0, False, (0x17, 0x31, 0))
MILAN = Product("milan", "Milan", ((0x19, 0x00, 0x0F),), _MILAN_TCB, 64, "Milan-B0", 0, True, (0x19, 0x01, 1))
GENOA = Product(
    "genoa", "Genoa", ((0x19, 0x10, 0x1F), (0x19, 0xA0, 0xAF)), _MILAN_TCB, 64, "Genoa", 0, True, (0x19, 0x11, 1)
)
TURIN = Product("turin", "Turin", ((0x1A, 0x00, 0x11),), _TURIN_TCB, 8, "Turin", 1, True, (0x1A, 0x02, 1))
VENICE = Product(
    "venice",
    "Venice",
    ((0x1A, 0x50, 0x57), (0x1A, 0x90, 0x9F), (0x1A, 0xA0, 0xAF), (0x1A, 0xC0, 0xC7)),
    _TURIN_TCB,
    8,
    "Venice",
    1,
    False,
    (0x1A, 0x50, 0),
)

ALL = (NAPLES, ROME, MILAN, GENOA, TURIN, VENICE)
ALIASES = {"bergamo": "genoa", "siena": "genoa"}
"""Parts that AMD's KDS serves under another line's name."""


def by_name(name: str) -> Product:
    """The product of this name, in any case; Bergamo and Siena are Genoa.

    Raises:
        UsageError: No product has this name.
    """
    wanted = name.strip().lower()
    wanted = ALIASES.get(wanted, wanted)
    for product in ALL:
        if product.name == wanted:
            return product
    known = ", ".join(product.name for product in ALL)
    raise UsageError(f"unknown product {name!r}: expected one of {known}", field="product")


def by_cpuid(family: int, model: int) -> Product | None:
    """The product with this combined CPU family and model; None for any other CPU."""
    for product in ALL:
        for product_family, first, last in product.cpuid:
            if family == product_family and first <= model <= last:
                return product
    return None


def by_kds_name(name: str) -> Product | None:
    """The product with this KDS name ("Genoa") or productName ("Milan-B0"); None for any other name."""
    for product in ALL:
        if name == product.kds_name or (product.product_name and name == product.product_name):
            return product
        if name.startswith(product.kds_name + "-"):
            return product
    return None


def cpuid_signature(family: int, model: int, stepping: int) -> int:
    """CPUID leaf 1 EAX for a combined family, combined model and stepping."""
    base, extended = (0xF, family - 0xF) if family > 0xF else (family, 0)
    return extended << 20 | (model >> 4) << 16 | base << 8 | (model & 0xF) << 4 | stepping


def split_signature(signature: int) -> tuple[int, int, int]:
    """Combined family, combined model and stepping of a CPUID leaf 1 EAX value."""
    base = signature >> 8 & 0xF
    family = base + (signature >> 20 & 0xFF) if base == 0xF else base
    return family, (signature >> 16 & 0xF) << 4 | signature >> 4 & 0xF, signature & 0xF
