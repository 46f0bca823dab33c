"""PAGE_INFO: the record by which SNP_LAUNCH_UPDATE extends the launch digest, 112 bytes, little-endian.

    0x00  48  digest so far; 48 zero bytes before the first page
    0x30  48  contents: SHA-384 of the page for NORMAL and VMSA pages, else zero
    0x60   2  length of this record, 0x70
    0x62   1  page type
    0x63   1  bit 0: IMI page
    0x64   1  reserved
    0x65   3  permissions of VMPL1, VMPL2, VMPL3
    0x68   8  guest physical address

The new digest is SHA-384 of the record. Every 4 KiB page is one record; a 2 MiB page is 512 of them.

Source: SEV-SNP firmware ABI (AMD 56860), SNP_LAUNCH_UPDATE; the order of the permission bytes is the firmware's.
"""

from __future__ import annotations

from hashlib import sha384

PAGE_SIZE = 4096
"""Bytes of one page."""

DIGEST_SIZE = 48
"""Bytes of a launch digest (SHA-384)."""

RECORD_SIZE = 0x70
"""Bytes of the record."""

NORMAL = 1
VMSA = 2
ZERO = 3
UNMEASURED = 4
SECRETS = 5
CPUID = 6

PAGE_TYPES = {
    NORMAL: "normal",
    VMSA: "vmsa",
    ZERO: "zero",
    UNMEASURED: "unmeasured",
    SECRETS: "secrets",
    CPUID: "cpuid",
}
"""Page types by number; 0 and 7 are refused by the firmware."""

VMSA_GPA = 0xFFFFFFFFF000
"""The address that KVM's RMP entries give for every VMSA page: all ones, cut to 52 bits and to the page."""

EMPTY_DIGEST = bytes(DIGEST_SIZE)
"""The digest before the first page; also the contents field of pages whose contents are not measured."""


def head(
    contents: bytes, page_type: int, *, imi: bool = False, vmpl1: int = 0, vmpl2: int = 0, vmpl3: int = 0
) -> bytes:
    """The record between the digest and the address: 56 bytes, the same for every page of a run."""
    return contents + bytes((RECORD_SIZE, 0, page_type, imi, 0, vmpl1, vmpl2, vmpl3))


def extend(
    digest: bytes,
    contents: bytes,
    page_type: int,
    gpa: int,
    *,
    imi: bool = False,
    vmpl1: int = 0,
    vmpl2: int = 0,
    vmpl3: int = 0,
) -> bytes:
    """The launch digest after one page.

    Args:
        digest: The digest so far, 48 bytes.
        contents: SHA-384 of the page, or `EMPTY_DIGEST` for types that are not measured by content.
        page_type: One of `PAGE_TYPES`.
        gpa: Guest physical address, 64 bits; `VMSA_GPA` for VMSA pages.
        imi: The page belongs to the initial migration image.
        vmpl1: Permission byte of VMPL1; likewise `vmpl2` and `vmpl3`.

    Raises:
        ValueError: A digest is not 48 bytes, or a number does not fit its field.
    """
    if len(digest) != DIGEST_SIZE or len(contents) != DIGEST_SIZE:
        raise ValueError(f"digest and contents are {DIGEST_SIZE} bytes each, not {len(digest)} and {len(contents)}")
    record = (
        digest + head(contents, page_type, imi=imi, vmpl1=vmpl1, vmpl2=vmpl2, vmpl3=vmpl3) + gpa.to_bytes(8, "little")
    )
    return sha384(record).digest()
