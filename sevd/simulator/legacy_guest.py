"""What the firmware keeps about one SEV or SEV-ES guest, and the checks that its commands share.

                LAUNCH_START                     LAUNCH_MEASURE                  LAUNCH_FINISH
    UNINIT ----------------------> LUPDATE ----------------------> LSECRET ---------------------> RUNNING
    UNINIT --RECEIVE_START--> RUPDATE --RECEIVE_FINISH--> RUNNING --SEND_START--> SUPDATE --SEND_FINISH--> SENT
                                                             ^-----SEND_CANCEL-------'

Source: SEV API specification (AMD 55766), guest states; behaviour of AMD's published Genoa firmware.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sev import status
from sev.abi.sev_policy import SevPolicy
from sev.session.kdf import Counter
from sev.session.keys import TransportKeys
from sev.session.measurement import RunningDigest
from sevd.simulator.firmware_legacy import WORKING
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.memory_cipher import BLOCK, MemoryKey

if TYPE_CHECKING:
    from sevd.simulator.firmware_platform import Platform

UNINIT, LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE, SENT = range(7)
"""States of a guest, as GUEST_STATUS tells them."""

VMSA_SIZE = 4096


@dataclass(slots=True)
class LegacyGuest:
    """One guest.

    Attributes:
        policy: Guest policy.
        memory: Key of its memory; two guests that share keys have the same.
        state: LUPDATE to SENT.
        asid: Bound ASID; 0 while there is none.
        ran: It was in state RUNNING, so that its ASID needs a flush after it.
        keys: TEK and TIK of the launch or migration under way; None when there is none.
        counter: TEK as it encrypts, with the keys that it is of.
        content: Hash over what was launched so far.
        digest: Launch digest, 32 bytes, once it is measured; zeros for a guest that was received.
        measure: What LAUNCH_MEASURE answered, 32 bytes.
    """

    policy: SevPolicy
    memory: MemoryKey = field(repr=False)
    state: int
    keys: TransportKeys | None = field(default=None, repr=False)
    asid: int = 0
    ran: bool = False
    counter: tuple[TransportKeys, Counter] | None = field(default=None, repr=False)
    content: RunningDigest = field(default_factory=RunningDigest, repr=False)
    digest: bytes = bytes(32)
    measure: bytes = bytes(32)


def sealing(guest: LegacyGuest) -> Counter:
    """The TEK of the launch or migration under way, made to encrypt and decrypt."""
    keys = guest.keys
    assert keys is not None
    if guest.counter is None or guest.counter[0] is not keys:
        guest.counter = keys, Counter(keys.tek)
    return guest.counter[1]


def working(platform: Platform) -> None:
    """Platform state WORKING, or INVALID_PLATFORM_STATE."""
    platform.legacy.need(WORKING)


def need_aligned(*addresses: int) -> None:
    """Multiples of 16, or INVALID_ADDRESS."""
    if any(address % BLOCK for address in addresses):
        raise FirmwareStatus(status.INVALID_ADDRESS)


def need_blocks(size: int) -> None:
    """A multiple of 16 and not 0, or INVALID_LENGTH."""
    if not size or size % BLOCK:
        raise FirmwareStatus(status.INVALID_LENGTH)


def in_state(platform: Platform, handle: int, *states: int) -> LegacyGuest:
    """The guest of a handle in one of these states: INVALID_GUEST, INVALID_GUEST_STATE."""
    guest = platform.legacy.guest(handle)
    if guest.state not in states:
        raise FirmwareStatus(status.INVALID_GUEST_STATE)
    return guest


def active(platform: Platform, handle: int, *states: int) -> LegacyGuest:
    """The same, with an ASID: INACTIVE."""
    guest = in_state(platform, handle, *states)
    if not guest.asid:
        raise FirmwareStatus(status.INACTIVE)
    return guest
