"""SEV firmware releases that the simulator knows, by processor line and build.

Versions, TCBs, report versions, platform bits and mitigation vectors of the rows marked "seen" are those of real
attestation reports of that build. A version between two rows behaves as the row below it, with that row's TCB: not
every build raises a security version. Everything that differs by firmware release is a column here.
"""

from __future__ import annotations

from sev.errors import UsageError
from sev.products import Product
from sev.records import record

SMT_EN = 1 << 0
ECC_EN = 1 << 2
RAPL_DIS = 1 << 3
CIPHERTEXT_HIDING_DRAM_EN = 1 << 4
ALIAS_CHECK_COMPLETE = 1 << 5
IOMMU_WRITE_SAFE = 1 << 6

FEATURE_VLEK = 1 << 0
FEATURE_X86_SHUTDOWN = 1 << 1
FEATURE_RAPL_DIS = 1 << 2
FEATURE_CIPHERTEXT_HIDING = 1 << 3
FEATURE_AES_256_XTS = 1 << 4
FEATURE_CXL = 1 << 5

POLICY_1_51 = 0x1FFFFF
"""Policy bits 0 to 20, known to every SNP firmware."""

POLICY_1_55 = 0x1FFFFFF
"""Bits 21 to 24 besides, known to later builds of ABI 1.55."""

PAGE_SWAP_DISABLE = 1 << 25
"""Known from ABI 1.58 on."""

Version = tuple[int, int, int]
"""API major, API minor, build."""


@record
class Release:
    """What one firmware release does.

    Attributes:
        version: API major, API minor and build.
        tcb: CURRENT_TCB of a machine running it, 8 bytes as in memory.
        report_version: VERSION of its attestation reports.
        platform_info: PLATFORM_INFO bits of a usual machine running it.
        mitigations: Mitigation vector of its v5 reports.
        policy_mask: Policy bits it knows, without those that depend on the ABI minor version.
        features: ECX of SNP_FEATURE_INFO index 0; None where the command does not exist.
        secrets_version: Version field of the secrets page.
        key_request_version: Newest MSG_KEY_REQ it takes.
    """

    version: Version
    tcb: bytes
    report_version: int
    platform_info: int
    mitigations: int
    policy_mask: int
    features: int | None
    secrets_version: int
    key_request_version: int


def _release(version: Version, tcb: str, report: int, info: int, mitigations: int, features: int | None) -> Release:
    return Release(
        version=version,
        tcb=bytes.fromhex(tcb),
        report_version=report,
        platform_info=info,
        mitigations=mitigations,
        policy_mask=POLICY_1_51 if report < 3 else POLICY_1_55,
        features=features,
        secrets_version=3 if report < 5 else 4,
        key_request_version=2 if report >= 5 else 1,
    )


_SMT = SMT_EN
_USUAL = SMT_EN | ECC_EN | ALIAS_CHECK_COMPLETE
_FIRST = FEATURE_VLEK | FEATURE_X86_SHUTDOWN
_MILAN = _FIRST | FEATURE_RAPL_DIS
_GENOA = _MILAN | FEATURE_AES_256_XTS | FEATURE_CXL
_TURIN = _GENOA | FEATURE_CIPHERTEXT_HIDING

RELEASES: dict[str, tuple[Release, ...]] = {
    "milan": (
        _release((1, 51, 3), "0200000000000673", 2, _SMT, 0, None),  # seen, with an older TCB committed
        _release((1, 52, 4), "0300000000000873", 2, _SMT, 0, None),  # seen
        _release((1, 55, 20), "03000000000016d1", 2, _SMT, 0, _FIRST),  # seen
        _release((1, 55, 29), "04000000000018db", 3, _USUAL, 0, _MILAN),  # seen
        _release((1, 55, 35), "0400000000001bde", 5, _USUAL, 0x0B, _MILAN),  # seen
    ),
    "genoa": (
        # Builds of 2023, as AMD's published source of that year: v2 reports. The TCB is a plausible one of the time.
        _release((1, 55, 21), "0700000000000e4b", 2, _SMT, 0, _FIRST),
        _release((1, 55, 40), "0a00000000001754", 3, _USUAL, 0, _GENOA),  # seen
        _release((1, 55, 49), "0a00000000001b58", 5, _USUAL, 0x0B, _GENOA),  # seen
    ),
    "turin": (
        _release((1, 55, 61), "0001000200000047", 5, _USUAL | IOMMU_WRITE_SAFE, 0, _TURIN),  # seen
        _release((1, 55, 65), "0101010400000051", 5, _USUAL | IOMMU_WRITE_SAFE, 0x3F, _TURIN),  # seen
    ),
}


def text(version: Version) -> str:
    """A version as people write it: "1.55.49"."""
    return ".".join(str(part) for part in version)


def parse(written: str) -> Version:
    """A version from "1.55.49".

    Raises:
        UsageError: Not three numbers from 0 to 255 with dots between.
    """
    parts = written.strip().split(".")
    if len(parts) == 3 and all(part.isascii() and part.isdigit() and int(part) <= 255 for part in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    raise UsageError(f"{written!r} is no firmware version: expected one such as 1.55.49", field="firmware_version")


def _before_snp(*numbers: Version) -> tuple[Release, ...]:
    none = bytes(8)
    return tuple(Release(number, none, 0, 0, 0, 0, None, 0, 0) for number in numbers)


BEFORE_SNP: dict[str, tuple[Release, ...]] = {
    # API versions as those lines had them; builds are plausible ones. The first is older than GET_ID.
    "naples": _before_snp((0, 14, 11), (0, 16, 5), (0, 17, 48)),
    "rome": _before_snp((0, 22, 16), (0, 24, 20)),
}


_IMAGE = b"sevd simulated SEV firmware "


_IMAGE_TCB = b" tcb "


def image(version: Version, tcb: bytes = b"") -> bytes:
    """The file that stands for a firmware version: what DOWNLOAD_FIRMWARE and SNP_DOWNLOAD_FIRMWARE_EX take.

    Args:
        version: The version.
        tcb: CURRENT_TCB of a machine that runs it, 8 bytes, where it is not that of `release`.
    """
    return _IMAGE + text(version).encode() + (_IMAGE_TCB + tcb.hex().encode() if tcb else b"")


def of_image(data: bytes) -> tuple[Version, bytes] | None:
    """Version and TCB (8 bytes; empty: that of `release`) of such a file; None for anything else, AMD's own files
    included: the model cannot run them."""
    version, found, tcb = data.removeprefix(_IMAGE).partition(_IMAGE_TCB)
    if not data.startswith(_IMAGE) or (found and len(tcb) != 16):
        return None
    try:
        return parse(version.decode()), bytes.fromhex(tcb.decode())
    except (UsageError, ValueError):
        return None


def default(product: Product) -> Version:
    """The newest version known for a processor line: one with v5 reports, where it has SNP."""
    return _releases(product)[-1].version


def release(product: Product, version: Version) -> Release:
    """How firmware of this version behaves: the row of exactly this build, or the nearest below it.

    Raises:
        UsageError: The line cannot be simulated, or the version is below the first known.
    """
    rows = _releases(product)
    found = [row for row in rows if row.version <= version]
    if not found or any(not 0 <= part <= 255 for part in version):
        known = ", ".join(text(row.version) for row in rows)
        raise UsageError(
            f"no firmware {text(version)} is known for {product.kds_name}; the first is {text(rows[0].version)}",
            field="firmware_version",
            remedy=f"Choose one of {known}, or a build between them.",
        )
    return found[-1]


def policy_mask(row: Release, version: Version) -> int:
    """Policy bits that firmware of this version knows; all others must be zero."""
    return row.policy_mask | (PAGE_SWAP_DISABLE if version[:2] >= (1, 58) else 0)


def _releases(product: Product) -> tuple[Release, ...]:
    rows = RELEASES.get(product.name) or BEFORE_SNP.get(product.name)
    if rows is None:
        known = ", ".join((*BEFORE_SNP, *RELEASES))
        raise UsageError(f"{product.kds_name} cannot be simulated: expected one of {known}", field="product")
    return rows
