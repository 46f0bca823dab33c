"""Guest messages: what an SNP guest and the firmware say to each other, encrypted; header, requests, responses.

    0x00  32  authentication tag: 16 bytes, then zeros
    0x20   8  sequence number
    0x30   1  algorithm: 1 = AES-256-GCM        0x31  1  header version: 1     0x32  2  header size: 0x60
    0x34   1  message type                      0x35  1  message version       0x36  2  message size
    0x3C   1  VMPCK number, 0 to 3
    0x60      encrypted payload

The key is the VMPCK, the IV the sequence number (8 bytes) and four zeros, the associated data bytes 0x30 to 0x5F. A
message fits in a page of 4096 bytes. All integers are little-endian. Only bytes are packed here; sealing is done by
whoever holds the key.

Source: SEV-SNP firmware ABI (AMD 56860), chapter on guest messages.
"""

from __future__ import annotations

import struct

from sev.errors import MalformedInput, UsageError
from sev.records import record

HEADER_SIZE = 0x60
PAGE_SIZE = 4096
PAYLOAD_MAX = PAGE_SIZE - HEADER_SIZE
TAG_SIZE = 16
AAD_START = 0x30
"""Associated data: the header from here to its end."""

ALGORITHM_AES_256_GCM = 1
HEADER_VERSION = 1

CPUID_REQ, CPUID_RSP = 1, 2
KEY_REQ, KEY_RSP = 3, 4
REPORT_REQ, REPORT_RSP = 5, 6
EXPORT_REQ, EXPORT_RSP = 7, 8
IMPORT_REQ, IMPORT_RSP = 9, 10
ABSORB_REQ, ABSORB_RSP = 11, 12
VMRK_REQ, VMRK_RSP = 13, 14
ABSORB_NOMA_REQ, ABSORB_NOMA_RSP = 15, 16
TSC_INFO_REQ, TSC_INFO_RSP = 17, 18

REPORT_SIZE = 0x4A0
REPORT_REQ_SIZE = 0x60
REPORT_RSP_HEADER_SIZE = 0x20
"""Bytes before the report in MSG_REPORT_RSP."""

KEY_REQ_SIZES = {1: 0x20, 2: 0x28}
"""Bytes of MSG_KEY_REQ by message version."""

KEY_RSP_SIZE = 0x40
TSC_INFO_SIZE = 0x80

_HEADER = struct.Struct("<16s16sQ8sBBHBBH4sB35s")
_REPORT_REQ = struct.Struct("<64sII24s")
_KEY_REQ = struct.Struct("<IIQIIQ")


@record
class Header:
    """A message header, 96 bytes. Values are kept as they stand; what they may be is the receiver's to judge.

    Attributes:
        tag: Authentication tag, 16 bytes.
        sequence: Sequence number, u64.
        message_type: One of the numbers above.
        message_version: Version of that message.
        message_size: Bytes of payload.
        vmpck: Number of the key, 0 to 3.
        algorithm: `ALGORITHM_AES_256_GCM`.
        header_version: `HEADER_VERSION`.
        header_size: `HEADER_SIZE`.
    """

    tag: bytes
    sequence: int
    message_type: int
    message_version: int
    message_size: int
    vmpck: int
    algorithm: int = ALGORITHM_AES_256_GCM
    header_version: int = HEADER_VERSION
    header_size: int = HEADER_SIZE

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Header:
        """The header at the start of a message.

        Raises:
            MalformedInput: Fewer than 96 bytes.
        """
        if len(data) < HEADER_SIZE:
            raise MalformedInput(
                f"guest message: {len(data)} bytes, the header alone has {HEADER_SIZE}", field="message"
            )
        tag, _, sequence, _, algorithm, version, size, kind, kind_version, length, _, vmpck, _ = _HEADER.unpack_from(
            data
        )
        return cls(tag, sequence, kind, kind_version, length, vmpck, algorithm, version, size)

    def encode(self) -> bytes:
        """The 96 bytes."""
        return _HEADER.pack(
            self.tag,
            bytes(16),
            self.sequence,
            bytes(8),
            self.algorithm,
            self.header_version,
            self.header_size,
            self.message_type,
            self.message_version,
            self.message_size,
            bytes(4),
            self.vmpck,
            bytes(35),
        )


def initialisation_vector(sequence: int) -> bytes:
    """The 12-byte IV of a sequence number."""
    return sequence.to_bytes(8, "little") + bytes(4)


def report_request(report_data: bytes, vmpl: int = 0, key_selection: int = 0) -> bytes:
    """MSG_REPORT_REQ, 96 bytes.

    Args:
        report_data: 64 bytes that the report repeats.
        vmpl: Privilege level to report, not below the level of the key used.
        key_selection: 0 VLEK if loaded, else VCEK; 1 VCEK; 2 VLEK.

    Raises:
        UsageError: report_data is not 64 bytes, or a number does not fit its field.
    """
    if len(report_data) != 64:
        raise UsageError(f"report data of {len(report_data)} bytes, expected 64", field="report_data")
    if not 0 <= vmpl <= 0xFFFFFFFF or not 0 <= key_selection <= 3:
        raise UsageError(f"report request: vmpl {vmpl} and key selection {key_selection} do not fit", field="vmpl")
    return _REPORT_REQ.pack(report_data, vmpl, key_selection, bytes(24))


def report_response(payload: bytes) -> tuple[int, bytes]:
    """Status and report of MSG_REPORT_RSP; an empty report unless the status is 0.

    Raises:
        MalformedInput: It is too short, or its report is of another size than 1184 bytes.
    """
    if len(payload) < REPORT_RSP_HEADER_SIZE:
        raise MalformedInput(f"report response: {len(payload)} bytes, expected at least 32", field="message")
    status, size = struct.unpack_from("<II", payload)
    if status:
        return status, b""
    report = payload[REPORT_RSP_HEADER_SIZE : REPORT_RSP_HEADER_SIZE + REPORT_SIZE]
    if size != REPORT_SIZE or len(report) != REPORT_SIZE:
        raise MalformedInput(
            f"report response: report size at offset 4 is {size}, expected {REPORT_SIZE}", field="size"
        )
    return status, report


@record
class KeyRequest:
    """MSG_KEY_REQ: which key is derived, and from what.

    Attributes:
        root_key_select: 0 VCEK or VLEK, 1 VMRK.
        key_selection: For root 0: 0 VLEK if loaded, else VCEK; 1 VCEK; 2 VLEK.
        guest_field_select: Bits: 0 policy, 1 image id, 2 family id, 3 measurement, 4 guest SVN, 5 TCB version,
            6 launch mitigation vector (version 2).
        vmpl: Privilege level mixed in, not below the level of the key used.
        guest_svn: Mixed in with bit 4; at most the ID block's.
        tcb_version: Mixed in with bit 5; no component above the committed TCB's.
        launch_mit_vector: Mixed in with bit 6; None makes a version 1 request.
        reserved: Reserved bits of the first word and the second word, zero; tests set them.
    """

    root_key_select: int = 0
    key_selection: int = 0
    guest_field_select: int = 0
    vmpl: int = 0
    guest_svn: int = 0
    tcb_version: int = 0
    launch_mit_vector: int | None = None
    reserved: tuple[int, int] = (0, 0)

    @property
    def message_version(self) -> int:
        """1, or 2 with a mitigation vector."""
        return 1 if self.launch_mit_vector is None else 2

    def encode(self) -> bytes:
        """The request, padded to a multiple of 16 bytes as messages are.

        Raises:
            UsageError: A number does not fit its field.
        """
        if not 0 <= self.root_key_select <= 1 or not 0 <= self.key_selection <= 3:
            raise UsageError("key request: root_key_select is 0 or 1, key_selection 0 to 3", field="root_key_select")
        first = self.root_key_select | self.key_selection << 1 | self.reserved[0] << 3
        try:
            body = _KEY_REQ.pack(
                first, self.reserved[1], self.guest_field_select, self.vmpl, self.guest_svn, self.tcb_version
            )
            if self.launch_mit_vector is not None:
                body += struct.pack("<Q8x", self.launch_mit_vector)
        except struct.error as error:
            raise UsageError(f"key request: {error}", field="key_request") from None
        return body

    @classmethod
    def decode(cls, payload: bytes, message_version: int) -> KeyRequest:
        """The request in a payload of message version 1 or 2.

        Raises:
            MalformedInput: The payload is too short for that version.
        """
        needed = KEY_REQ_SIZES[message_version]
        if len(payload) < needed:
            raise MalformedInput(
                f"key request: {len(payload)} bytes, version {message_version} has {needed}", field="message"
            )
        first, second, select, vmpl, svn, tcb = _KEY_REQ.unpack_from(payload)
        vector = int.from_bytes(payload[0x20:0x28], "little") if message_version > 1 else None
        return cls(first & 1, first >> 1 & 3, select, vmpl, svn, tcb, vector, (first >> 3, second))


def key_response(payload: bytes) -> tuple[int, bytes]:
    """Status and 32-byte key of MSG_KEY_RSP; an empty key unless the status is 0.

    Raises:
        MalformedInput: It is shorter than 64 bytes.
    """
    if len(payload) < KEY_RSP_SIZE:
        raise MalformedInput(f"key response: {len(payload)} bytes, expected {KEY_RSP_SIZE}", field="message")
    status = int.from_bytes(payload[:4], "little")
    return status, b"" if status else bytes(payload[0x20:0x40])
