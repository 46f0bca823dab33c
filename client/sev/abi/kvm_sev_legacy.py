"""KVM_MEMORY_ENCRYPT_OP for SEV and SEV-ES: the structures of its ids 0 to 21 (arch/x86/include/uapi/asm/kvm.h).

Little-endian; addresses are of the calling process, lengths in bytes. Ids are in `sev.abi.kvm_sev`. A length of 0 asks
for the length that is needed: the call then fails with EIO and firmware status INVALID_LEN, and the length stands in
the structure. Which calls write a length back otherwise is said at each.
"""

from __future__ import annotations

from typing import ClassVar

from sev.abi import kvm_sev as ids
from sev.abi.record import Record
from sev.records import record

BLOB_MAX = 0x4000
"""Bytes that KVM takes for a certificate, a session or a packet header."""

PAGE_MAX = 4096
"""SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA take at most so much guest memory, within one page."""

MNONCE_SIZE = 16

STATE_UNINIT = 0
STATE_LAUNCH_UPDATE = 1
STATE_LAUNCH_SECRET = 2
STATE_RUNNING = 3
STATE_SEND_UPDATE = 4
STATE_RECEIVE_UPDATE = 5
STATE_NAMES = ("UNINIT", "LAUNCH_UPDATE", "LAUNCH_SECRET", "RUNNING", "SEND_UPDATE", "RECEIVE_UPDATE")
"""Names of a guest's states as GUEST_STATUS numbers them."""


@record
class LaunchStart(Record):
    """struct kvm_sev_launch_start, 40 bytes. `handle` 0 makes a guest of its own, else it shares that guest's keys;
    the guest's handle comes back. Certificate and session are optional: address 0."""

    handle: int = 0
    policy: int = 0
    dh_uaddr: int = 0
    dh_len: int = 0
    session_uaddr: int = 0
    session_len: int = 0

    FORMAT: ClassVar[str] = "I I Q I 4x Q I 4x"


@record
class LaunchUpdateData(Record):
    """struct kvm_sev_launch_update_data, 16 bytes: memory to encrypt and measure; multiples of 16."""

    uaddr: int
    len: int

    FORMAT: ClassVar[str] = "Q I 4x"


@record
class LaunchSecret(Record):
    """struct kvm_sev_launch_secret, 48 bytes: packet header, where the secret goes, the packet."""

    hdr_uaddr: int
    hdr_len: int
    guest_uaddr: int
    guest_len: int
    trans_uaddr: int
    trans_len: int

    FORMAT: ClassVar[str] = "Q I 4x Q I 4x Q I 4x"


@record
class LaunchMeasure(Record):
    """struct kvm_sev_launch_measure, 16 bytes. `len` is written back by the length probe and by success alone."""

    uaddr: int = 0
    len: int = 0

    FORMAT: ClassVar[str] = "Q I 4x"


@record
class GuestStatus(Record):
    """struct kvm_sev_guest_status, 12 bytes, written by the kernel."""

    handle: int = 0
    policy: int = 0
    state: int = 0

    FORMAT: ClassVar[str] = "I I I"


@record
class Debug(Record):
    """struct kvm_sev_dbg, 24 bytes: DBG_DECRYPT reads guest memory at `src_uaddr`, DBG_ENCRYPT writes it at `dst`."""

    src_uaddr: int
    dst_uaddr: int
    len: int

    FORMAT: ClassVar[str] = "Q Q I 4x"


@record
class AttestationReport(Record):
    """struct kvm_sev_attestation_report, 32 bytes. `len` is written back as LAUNCH_MEASURE does."""

    mnonce: bytes = bytes(MNONCE_SIZE)
    uaddr: int = 0
    len: int = 0

    FORMAT: ClassVar[str] = "16s Q I 4x"


@record
class SendStart(Record):
    """struct kvm_sev_send_start, 72 bytes. `policy` and `session_len` are written back whatever the outcome."""

    policy: int = 0
    pdh_cert_uaddr: int = 0
    pdh_cert_len: int = 0
    plat_certs_uaddr: int = 0
    plat_certs_len: int = 0
    amd_certs_uaddr: int = 0
    amd_certs_len: int = 0
    session_uaddr: int = 0
    session_len: int = 0

    FORMAT: ClassVar[str] = "I 4x Q I 4x Q I 4x Q I 4x Q I 4x"


@record
class SendUpdateData(Record):
    """struct kvm_sev_send_update_data, 48 bytes. `hdr_len` or `trans_len` 0 is the probe; both are written back."""

    hdr_uaddr: int = 0
    hdr_len: int = 0
    guest_uaddr: int = 0
    guest_len: int = 0
    trans_uaddr: int = 0
    trans_len: int = 0

    FORMAT: ClassVar[str] = "Q I 4x Q I 4x Q I 4x"


@record
class ReceiveStart(Record):
    """struct kvm_sev_receive_start, 40 bytes; certificate and session are mandatory. `handle` comes back."""

    handle: int = 0
    policy: int = 0
    pdh_uaddr: int = 0
    pdh_len: int = 0
    session_uaddr: int = 0
    session_len: int = 0

    FORMAT: ClassVar[str] = "I I Q I 4x Q I 4x"


@record
class ReceiveUpdateData(Record):
    """struct kvm_sev_receive_update_data, 48 bytes; all six fields are mandatory."""

    hdr_uaddr: int
    hdr_len: int
    guest_uaddr: int
    guest_len: int
    trans_uaddr: int
    trans_len: int

    FORMAT: ClassVar[str] = "Q I 4x Q I 4x Q I 4x"


STRUCTURES: dict[int, type[Record] | None] = {
    ids.SEV_INIT: None,
    ids.SEV_ES_INIT: None,
    ids.LAUNCH_START: LaunchStart,
    ids.LAUNCH_UPDATE_DATA: LaunchUpdateData,
    ids.LAUNCH_UPDATE_VMSA: None,
    ids.LAUNCH_SECRET: LaunchSecret,
    ids.LAUNCH_MEASURE: LaunchMeasure,
    ids.LAUNCH_FINISH: None,
    ids.SEND_START: SendStart,
    ids.SEND_UPDATE_DATA: SendUpdateData,
    ids.SEND_FINISH: None,
    ids.RECEIVE_START: ReceiveStart,
    ids.RECEIVE_UPDATE_DATA: ReceiveUpdateData,
    ids.RECEIVE_FINISH: None,
    ids.GUEST_STATUS: GuestStatus,
    ids.DBG_DECRYPT: Debug,
    ids.DBG_ENCRYPT: Debug,
    ids.GET_ATTESTATION_REPORT: AttestationReport,
    ids.SEND_CANCEL: None,
    ids.SEV_INIT2: ids.SevInit,
    ids.SNP_LAUNCH_START: ids.SnpLaunchStart,
    ids.SNP_LAUNCH_UPDATE: ids.SnpLaunchUpdate,
    ids.SNP_LAUNCH_FINISH: ids.SnpLaunchFinish,
    ids.SNP_ENABLE_REQ_CERTS: None,
}
"""What `data` of the envelope points to, by id; None where a command takes nothing. Ids of `sev.abi.kvm_sev` that are
not here have a number and nothing behind it (`sev.abi.kvm_sev.UNIMPLEMENTED`)."""
