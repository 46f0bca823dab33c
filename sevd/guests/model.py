"""Values of the guest room. They mirror the messages of sev.v1 field by field; numbers of enums are the same."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from sev.records import record

if TYPE_CHECKING:
    from datetime import datetime

PAGE = 4096
"""Bytes of a page: the unit of every address and size here."""

FOUR_GIB = 1 << 32
"""The firmware region ends here."""

MAX_FIRMWARE_BYTES = 16 << 20
"""Bytes; the largest firmware region."""


class GuestType(IntEnum):
    """Technology that protects a guest."""

    UNSPECIFIED = 0
    SNP = 1
    SEV_ES = 2
    SEV = 3
    PLAIN = 4
    """None: an ordinary VM."""


LEGACY = frozenset({GuestType.SEV, GuestType.SEV_ES})
"""Types whose launch is measured for an owner who waits for it: LAUNCH_MEASURE, LAUNCH_SECRET, LAUNCH_FINISH."""


class GuestState(IntEnum):
    """State of a guest; see sevd.guests.states for the steps between them."""

    UNSPECIFIED = 0
    CREATED = 1
    LAUNCHING = 2
    READY = 3
    FAILED = 4
    LOST = 5
    DELETED = 6
    RUNNING = 7
    PAUSED = 8
    STOPPED = 9
    MEASURED = 10
    SENDING = 11
    RECEIVING = 12


class PageType(IntEnum):
    """Type of the pages of one region; the numbers are the firmware's and KVM's (2, VMSA, is KVM's own business)."""

    NORMAL = 1
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


@record
class Guest:
    """A hosted guest as it is at one moment.

    Attributes:
        guest_id: 8 to 36 characters of a-z, 0-9 and hyphen.
        type: Technology.
        state: State.
        owner: Who created it, such as "uid:1000".
        vcpu_count: Number of vCPUs.
        memory_bytes: Bytes of memory from guest physical address 0.
        create_time: When it was created (aware, UTC).
        policy: Guest policy; 0 before the launch starts.
        launch_digest: 48 bytes of an SNP guest from READY on, 32 of an SEV or SEV-ES guest from MEASURED on; or empty.
        asid: ASID; 0 where the kernel does not tell it (only a simulated host does).
        failure: Why it FAILED or was LOST; empty otherwise.
        simulated: The platform is simulated.
        label: Label of the owner's choosing.
        updated_pages: Pages of 4 KiB that LAUNCH_UPDATE accepted so far.
        protected: The technology protects it from its host: neither a plain guest nor a simulated one.
        measurement: What LAUNCH_MEASURE answered, 48 bytes, of an SEV or SEV-ES guest from MEASURED on; else empty.
    """

    guest_id: str
    type: GuestType
    state: GuestState
    owner: str
    vcpu_count: int
    memory_bytes: int
    create_time: datetime
    policy: int = 0
    launch_digest: bytes = b""
    asid: int = 0
    failure: str = ""
    simulated: bool = False
    label: str = ""
    updated_pages: int = 0
    protected: bool = False
    measurement: bytes = b""


@record
class CreateGuest:
    """What a caller asks for.

    Attributes:
        memory_bytes: Bytes of memory from guest physical address 0; multiple of 4096.
        firmware_bytes: Bytes of the region that ends at 4 GiB; multiple of 4096, at most 16 MiB.
        vcpu_count: Number of vCPUs.
        cpuid_signature: CPUID leaf 1 EAX.
        ap_reset_address: Where the other vCPUs start; below 4 GiB.
        vmsa_features: VMSA SEV_FEATURES wanted; bit 0 is always set in SNP guests.
        guest_id: Identifier wanted; empty: one is made.
        type: Technology.
        label: Label, at most 64 characters.
    """

    memory_bytes: int
    firmware_bytes: int
    vcpu_count: int
    cpuid_signature: int
    ap_reset_address: int = 0
    vmsa_features: int = 0
    guest_id: str = ""
    type: GuestType = GuestType.SNP
    label: str = ""


@record
class Region:
    """A run of pages of one type, measured in order; of SEV and SEV-ES guests a run of bytes.

    Attributes:
        gpa: Guest physical address; multiple of 4096, or of 16.
        size: Bytes; multiple of 4096, or of 16.
        page_type: A PageType, as the plain number: an unknown one is refused with an error, not at conversion.
    """

    gpa: int
    size: int
    page_type: int
