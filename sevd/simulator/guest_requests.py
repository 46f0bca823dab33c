"""SNP_GUEST_REQUEST: encrypted messages of guests, checked, answered and encrypted again.

Errors of the command (header, key, tag, sequence, type, version, length) are refused at the mailbox; errors of the
request stand as a status inside the encrypted response of a command that succeeded. The tag is checked before the
sequence, and the count of a key grows only when a response is made.

Source: SEV-SNP firmware ABI (AMD 56860), guest messages; behaviour of AMD's published Genoa firmware. How newer
firmware mixes the mitigation vector into a derived key is not published: here it follows the mix as eight bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sev import status
from sev.abi import guest_message as messages
from sev.abi.guest_message import Header, KeyRequest
from sevd.simulator import attestation, cpuid_rules
from sevd.simulator.firmware_platform import Platform, at_most
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.gctx import RUNNING, VMPCKS, GuestContext
from sevd.simulator.hash_sticks import kdf
from sevd.simulator.launch import TSC_FACTOR, tsc_scale

SEQUENCE_MAX = (1 << 64) - 2
"""A count this high is exhausted: response and next request would not fit 64 bits."""

POLICY, IMAGE_ID, FAMILY_ID, MEASUREMENT, GUEST_SVN, TCB, MITIGATIONS = (1 << bit for bit in range(7))
"""Bits of guest_field_select."""

Handler = Callable[[Platform, GuestContext, bytes, Header], bytes]


def seal(key: bytes, header: Header, payload: bytes) -> bytes:
    """A whole message: header with tag, and encrypted payload.

    Args:
        key: The VMPCK, 32 bytes.
        header: Everything but the tag.
        payload: `header.message_size` bytes in the clear.
    """
    head = header.encode()
    iv = messages.initialisation_vector(header.sequence)
    sealed = AESGCM(key).encrypt(iv, payload, head[messages.AAD_START :])
    cut = len(sealed) - messages.TAG_SIZE
    return sealed[cut:] + head[messages.TAG_SIZE :] + sealed[:cut]


def unseal(key: bytes, header: Header, message: bytes) -> bytes | None:
    """The payload of a message in the clear; None if its tag is wrong."""
    payload = message[messages.HEADER_SIZE : messages.HEADER_SIZE + header.message_size]
    associated = message[messages.AAD_START : messages.HEADER_SIZE]
    try:
        return AESGCM(key).decrypt(messages.initialisation_vector(header.sequence), payload + header.tag, associated)
    except InvalidTag:
        return None


def answer(platform: Platform, guest: GuestContext, message: bytes) -> bytes:
    """The response to a message of at most one page; trailing bytes of the page are ignored.

    Raises:
        FirmwareStatus: An error of the command.
    """
    if guest.state != RUNNING:
        raise FirmwareStatus(status.INVALID_GUEST_STATE)
    if len(message) < messages.HEADER_SIZE:
        raise FirmwareStatus(status.INVALID_PARAM)
    header = Header.decode(message)
    size = header.message_size
    if (
        header.header_version != messages.HEADER_VERSION
        or header.header_size != messages.HEADER_SIZE
        or header.algorithm != messages.ALGORITHM_AES_256_GCM
        or size == 0
        or size % 16
        or messages.HEADER_SIZE + size > min(len(message), messages.PAGE_SIZE)
        or header.vmpck >= VMPCKS
    ):
        raise FirmwareStatus(status.INVALID_PARAM)
    payload = unseal(guest.vmpck[header.vmpck], header, message)
    if payload is None:
        raise FirmwareStatus(status.BAD_MEASUREMENT)
    count = guest.counts[header.vmpck]
    if header.sequence != count + 1 or count >= SEQUENCE_MAX:
        raise FirmwareStatus(status.AEAD_OFLOW)
    handler, sizes = _HANDLERS.get(header.message_type, (None, {}))
    least = sizes.get(header.message_version)
    newest = platform.release.key_request_version if header.message_type == messages.KEY_REQ else 1
    if handler is None or least is None or header.message_version > newest or size < least:
        raise FirmwareStatus(status.INVALID_PARAM)
    response = handler(platform, guest, payload, header)
    guest.counts[header.vmpck] = count + 2
    reply = Header(
        tag=b"",
        sequence=header.sequence + 1,
        message_type=header.message_type + 1,
        message_version=header.message_version,
        message_size=len(response),
        vmpck=header.vmpck,
    )
    return seal(guest.vmpck[header.vmpck], reply, response)


def _report(platform: Platform, guest: GuestContext, payload: bytes, header: Header) -> bytes:
    report_data, vmpl, selection = struct.unpack_from("<64sII", payload)
    try:
        if selection >> 2 or any(payload[0x48:]) or not header.vmpck <= vmpl < VMPCKS:
            raise FirmwareStatus(status.INVALID_PARAM)
        report = attestation.report(platform, guest, report_data, vmpl, selection)
    except FirmwareStatus as refused:
        return struct.pack("<II24x", refused.code, 0) + bytes(messages.REPORT_SIZE)
    return struct.pack("<II24x", status.SUCCESS, len(report)) + report


def _key(platform: Platform, guest: GuestContext, payload: bytes, header: Header) -> bytes:
    request = KeyRequest.decode(payload, header.message_version)
    try:
        _check_key_request(platform, guest, request, header)
        tail = payload[messages.KEY_REQ_SIZES[header.message_version] :]
        if any(tail):
            raise FirmwareStatus(status.INVALID_PARAM)
        key = kdf(_root(platform, guest, request), "gmsg-keyreq", mix(guest, request), 32)
    except FirmwareStatus as refused:
        return refused.code.to_bytes(4, "little") + bytes(messages.KEY_RSP_SIZE - 4)
    return bytes(32) + key


def _check_key_request(platform: Platform, guest: GuestContext, request: KeyRequest, header: Header) -> None:
    known = (MITIGATIONS if header.message_version > 1 else TCB) * 2 - 1
    tcb = request.tcb_version.to_bytes(8, "little")
    wrong = (
        any(request.reserved)
        or request.guest_field_select & ~known
        or not header.vmpck <= request.vmpl < VMPCKS
        or request.guest_svn > guest.guest_svn
        or not at_most(tcb, platform.committed_tcb)
        or (request.launch_mit_vector or 0) & ~platform.release.mitigations
    )
    if wrong:
        raise FirmwareStatus(status.INVALID_PARAM)


def _root(platform: Platform, guest: GuestContext, request: KeyRequest) -> bytes:
    """The secret a key is derived from: VMRK 32 bytes, VCEK's or VLEK's 48."""
    if request.root_key_select:
        return guest.vmrk
    if platform.mask_chip_key:
        raise FirmwareStatus(status.INVALID_KEY)
    signer = attestation.choose_signer(platform, guest, request.key_selection)
    if signer.number == attestation.SIGNER_VCEK and request.guest_field_select & TCB:
        return platform.chip.vcek_hash(request.tcb_version.to_bytes(8, "little"))
    return signer.secret


def mix(guest: GuestContext, request: KeyRequest) -> bytes:
    """What a derived key depends on beside its root: 168 bytes, with a mitigation vector 176.

    Digests go in with their first 32 bytes only.
    """
    select = request.guest_field_select
    identity, digest = 0, bytes(48)
    if guest.id_block_en:
        identity, digest = (2, guest.author_key_digest) if guest.auth_key_en else (1, guest.id_key_digest)

    def chosen(bit: int, value: bytes) -> bytes:
        return value if select & bit else bytes(len(value))

    out = struct.pack("<IIQI", request.root_key_select | identity << 1, 0, select, request.vmpl)
    out += chosen(GUEST_SVN, request.guest_svn.to_bytes(4, "little"))
    out += chosen(TCB, request.tcb_version.to_bytes(8, "little"))
    out += chosen(POLICY, guest.policy.to_bytes(8, "little"))
    out += chosen(IMAGE_ID, guest.image_id) + chosen(FAMILY_ID, guest.family_id)
    out += chosen(MEASUREMENT, guest.digest[:32]) + guest.host_data + digest[:32]
    if select & MITIGATIONS:
        out += (request.launch_mit_vector or 0).to_bytes(8, "little")
    return out


def _tsc(platform: Platform, guest: GuestContext, payload: bytes, _header: Header) -> bytes:
    if any(payload):
        return status.INVALID_PARAM.to_bytes(4, "little") + bytes(messages.TSC_INFO_SIZE - 4)
    head = struct.pack("<IIQQI", status.SUCCESS, 0, tsc_scale(platform, guest), 0, TSC_FACTOR)
    return head.ljust(messages.TSC_INFO_SIZE, b"\0")


def _cpuid(platform: Platform, _guest: GuestContext, payload: bytes, _header: Header) -> bytes:
    """Response: status u32, count u32, reserved u64, then the entries, corrected where the status is INVALID_PARAM."""
    corrected = cpuid_rules.check(platform.hardware, payload)
    if corrected is None:
        return status.INVALID_PARAM.to_bytes(4, "little") + bytes(12)
    count = int.from_bytes(payload[:4], "little")
    entries = corrected or payload[cpuid_rules.HEADER_SIZE :][: count * cpuid_rules.ENTRY_SIZE]
    code = status.INVALID_PARAM if corrected else status.SUCCESS
    return struct.pack("<IIQ", code, count, 0) + entries


_HANDLERS: dict[int, tuple[Handler, dict[int, int]]] = {
    messages.CPUID_REQ: (_cpuid, {1: cpuid_rules.HEADER_SIZE}),
    messages.KEY_REQ: (_key, messages.KEY_REQ_SIZES),
    messages.REPORT_REQ: (_report, {1: messages.REPORT_REQ_SIZE}),
    messages.TSC_INFO_REQ: (_tsc, {1: messages.TSC_INFO_SIZE}),
}
"""By message type: the handler and, by message version, the shortest payload."""
