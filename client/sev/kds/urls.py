"""Addresses at AMD's key distribution service, or at another one that answers as it does. Nothing is fetched here.

    /vcek/v1/P/HWID?blSPL=..&teeSPL=..&snpSPL=..&ucodeSPL=..    DER; from Turin on with fmcSPL, and an HWID of 8 bytes
    :444/vlek/v1/P/cert?…                                       DER; for cloud providers
    :444/vlek/v1/P/hash_sticks?…   POST {"hwids": [..]}         JSON; for cloud providers
    /vcek/v1/P/cert_chain      /vlek/v1/P/cert_chain            PEM: ASK or ASVK, then ARK
    /vcek/v1/P/crl             /vlek/v1/P/crl                   DER
    /cek/id/ID                                                  the signed CEK in SEV's own form, 2084 bytes

Source: AMD 57230 (VCEK and VLEK certificates, KDS interface); the CEK's as sev-tool and sevctl ask for it.
"""

from __future__ import annotations

from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.abi.tcb import TcbVersion
    from sev.products import Product

AMD = "https://kdsintf.amd.com"
"""AMD's service."""

AMD_PROVIDERS = f"{AMD}:444"
"""Where it talks to cloud providers, who show a client certificate."""

KEYS = ("vcek", "vlek")
"""The two kinds of keys that sign reports."""

CHIP_ID_BYTES = 64
"""Bytes of a chip's identifier as the firmware gives it."""

_PARAMETERS = {"fmc": "fmcSPL", "bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}


def base(url: str) -> str:
    """The address of a service, without a slash at its end.

    Raises:
        UsageError: No http or https address of a host, or one with a query.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(
            f"KDS: {url[:100]!r} is no address of a service", field="kds", remedy=f"Expected a URL such as {AMD}."
        )
    return url.rstrip("/")


def provider(service: str) -> str:
    """Where a service talks to cloud providers: AMD's at a port of its own, any other at the same address."""
    return AMD_PROVIDERS if base(service) == AMD else base(service)


def vcek(product: Product, chip_id: bytes, tcb: TcbVersion, *, service: str = AMD) -> str:
    """The VCEK of a chip at a TCB.

    Args:
        product: Processor line.
        chip_id: As reports show it (64 bytes), or as long as the line's identifiers are.
        tcb: The TCB that the VCEK is for: the reported one.
        service: Base URL.

    Raises:
        UsageError: A line without SNP, an identifier of another length, or a masked one (zeros).
    """
    return f"{base(service)}/vcek/v1/{_snp(product).kds_name}/{hwid(product, chip_id)}?{_levels(product, tcb)}"


def vlek(product: Product, tcb: TcbVersion, *, service: str = AMD) -> str:
    """The VLEK of a cloud provider at a TCB; the provider is known by its client certificate. Raises as `vcek`."""
    return f"{provider(service)}/vlek/v1/{_snp(product).kds_name}/cert?{_levels(product, tcb)}"


def hash_sticks(product: Product, tcb: TcbVersion, *, service: str = AMD) -> str:
    """A cloud provider's wrapped hash sticks for a TCB; which chips they are for is posted. Raises as `vcek`."""
    return f"{provider(service)}/vlek/v1/{_snp(product).kds_name}/hash_sticks?{_levels(product, tcb)}"


def hwid(product: Product, chip_id: bytes) -> str:
    """A chip's identifier as the service takes it: hexadecimal, as long as the line has them. Raises as `vcek`."""
    own = _snp(product).chip_id_bytes
    if len(chip_id) not in (own, CHIP_ID_BYTES) or any(chip_id[own:]):
        raise UsageError(
            f"chip identifier: {len(chip_id)} bytes, expected {own} for {product.kds_name}", field="chip_id"
        )
    return _unmasked(chip_id[:own]).hex()


def ca(product: Product, key: str = "vcek", *, service: str = AMD) -> str:
    """The authorities above a kind of key: ASK (or, for a VLEK, ASVK) and ARK. Raises UsageError."""
    return f"{base(service)}/{_key(key)}/v1/{_snp(product).kds_name}/cert_chain"


def crl(product: Product, key: str = "vcek", *, service: str = AMD) -> str:
    """The ARK's revocation list. Raises UsageError."""
    return f"{base(service)}/{_key(key)}/v1/{_snp(product).kds_name}/crl"


def cek(chip_id: bytes, *, service: str = AMD) -> str:
    """The signed CEK of a chip.

    Args:
        chip_id: As GET_ID gives it, 64 bytes.
        service: Base URL.

    Raises:
        UsageError: Another length, or zeros.
    """
    if len(chip_id) != CHIP_ID_BYTES:
        raise UsageError(f"chip identifier: {len(chip_id)} bytes, expected {CHIP_ID_BYTES}", field="chip_id")
    return f"{base(service)}/cek/id/{_unmasked(chip_id).hex()}"


def _levels(product: Product, tcb: TcbVersion) -> str:
    values = tcb.components()
    if set(values) != set(product.components):
        raise UsageError(
            f"TCB: {', '.join(values)}; expected {', '.join(product.components)} for {product.kds_name}", field="tcb"
        )
    return "&".join(f"{_PARAMETERS[name]}={values[name]:02d}" for name in product.components)


def _snp(product: Product) -> Product:
    if not product.has_snp:
        raise UsageError(
            f"{product.kds_name} has no SEV-SNP: there are neither VCEKs nor VLEKs of it",
            field="product",
            remedy="For SEV and SEV-ES ask for the CEK, by the chip's identifier.",
        )
    return product


def _key(key: str) -> str:
    if key not in KEYS:
        raise UsageError(f"unknown kind of key {key!r}: expected one of {', '.join(KEYS)}", field="key")
    return key


def _unmasked(chip_id: bytes) -> bytes:
    if not any(chip_id):
        raise UsageError(
            "the chip's identifier is zero: the host masks it, or the report is signed with a VLEK",
            field="chip_id",
            remedy="Ask the host's operator for the certificate, or for the identifier (sev host show).",
        )
    return chip_id
