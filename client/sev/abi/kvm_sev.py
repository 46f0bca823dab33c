"""KVM_MEMORY_ENCRYPT_OP: its envelope, ids and structures (arch/x86/include/uapi/asm/kvm.h).

Little-endian; addresses are of the calling process. `error` of the envelope is the firmware's status, and is left as
the caller had it where the firmware was not reached: clear it before.
"""

from __future__ import annotations

from typing import ClassVar

from sev.abi.record import Record
from sev.records import record

SEV_INIT = 0
SEV_ES_INIT = 1
LAUNCH_START = 2
LAUNCH_UPDATE_DATA = 3
LAUNCH_UPDATE_VMSA = 4
LAUNCH_SECRET = 5
LAUNCH_MEASURE = 6
LAUNCH_FINISH = 7
SEND_START = 8
SEND_UPDATE_DATA = 9
SEND_UPDATE_VMSA = 10
SEND_FINISH = 11
RECEIVE_START = 12
RECEIVE_UPDATE_DATA = 13
RECEIVE_UPDATE_VMSA = 14
RECEIVE_FINISH = 15
GUEST_STATUS = 16
DBG_DECRYPT = 17
DBG_ENCRYPT = 18
CERT_EXPORT = 19
GET_ATTESTATION_REPORT = 20
SEND_CANCEL = 21
SEV_INIT2 = 22
SNP_LAUNCH_START = 100
SNP_LAUNCH_UPDATE = 101
SNP_LAUNCH_FINISH = 102
SNP_ENABLE_REQ_CERTS = 103

SNP_MIN_ID = 100
"""An initialised SNP guest accepts no id below."""

UNIMPLEMENTED = frozenset({SEND_UPDATE_VMSA, RECEIVE_UPDATE_VMSA, CERT_EXPORT})
"""Ids that have a number and nothing behind it."""

PAGE_NORMAL = 1
PAGE_ZERO = 3
PAGE_UNMEASURED = 4
PAGE_SECRETS = 5
PAGE_CPUID = 6
PAGE_TYPES = frozenset({PAGE_NORMAL, PAGE_ZERO, PAGE_UNMEASURED, PAGE_SECRETS, PAGE_CPUID})
"""Types that SNP_LAUNCH_UPDATE takes; VMSA pages (2) are KVM's own."""

VMSA_SNP_ACTIVE = 1 << 0
VMSA_RESTRICTED_INJECTION = 1 << 3
VMSA_ALTERNATE_INJECTION = 1 << 4
VMSA_DEBUG_SWAP = 1 << 5
VMSA_SECURE_TSC = 1 << 9

POLICY_RESERVED_MBO = 1 << 17
"""Policy bit that must be one."""

GHCB_VERSION_MAX = 2
ID_BLOCK_SIZE = 96
ID_AUTH_SIZE = 4096


@record
class SevCmd(Record):
    """struct kvm_sev_cmd, 24 bytes: the envelope."""

    id: int
    data: int = 0
    error: int = 0
    sev_fd: int = 0

    FORMAT: ClassVar[str] = "I 4x Q I I"


@record
class SevInit(Record):
    """struct kvm_sev_init, 48 bytes. SNPActive (bit 0 of vmsa_features) must not be passed: KVM adds it."""

    vmsa_features: int = 0
    flags: int = 0
    ghcb_version: int = 0

    FORMAT: ClassVar[str] = "Q I H 2x 32x"


@record
class SnpLaunchStart(Record):
    """struct kvm_sev_snp_launch_start, 64 bytes."""

    policy: int
    gosvw: bytes = bytes(16)
    flags: int = 0

    FORMAT: ClassVar[str] = "Q 16s H 6x 32x"


@record
class SnpLaunchUpdate(Record):
    """struct kvm_sev_snp_launch_update, 64 bytes; gfn_start, uaddr and len come back advanced by what was done."""

    gfn_start: int
    uaddr: int
    len: int
    type: int
    flags: int = 0

    FORMAT: ClassVar[str] = "Q Q Q B x H 4x 32x"


@record
class SnpLaunchFinish(Record):
    """struct kvm_sev_snp_launch_finish, 88 bytes; host_data stands unaligned at offset 19."""

    id_block_uaddr: int = 0
    id_auth_uaddr: int = 0
    id_block_en: int = 0
    auth_key_en: int = 0
    vcek_disabled: int = 0
    host_data: bytes = bytes(32)
    flags: int = 0

    FORMAT: ClassVar[str] = "Q Q B B B 32s 3x H 32x"


_NAMES = {
    SEV_INIT: "SEV_INIT",
    SEV_ES_INIT: "SEV_ES_INIT",
    LAUNCH_START: "LAUNCH_START",
    LAUNCH_UPDATE_DATA: "LAUNCH_UPDATE_DATA",
    LAUNCH_UPDATE_VMSA: "LAUNCH_UPDATE_VMSA",
    LAUNCH_SECRET: "LAUNCH_SECRET",
    LAUNCH_MEASURE: "LAUNCH_MEASURE",
    LAUNCH_FINISH: "LAUNCH_FINISH",
    SEND_START: "SEND_START",
    SEND_UPDATE_DATA: "SEND_UPDATE_DATA",
    SEND_UPDATE_VMSA: "SEND_UPDATE_VMSA",
    SEND_FINISH: "SEND_FINISH",
    RECEIVE_START: "RECEIVE_START",
    RECEIVE_UPDATE_DATA: "RECEIVE_UPDATE_DATA",
    RECEIVE_UPDATE_VMSA: "RECEIVE_UPDATE_VMSA",
    RECEIVE_FINISH: "RECEIVE_FINISH",
    GUEST_STATUS: "GUEST_STATUS",
    DBG_DECRYPT: "DBG_DECRYPT",
    DBG_ENCRYPT: "DBG_ENCRYPT",
    CERT_EXPORT: "CERT_EXPORT",
    GET_ATTESTATION_REPORT: "GET_ATTESTATION_REPORT",
    SEND_CANCEL: "SEND_CANCEL",
    SEV_INIT2: "SEV_INIT2",
    SNP_LAUNCH_START: "SNP_LAUNCH_START",
    SNP_LAUNCH_UPDATE: "SNP_LAUNCH_UPDATE",
    SNP_LAUNCH_FINISH: "SNP_LAUNCH_FINISH",
    SNP_ENABLE_REQ_CERTS: "SNP_ENABLE_REQ_CERTS",
}


def command_name(number: int) -> str:
    """Name of a command by its id, for messages."""
    return _NAMES.get(number, f"KVM SEV command {number}")
