"""/dev/sev: the one ioctl, its commands and their structures (include/uapi/linux/psp-sev.h).

All structures are packed and little-endian; addresses are of the calling process. The envelope is copied back after
every command that the kernel knows, also where the ioctl fails; the kernel never clears `error` by itself.
"""

from __future__ import annotations

from typing import ClassVar

from sev.abi.io import iowr
from sev.abi.record import Record
from sev.records import record

SEV_ISSUE_CMD = iowr(0x53, 0, 16)
"""The only ioctl of the device: 0xC0105300."""

FACTORY_RESET = 0
PLATFORM_STATUS = 1
PEK_GEN = 2
PEK_CSR = 3
PDH_GEN = 4
PDH_CERT_EXPORT = 5
PEK_CERT_IMPORT = 6
GET_ID = 7
GET_ID2 = 8
SNP_PLATFORM_STATUS = 9
SNP_COMMIT = 10
SNP_SET_CONFIG = 11
SNP_VLEK_LOAD = 12
COMMAND_MAX = 13
"""SEV_MAX of the kernel: not a command itself."""

NAMES = (
    "FACTORY_RESET",
    "PLATFORM_STATUS",
    "PEK_GEN",
    "PEK_CSR",
    "PDH_GEN",
    "PDH_CERT_EXPORT",
    "PEK_CERT_IMPORT",
    "GET_ID",
    "GET_ID2",
    "SNP_PLATFORM_STATUS",
    "SNP_COMMIT",
    "SNP_SET_CONFIG",
    "SNP_VLEK_LOAD",
)
"""Names of the commands by id, as people know them."""

NO_FW_CALL = 0xFFFFFFFF
"""Status that the kernel makes up where the firmware was not reached although it should have been."""

BLOB_MAX = 0x4000
"""Bytes that the kernel takes for certificates and similar blobs."""

ENOTSUPP = 524
"""An errno without a name: GET_ID on a platform whose API is below 0.16."""

STATE_UNINIT = 0
STATE_INIT = 1
STATE_WORKING = 2
STATE_NAMES = ("UNINIT", "INIT", "WORKING")

FLAG_OWNED = 1 << 0
FLAG_CONFIG_ES = 1 << 8

SNP_FLAG_RMP_INITIALIZED = 1 << 0
SNP_FLAG_ALIAS_CHECK_COMPLETE = 1 << 1

SNP_MASK_CHIP_ID = 1 << 0
SNP_MASK_CHIP_KEY = 1 << 1
SNP_VLEK_EN = 1 << 2
SNP_FEATURE_INFO = 1 << 3
SNP_RAPL_DIS = 1 << 4
SNP_CIPHERTEXT_HIDING_CAP = 1 << 5
SNP_CIPHERTEXT_HIDING_EN = 1 << 6

VLEK_BLOB_SIZE = 432
GET_ID_SIZE = 128
ID_SIZE = 64


@record
class IssueCmd(Record):
    """struct sev_issue_cmd, 16 bytes: the envelope. `data` stands unaligned at offset 4."""

    cmd: int
    data: int = 0
    error: int = 0

    FORMAT: ClassVar[str] = "I Q I"


@record
class PlatformStatus(Record):
    """struct sev_user_data_status, 12 bytes: what the firmware answers to PLATFORM_STATUS. `flags` at offset 3."""

    api_major: int
    api_minor: int
    state: int
    flags: int
    build: int
    guest_count: int

    FORMAT: ClassVar[str] = "B B B I B I"


@record
class PekCsr(Record):
    """struct sev_user_data_pek_csr, 12 bytes; `length` is written back always."""

    address: int
    length: int

    FORMAT: ClassVar[str] = "Q I"


@record
class PdhCertExport(Record):
    """struct sev_user_data_pdh_cert_export, 24 bytes; both lengths are written back always."""

    pdh_cert_address: int
    pdh_cert_len: int
    cert_chain_address: int
    cert_chain_len: int

    FORMAT: ClassVar[str] = "Q I Q I"


@record
class PekCertImport(Record):
    """struct sev_user_data_pek_cert_import, 24 bytes."""

    pek_cert_address: int
    pek_cert_len: int
    oca_cert_address: int
    oca_cert_len: int

    FORMAT: ClassVar[str] = "Q I Q I"


@record
class GetId2(Record):
    """struct sev_user_data_get_id2, 12 bytes; `length` is written back always."""

    address: int
    length: int

    FORMAT: ClassVar[str] = "Q I"


@record
class SnpStatus(Record):
    """struct sev_user_data_snp_status, 32 bytes: what the firmware answers. TCBs are the raw u64."""

    api_major: int
    api_minor: int
    state: int
    flags: int
    build_id: int
    bits: int
    guest_count: int
    current_tcb: int
    reported_tcb: int

    FORMAT: ClassVar[str] = "B B B B I I I Q Q"


@record
class SnpConfig(Record):
    """struct sev_user_data_snp_config, 64 bytes; forwarded to the firmware as it is.

    `masks`: bit 0 mask_chip_id, bit 1 mask_chip_key, others must be zero.
    """

    reported_tcb: int
    masks: int = 0
    reserved: bytes = bytes(52)

    FORMAT: ClassVar[str] = "Q I 52s"


@record
class SnpVlekLoad(Record):
    """struct sev_user_data_snp_vlek_load, 16 bytes. `vlek_wrapped_address` points to 432 bytes."""

    len: int
    vlek_wrapped_version: int
    vlek_wrapped_address: int

    FORMAT: ClassVar[str] = "I B 3x Q"


def command_name(number: int) -> str:
    """Name of a command by its id, for messages."""
    return NAMES[number] if 0 <= number < len(NAMES) else f"SEV command {number}"
