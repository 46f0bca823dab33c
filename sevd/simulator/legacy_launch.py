"""Guests of SEV and SEV-ES in the firmware: their beginning and end, and the commands of a launch.

Memory comes as bytes with the physical address at which they lie, and goes back encrypted; the caller puts it there.
LAUNCH_UPDATE_DATA, which has the most to do, encrypts in place.
A command that is refused changes nothing. The order of checks is the firmware's: platform state, addresses and lengths,
handle, guest state, activation, then policy and cryptography.

Source: SEV API specification (AMD 55766), guest launch; behaviour of AMD's published Genoa firmware.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sev import status
from sev.abi import id_block, legacy_report
from sev.abi import sev_certificate as certificates
from sev.abi.sev_policy import SevPolicy
from sev.errors import MalformedInput
from sev.session import blob, measurement
from sev.session import secret as packets
from sev.session.keys import TransportKeys
from sevd.simulator.firmware_legacy import GUESTS_MAX, INITIALISED, WORKING
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.legacy_certificates import judged
from sevd.simulator.legacy_guest import (
    LSECRET,
    LUPDATE,
    RUNNING,
    SENT,
    SUPDATE,
    UNINIT,
    VMSA_SIZE,
    LegacyGuest,
    active,
    in_state,
    need_aligned,
    need_blocks,
    working,
)
from sevd.simulator.memory_cipher import KEY_SIZE, MemoryKey

if TYPE_CHECKING:
    from sevd.simulator.firmware_platform import Platform

SECRET_MAX = 0x5000
"""Bytes of the largest secret that Genoa's firmware takes."""

MNONCE_SIZE = 16


def begin(
    platform: Platform, shares: int, policy: int, certificate: bytes | None, session: bytes | None, state: int
) -> int:
    """LAUNCH_START and RECEIVE_START: a new guest's handle.

    Args:
        platform: The platform.
        shares: Handle of the guest whose memory key it gets too; 0 for a key of its own.
        policy: Guest policy, 32 bits.
        certificate: Whose ECDH key the session was made with, 2084 bytes; None: no session, and TEK and TIK are zero.
        session: Launch blob, 128 bytes.
        state: State that the guest begins in.
    """
    legacy = platform.legacy
    legacy.need(INITIALISED, WORKING)
    wanted = SevPolicy(policy)
    keys = TransportKeys(bytes(16), bytes(16))
    if certificate is not None:
        keys = _unwrapped(platform, wanted, certificate, session or b"")
        if (wanted.api_major, wanted.api_minor) > platform.version[:2] or wanted.reserved:
            raise FirmwareStatus(status.POLICY_FAILURE)
    memory = _shared(platform, shares, wanted) if shares else None
    if len(legacy.guests) >= GUESTS_MAX:
        raise FirmwareStatus(status.RESOURCE_LIMIT)
    if wanted.es and not legacy.es:
        raise FirmwareStatus(status.UNSUPPORTED)
    return legacy.admit(LegacyGuest(wanted, memory or MemoryKey(platform.random(KEY_SIZE)), state, keys))


def _unwrapped(platform: Platform, policy: SevPolicy, certificate: bytes, session: bytes) -> TransportKeys:
    from cryptography.hazmat.primitives.asymmetric import ec

    if len(session) != blob.SIZE or len(certificate) != certificates.SIZE:
        raise FirmwareStatus(status.INVALID_LENGTH)
    theirs = judged(certificate, certificates.PDH)
    shared = platform.legacy.identity().pdh_key.exchange(ec.ECDH(), theirs.public_key())
    try:
        return blob.unwrap(blob.SessionBlob.decode(session), shared, policy.raw)
    except blob.BadSession:
        raise FirmwareStatus(status.BAD_MEASUREMENT) from None


def _shared(platform: Platform, handle: int, policy: SevPolicy) -> MemoryKey:
    other = platform.legacy.guest(handle)
    if other.policy != policy or policy.noks:
        raise FirmwareStatus(status.POLICY_FAILURE)
    return other.memory


def activate(platform: Platform, handle: int, asid: int) -> None:
    """ACTIVATE: ASIDs below `min_sev_asid` are for SEV-ES guests, the others for SEV guests."""
    working(platform)
    guest = platform.legacy.guest(handle)
    part = platform.hardware
    first, last = (1, part.min_sev_asid - 1) if guest.policy.es else (part.min_sev_asid, part.asids)
    if not first <= asid <= last:
        raise FirmwareStatus(status.INVALID_ASID)
    if guest.asid != asid:
        platform.need_free_asid(asid)
    if guest.asid:
        raise FirmwareStatus(status.ACTIVE)
    platform.asids[asid] = handle
    guest.asid = asid


def deactivate(platform: Platform, handle: int) -> None:
    """DEACTIVATE: the ASID is free, after a flush if the guest ever ran."""
    working(platform)
    guest = platform.legacy.guest(handle)
    if not guest.asid:
        raise FirmwareStatus(status.INACTIVE)
    platform.give_asid(guest.asid, dirty=guest.ran)
    guest.asid = 0


def decommission(platform: Platform, handle: int) -> None:
    """DECOMMISSION: the guest is forgotten; the last one's end takes the platform back to INIT."""
    working(platform)
    if platform.legacy.guest(handle).asid:
        raise FirmwareStatus(status.ACTIVE)
    del platform.legacy.guests[handle]


def guest_status(platform: Platform, handle: int) -> bytes:
    """GUEST_STATUS: handle, policy and ASID u32, state u8; zeros after a handle that nobody has."""
    platform.legacy.need(INITIALISED, WORKING)
    if not 1 <= handle <= GUESTS_MAX:
        raise FirmwareStatus(status.INVALID_GUEST)
    guest = platform.legacy.guests.get(handle)
    if guest is None:
        return struct.pack("<IIIB", handle, 0, 0, UNINIT)
    return struct.pack("<IIIB", handle, guest.policy.raw, guest.asid, guest.state)


def update_data(platform: Platform, handle: int, memory: memoryview, address: int) -> None:
    """LAUNCH_UPDATE_DATA: measures memory and encrypts it in place."""
    working(platform)
    need_aligned(address)
    need_blocks(len(memory))
    guest = active(platform, handle, LUPDATE)
    guest.content.update(memory)
    guest.memory.encrypt_in_place(address, memory)


def update_vmsa(platform: Platform, handle: int, page: bytes, address: int) -> bytes:
    """LAUNCH_UPDATE_VMSA of one page: as `update_data`, for SEV-ES guests."""
    working(platform)
    need_aligned(address)
    if len(page) != VMSA_SIZE:
        raise FirmwareStatus(status.INVALID_LENGTH)
    guest = active(platform, handle, LUPDATE)
    if not guest.policy.es:
        raise FirmwareStatus(status.UNSUPPORTED)
    guest.content.update(page)
    return guest.memory.encrypt(address, page)


def measure(platform: Platform, handle: int, length: int) -> bytes:
    """LAUNCH_MEASURE into a buffer of this length: measure, 32 bytes, and a nonce, 16."""
    working(platform)
    if length < measurement.BLOB_SIZE:
        raise FirmwareStatus(status.INVALID_LENGTH, lengths=(measurement.BLOB_SIZE,))
    guest = in_state(platform, handle, LUPDATE)
    assert guest.keys is not None
    guest.digest = guest.content.digest()
    about = measurement.Launch(guest.digest, guest.policy.raw, *platform.version)
    out = measurement.build(guest.keys.tik, about, platform.random(MNONCE_SIZE))
    guest.measure = out[: measurement.MEASURE_SIZE]
    guest.state = LSECRET
    return out


def secret(platform: Platform, handle: int, header: bytes, address: int, size: int, packet: bytes) -> bytes:
    """LAUNCH_SECRET of a packet of the guest's owner for `size` bytes at an address: what lies there from now on."""
    working(platform)
    need_aligned(address)
    if len(header) != packets.HEADER_SIZE or size != len(packet) or size > SECRET_MAX:
        raise FirmwareStatus(status.INVALID_LENGTH)
    need_blocks(size)
    guest = active(platform, handle, LSECRET)
    assert guest.keys is not None
    versioned = measurement.versioned(*platform.version[:2])
    try:
        clear = packets.unseal(guest.keys, packets.Packet(header, packet), guest.measure, versioned=versioned)
    except MalformedInput:
        raise FirmwareStatus(status.UNSUPPORTED) from None  # a flag: nothing is compressed
    except packets.BadPacket:
        raise FirmwareStatus(status.BAD_MEASUREMENT) from None
    return guest.memory.encrypt(address, clear)


def finish(platform: Platform, handle: int) -> None:
    """LAUNCH_FINISH: the guest may run; its transport keys are wiped."""
    working(platform)
    guest = in_state(platform, handle, LSECRET)
    guest.keys = None
    guest.state, guest.ran = RUNNING, True


def attestation(platform: Platform, handle: int, mnonce: bytes, length: int) -> bytes:
    """ATTESTATION into a buffer of this length: a report of 208 bytes, signed by the PEK."""
    from sev.certs import sev_signatures  # a start signs nothing

    working(platform)
    if length < legacy_report.SIZE:
        raise FirmwareStatus(status.INVALID_LENGTH, lengths=(legacy_report.SIZE,))
    guest = in_state(platform, handle, LSECRET, RUNNING, SUPDATE, SENT)
    body = legacy_report.encode(mnonce, guest.digest, guest.policy.raw, 0, 0)[: legacy_report.SIGNED]
    key = platform.legacy.identity().pek_key
    signature = sev_signatures.ecdsa_sign(key, body, deterministic=platform.deterministic)
    r, s = id_block.decode_signature(signature)
    return legacy_report.encode(mnonce, guest.digest, guest.policy.raw, r, s)


def debug(platform: Platform, handle: int, data: bytes, source: int, target: int, *, decrypt: bool) -> bytes:
    """DBG_DECRYPT and DBG_ENCRYPT of memory at `source`: what is to lie at `target`."""
    working(platform)
    need_aligned(source, target)
    need_blocks(len(data))
    guest = platform.legacy.guest(handle)
    if not guest.asid:
        raise FirmwareStatus(status.INACTIVE)
    if guest.policy.nodbg:
        raise FirmwareStatus(status.POLICY_FAILURE)
    return guest.memory.decrypt(source, data) if decrypt else guest.memory.encrypt(target, data)
