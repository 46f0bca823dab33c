"""The table of kernel hashes that QEMU puts into guest memory for measured direct boot.

168 bytes, padded with zeros to 176: a GUID and u16 168, then three entries of GUID, u16 50 and SHA-256, in the order
command line, initrd, kernel. GUIDs are mixed-endian, integers little-endian. The command line is hashed with its
terminating NUL; a missing initrd is the hash of nothing.

Source: QEMU target/i386/sev.c (sev_add_kernel_loader_hashes); edk2 OvmfPkg/AmdSev/BlobVerifierLibSevHashes.
"""

from __future__ import annotations

from hashlib import sha256

from sev.errors import UsageError
from sev.measurement.guids import mixed

_PADDED = 16
"""The table's size is rounded up to a multiple of this."""


def encode_command_line(text: str | None) -> bytes:
    """The bytes that are hashed: the command line and one NUL.

    Raises:
        UsageError: There is a NUL in it.
    """
    data = (text or "").encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise UsageError("the kernel command line has a NUL byte in it", field="append")
    return data + b"\0"


def table(kernel: bytes, initrd: bytes | None = None, append: str | None = None) -> bytes:
    """The padded table, 176 bytes, of a kernel image, an initrd and a command line.

    Raises:
        UsageError: The command line has a NUL in it.
    """
    return table_of(sha256(kernel).digest(), sha256(initrd or b"").digest(), append)


def table_of(kernel_hash: bytes, initrd_hash: bytes, append: str | None = None) -> bytes:
    """The padded table, 176 bytes, where the SHA-256 of kernel and initrd (32 bytes each) are known.

    Raises:
        UsageError: The command line has a NUL in it.
    """
    entries = (
        ("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", sha256(encode_command_line(append)).digest()),
        ("44baf731-3a2f-4bd7-9af1-41e29169781d", initrd_hash),
        ("4de79437-abd2-427f-b835-d5b172d2045b", kernel_hash),
    )
    body = b"".join(mixed(guid) + (50).to_bytes(2, "little") + digest for guid, digest in entries)
    header = mixed("9438d606-4f22-4cc9-b479-a793d411fd21") + (18 + len(body)).to_bytes(2, "little")
    return (header + body).ljust(-(-(len(header) + len(body)) // _PADDED) * _PADDED, b"\0")
