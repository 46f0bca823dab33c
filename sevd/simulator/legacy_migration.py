"""Sending guests of SEV and SEV-ES to another platform, and receiving them.

A packet is a header of 52 bytes (flags u32, IV 16, MAC 32) and ciphertext; its MAC covers context, flags, IV, both
lengths and the ciphertext. Packets of VMSAs have the context of data, 2, as AMD's published firmware makes them.

Source: SEV API specification (AMD 55766), guest migration; behaviour of AMD's published Genoa firmware.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, NamedTuple

from sev import status
from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.abi.sev_policy import SevPolicy
from sev.session import blob, kdf, secret
from sev.session.keys import TransportKeys
from sevd.simulator import legacy_certificates
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.legacy_guest import (
    RUNNING,
    RUPDATE,
    SENT,
    SUPDATE,
    VMSA_SIZE,
    LegacyGuest,
    active,
    in_state,
    need_aligned,
    need_blocks,
    sealing,
    working,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sevd.simulator.firmware_platform import Platform

HEADER_SIZE = 52
PAGE = 4096
_CONTEXT = b"\x02"
_KEY_SIZE = 16


class Receiver(NamedTuple):
    """Who a guest is sent to: certificates as PDH_CERT_EXPORT and AMD give them.

    Attributes:
        pdh: PDH, 2084 bytes.
        chain: PEK, OCA, CEK, 6252 bytes.
        authorities: ASK and ARK, 832 or 1600 bytes each.
    """

    pdh: bytes
    chain: bytes
    authorities: bytes


def send_start(
    platform: Platform, own_authorities: Callable[[], bytes], handle: int, receiver: Receiver, length: int
) -> tuple[int, bytes]:
    """SEND_START: policy, and the launch blob (128 bytes) for the receiver.

    Args:
        platform: The platform.
        own_authorities: ASK and ARK of this chip's line.
        handle: The guest.
        receiver: Where it goes.
        length: Bytes of the buffer for the launch blob.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    working(platform)
    if length < blob.SIZE:
        raise FirmwareStatus(status.INVALID_LENGTH, lengths=(blob.SIZE,))
    if len(receiver.pdh) != abi.SIZE or len(receiver.chain) != abi.CHAIN_SIZE:
        raise FirmwareStatus(status.INVALID_LENGTH)
    guest = in_state(platform, handle, RUNNING)
    if guest.policy.nosend:
        raise FirmwareStatus(status.POLICY_FAILURE)
    pdh = _checked(platform, own_authorities, guest.policy, receiver)
    shared = platform.legacy.identity().pdh_key.exchange(ec.ECDH(), pdh.public_key())
    keys = TransportKeys(platform.random(_KEY_SIZE), platform.random(_KEY_SIZE))
    nonce, iv = platform.random(16), platform.random(16)
    session = blob.wrap(keys, shared, guest.policy.raw, nonce=nonce, iv=iv).encode()
    guest.keys, guest.state = keys, SUPDATE
    return guest.policy.raw, session


def _checked(
    platform: Platform, own_authorities: Callable[[], bytes], policy: SevPolicy, receiver: Receiver
) -> SevCertificate:
    """The receiver's PDH, if the policy lets the guest go there."""
    judged, need_signature = legacy_certificates.judged, legacy_certificates.need_signature
    pdh = judged(receiver.pdh, abi.PDH)
    parts = [receiver.chain[at : at + abi.SIZE] for at in range(0, abi.CHAIN_SIZE, abi.SIZE)]
    if policy.sev:
        ask = legacy_certificates.authorities(receiver.authorities, own_authorities())
        pek, oca, cek = (judged(part, usage) for part, usage in zip(parts, (abi.PEK, abi.OCA, abi.CEK), strict=True))
        need_signature(cek, ask)
        need_signature(pek, cek)
        need_signature(pek, oca)
        need_signature(pdh, pek)
        if (pek.api_major, pek.api_minor) < (policy.api_major, policy.api_minor):
            raise FirmwareStatus(status.POLICY_FAILURE)
    if policy.domain and parts[1] != platform.legacy.identity().oca.encode():
        raise FirmwareStatus(status.POLICY_FAILURE)
    return pdh


def send_update_data(
    platform: Platform, handle: int, data: bytes, address: int, header_length: int, packet_length: int
) -> tuple[bytes, bytes]:
    """SEND_UPDATE_DATA of memory: header and packet.

    Buffers that are too short are INVALID_LENGTH with both lengths; for no memory at all, which is how Linux asks, that
    of a packet of one page.
    """
    return _send(platform, handle, data, address, header_length, packet_length)


def send_update_vmsa(
    platform: Platform, handle: int, page: bytes, address: int, header_length: int, packet_length: int
) -> tuple[bytes, bytes]:
    """SEND_UPDATE_VMSA of one page: header and packet; for SEV-ES guests."""
    return _send(platform, handle, page, address, header_length, packet_length, vmsa=True)


def _send(
    platform: Platform, handle: int, data: bytes, address: int, header: int, packet: int, *, vmsa: bool = False
) -> tuple[bytes, bytes]:
    working(platform)
    size = len(data) or PAGE
    if header < HEADER_SIZE or packet < size:
        raise FirmwareStatus(status.INVALID_LENGTH, lengths=(HEADER_SIZE, size))
    need_aligned(address)
    need_blocks(len(data))
    if vmsa and len(data) != VMSA_SIZE:
        raise FirmwareStatus(status.INVALID_LENGTH)
    guest = active(platform, handle, SUPDATE)
    if vmsa and not guest.policy.es:
        raise FirmwareStatus(status.UNSUPPORTED)
    assert guest.keys is not None
    iv = platform.random(16)
    sealed = sealing(guest).run(iv, guest.memory.decrypt(address, data))
    tag = kdf.mac(guest.keys.tik, secret.covered(_CONTEXT, 0, iv, sealed))
    return bytes(4) + iv + tag, sealed


def send_finish(platform: Platform, handle: int) -> None:
    """SEND_FINISH: the guest is away; its transport keys are wiped."""
    _end(platform, handle, SUPDATE, SENT)


def send_cancel(platform: Platform, handle: int) -> None:
    """SEND_CANCEL: the guest stays, and runs again."""
    _end(platform, handle, SUPDATE, RUNNING)


def receive_update_data(
    platform: Platform, handle: int, header: bytes, address: int, size: int, packet: bytes
) -> bytes:
    """RECEIVE_UPDATE_DATA of a packet for `size` bytes at an address: what lies there from now on."""
    return _receive(platform, handle, header, address, size, packet)


def receive_update_vmsa(
    platform: Platform, handle: int, header: bytes, address: int, size: int, packet: bytes
) -> bytes:
    """RECEIVE_UPDATE_VMSA of a packet for one page: as `receive_update_data`, for SEV-ES guests."""
    return _receive(platform, handle, header, address, size, packet, vmsa=True)


def _receive(
    platform: Platform, handle: int, header: bytes, address: int, size: int, packet: bytes, *, vmsa: bool = False
) -> bytes:
    working(platform)
    need_aligned(address)
    if len(header) != HEADER_SIZE or size != len(packet) or (vmsa and size != VMSA_SIZE):
        raise FirmwareStatus(status.INVALID_LENGTH)
    need_blocks(size)
    guest = active(platform, handle, RUPDATE)
    if vmsa and not guest.policy.es:
        raise FirmwareStatus(status.UNSUPPORTED)
    flags, iv, tag = int.from_bytes(header[:4], "little"), header[4:20], header[20:]
    if flags:
        raise FirmwareStatus(status.UNSUPPORTED)  # nothing is compressed
    assert guest.keys is not None
    if not hmac.compare_digest(kdf.mac(guest.keys.tik, secret.covered(_CONTEXT, flags, iv, packet)), tag):
        raise FirmwareStatus(status.BAD_MEASUREMENT)
    return guest.memory.encrypt(address, sealing(guest).run(iv, packet))


def receive_finish(platform: Platform, handle: int) -> None:
    """RECEIVE_FINISH: the guest may run."""
    _end(platform, handle, RUPDATE, RUNNING).ran = True


def _end(platform: Platform, handle: int, before: int, after: int) -> LegacyGuest:
    working(platform)
    guest = in_state(platform, handle, before)
    guest.keys, guest.state = None, after
    return guest
