"""/dev/sev-guest: its three ioctls and their structures (include/uapi/linux/sev-guest.h).

All three take a `GuestRequestIoctl`, whose addresses are of the calling process. The kernel writes it back only where
`exitinfo2` is not zero: after a success the caller's own value still stands there, so put a zero in first. A success
of the ioctl is not yet one of the request: the firmware's status stands in the response.

Structures have natural alignment and are little-endian.
"""

from __future__ import annotations

from typing import ClassVar

from sev.abi.guest_message import REPORT_RSP_HEADER_SIZE
from sev.abi.io import iowr
from sev.abi.record import Record
from sev.records import record

IOCTL_SIZE = 32
SNP_GET_REPORT = iowr(0x53, 0, IOCTL_SIZE)
"""0xC0205300: `ReportRequest`, answered in `REPORT_RESPONSE_SIZE` bytes."""
SNP_GET_DERIVED_KEY = iowr(0x53, 1, IOCTL_SIZE)
"""0xC0205301: `DerivedKeyRequest`, answered in `KEY_RESPONSE_SIZE` bytes."""
SNP_GET_EXT_REPORT = iowr(0x53, 2, IOCTL_SIZE)
"""0xC0205302: `ExtReportRequest`, answered like a report, with the host's certificate table at `certs_address`."""

IOCTL_NAMES = {
    SNP_GET_REPORT: "SNP_GET_REPORT",
    SNP_GET_DERIVED_KEY: "SNP_GET_DERIVED_KEY",
    SNP_GET_EXT_REPORT: "SNP_GET_EXT_REPORT",
}

MESSAGE_VERSION = 1
"""What programs put into `msg_version`; 0 is refused with EINVAL."""

USER_DATA_SIZE = 64
REPORT_RESPONSE_SIZE = 4000
"""status u32, report size u32, 24 reserved bytes, the report from offset 32, zeros."""
REPORT_OFFSET = REPORT_RSP_HEADER_SIZE
KEY_RESPONSE_SIZE = 64
"""status u32, 28 reserved bytes, the key from offset 32."""
KEY_OFFSET = 32
KEY_SIZE = 32

CERTS_MAX = 0x4000
"""Bytes of a certificate buffer at most; its length must be whole pages."""
CERTS_PAGE = 4096

EXITINFO2_UNSET = 0xFF
"""What the driver puts into its copy before it looks at the request: written back where it refuses without sending."""
EXITINFO2_NO_FW_CALL = (1 << 64) - 1
"""The host was not reached."""

VMM_ERROR_INVALID_LEN = 1
"""The certificate buffer is too small; the length needed was written to `ExtReportRequest.certs_len`."""
VMM_ERROR_BUSY = 2
"""The host throttles. The driver tries again by itself for a minute; only then programs see it."""
VMM_ERROR_GENERIC = 1 << 31
"""The host failed in some other way."""


@record
class GuestRequestIoctl(Record):
    """struct snp_guest_request_ioctl, 32 bytes. `fw_error` and `vmm_error` are the halves of `exitinfo2`."""

    msg_version: int
    req_data: int
    resp_data: int
    exitinfo2: int = 0

    FORMAT: ClassVar[str] = "B 7x Q Q Q"

    @property
    def fw_error(self) -> int:
        """Firmware status of the command, low half."""
        return self.exitinfo2 & 0xFFFFFFFF

    @property
    def vmm_error(self) -> int:
        """The host's own error, high half: VMM_ERROR_*."""
        return self.exitinfo2 >> 32


@record
class ReportRequest(Record):
    """struct snp_report_req, 96 bytes. Bits 0 and 1 of the first reserved word select the key in newer firmware."""

    user_data: bytes
    vmpl: int = 0
    rsvd: bytes = bytes(28)

    FORMAT: ClassVar[str] = "64s I 28s"


@record
class ExtReportRequest(Record):
    """struct snp_ext_report_req, 112 bytes. Address or length 0: no certificates are wanted."""

    data: ReportRequest
    certs_address: int = 0
    certs_len: int = 0

    FORMAT: ClassVar[str] = "96s Q I 4x"
    NESTED: ClassVar[dict[str, type[Record]]] = {"data": ReportRequest}


@record
class DerivedKeyRequest(Record):
    """struct snp_derived_key_req, 32 bytes: exactly what the driver sends, so the mitigation vector cannot be given."""

    root_key_select: int = 0
    rsvd: int = 0
    guest_field_select: int = 0
    vmpl: int = 0
    guest_svn: int = 0
    tcb_version: int = 0

    FORMAT: ClassVar[str] = "I I Q I I Q"


CERTS_LEN_OFFSET = ExtReportRequest.offsets()["certs_len"][0]


def vmm_error(code: int) -> int:
    """exitinfo2 of an error of the host's own (SNP_GUEST_VMM_ERR)."""
    return code << 32


def command_name(request: int) -> str:
    """Name of an ioctl by its number, for messages."""
    return IOCTL_NAMES.get(request, f"sev-guest ioctl {request:#010x}")
