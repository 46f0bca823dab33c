"""Values of the platform room. They mirror the messages of sev.v1 field by field; numbers of enums are the same."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from sev.host.facts import KernelFacts
from sev.records import record

if TYPE_CHECKING:
    from datetime import datetime

    from sev.abi.tcb import TcbVersion


class FirmwareVersion(NamedTuple):
    """A firmware version; major and minor are the API version."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


class AsidUse(NamedTuple):
    """How many ASIDs exist and how many are bound to a guest; both 0 where the kernel does not tell."""

    total: int
    in_use: int


class DeviceHealth(IntEnum):
    """Whether the device can be used."""

    UNSPECIFIED = 0
    READY = 1
    MISSING = 2
    WEDGED = 3


class SnpState(IntEnum):
    """State of the SNP platform; the firmware's own numbers are one less."""

    UNSPECIFIED = 0
    UNINIT = 1
    INIT = 2


@record
class DesiredView:
    """What the configuration wants of the SNP platform, and how the platform deviates.

    Attributes:
        reported_tcb: As configured; empty: none is wanted.
        mask_chip_id: Wanted; None: either is fine.
        mask_chip_key: Wanted; None: either is fine.
        vlek: File of the wrapped hash stick that is wanted; empty: none.
        actual: The platform as it was last seen; None: it did not tell.
        drift: How it deviates, and why, each as one sentence.
        applied_at: When the daemon last changed the platform towards it; None: it did not have to.
    """

    reported_tcb: str
    mask_chip_id: bool | None
    mask_chip_key: bool | None
    vlek: str
    actual: SnpStatusView | None
    drift: tuple[str, ...]
    applied_at: datetime | None


@record
class HostView:
    """What this host is.

    Attributes:
        product: Product line in lower case; empty if unknown.
        simulated: The platform is simulated.
        firmware_version: Firmware version; None if the device is missing.
        kernel: Kernel release.
        sev_asids: ASIDs of SEV guests without encrypted state.
        sev_es_asids: ASIDs of SEV-ES and SEV-SNP guests.
        chip_id: 64 bytes, or 8 on Turin and later; empty if unknown.
        technologies: What can be launched here: "sev", "sev-es", "sev-snp".
        missing: What is missing, each as one sentence; empty on a host that is ready.
        device_health: Health of the device.
        daemon_version: Version of the daemon.
        guest_count: Guests of everybody.
        cpu_family: Combined family.
        cpu_model: Combined model.
        cpu_stepping: Stepping.
        offers: What the kernel offers: VM types, parameters, generation of its interface.
        desired: What the configuration wants of the platform; None: nothing.
    """

    product: str
    simulated: bool
    firmware_version: FirmwareVersion | None
    kernel: str
    sev_asids: AsidUse
    sev_es_asids: AsidUse
    chip_id: bytes
    technologies: tuple[str, ...]
    missing: tuple[str, ...]
    device_health: DeviceHealth
    daemon_version: str
    guest_count: int
    cpu_family: int
    cpu_model: int
    cpu_stepping: int
    offers: KernelFacts = KernelFacts()
    desired: DesiredView | None = None

    @property
    def firmware(self) -> str:
        """Firmware version as text, such as 1.55.40; empty if the device is missing."""
        return str(self.firmware_version) if self.firmware_version else ""


@record
class VlekView:
    """The VLEK that is loaded, as far as the daemon knows: the firmware only says that there is one.

    Attributes:
        tcb: The TCB that it is for.
        digest: SHA-256 of its wrapped hash stick in hexadecimal; empty if another program loaded it: then the TCB is
            the one that was reported when this daemon first saw it.
        loaded_at: When it was loaded; None in the same case.
    """

    tcb: TcbVersion
    digest: str = ""
    loaded_at: datetime | None = None


@record
class SnpStatusView:
    """SNP_PLATFORM_STATUS, decoded (SEV-SNP firmware ABI, SNP_PLATFORM_STATUS).

    Attributes:
        state: State.
        firmware_version: Firmware version.
        guest_count: SNP guests that the firmware knows.
        current_tcb: The TCB that runs.
        reported_tcb: The TCB that reports and VCEKs show.
        committed_tcb: The anti-rollback floor; None where no report tells it.
        mask_chip_id: CHIP_ID in reports is zero.
        mask_chip_key: The VCEK may not sign.
        vlek_loaded: A VLEK is loaded.
        rmp_initialized: The RMP is initialised.
        alias_check_complete: The alias check is complete.
        feature_info: SNP_FEATURE_INFO exists.
        rapl_dis: RAPL is disabled.
        ciphertext_hiding_cap: Ciphertext hiding is possible.
        ciphertext_hiding_en: Ciphertext hiding is on.
        raw: The 32 bytes as the firmware gave them.
        vlek: The loaded VLEK; None while none is loaded.
    """

    state: SnpState
    firmware_version: FirmwareVersion
    guest_count: int
    current_tcb: TcbVersion
    reported_tcb: TcbVersion
    committed_tcb: TcbVersion | None
    mask_chip_id: bool
    mask_chip_key: bool
    vlek_loaded: bool
    rmp_initialized: bool
    alias_check_complete: bool
    feature_info: bool
    rapl_dis: bool
    ciphertext_hiding_cap: bool
    ciphertext_hiding_en: bool
    raw: bytes
    vlek: VlekView | None = None


class SevState(IntEnum):
    """State of the platform of SEV and SEV-ES; the firmware's own numbers are one less."""

    UNSPECIFIED = 0
    UNINIT = 1
    INIT = 2
    WORKING = 3


@record
class SevStatusView:
    """PLATFORM_STATUS, decoded (SEV API, PLATFORM_STATUS).

    Attributes:
        state: State.
        firmware_version: Firmware version.
        externally_owned: Somebody else than the platform itself owns it.
        es_configured: SEV-ES is configured.
        guest_count: SEV and SEV-ES guests that the firmware knows.
        snp_initialized: SNP is initialised.
        raw: The 12 bytes as the firmware gave them.
    """

    state: SevState
    firmware_version: FirmwareVersion
    externally_owned: bool
    es_configured: bool
    guest_count: int
    snp_initialized: bool
    raw: bytes


@record
class SevChainView:
    """A platform's certificates, 2084 bytes each.

    Attributes:
        pdh: As the firmware gave it.
        pek: The same.
        oca: The same.
        cek: The same: unsigned.
        chip_ids: Identifiers, 64 bytes for each socket; empty where the firmware tells none.
        signed_cek: The CEK's certificate with its issuer's signature, where the host has it; else empty.
        authorities: ASK and ARK in a row that go with it; else empty.
        simulated: The chain ends in the simulator's root.
    """

    pdh: bytes
    pek: bytes
    oca: bytes
    cek: bytes
    chip_ids: tuple[bytes, ...]
    signed_cek: bytes
    authorities: bytes
    simulated: bool
