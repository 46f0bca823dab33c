"""A firmware image of our own with valid SEV metadata, for demonstrations and tests where no OVMF is installed.

It is laid out as OVMF is and every table in it is what OVMF's readers expect. It does not boot: its reset vector
halts.
"""

from __future__ import annotations

from sev.errors import UsageError
from sev.measurement import ovmf
from sev.measurement.guids import mixed

RESET_ADDRESS = 0x80B004
"""Where the sample's application processors start."""

HASHES_ADDRESS = 0x810C00
"""Where the sample wants the table of kernel hashes."""

SECTIONS = (
    (0x800000, 0x9000, ovmf.SEC_MEM),
    (0x80A000, 0x3000, ovmf.SEC_MEM),
    (0x80D000, 0x1000, ovmf.SECRETS),
    (0x80E000, 0x1000, ovmf.CPUID),
    (0x80F000, 0x1000, ovmf.SVSM_CAA),
    (0x810000, 0x1000, ovmf.KERNEL_HASHES),
    (0x811000, 0xF000, ovmf.SEC_MEM),
)
"""(gpa, size, type) of the sample's metadata."""

_SECRET_AREA = mixed("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
_METADATA_FROM_END = 0x400


def metadata(sections: tuple[tuple[int, int, int], ...], version: int = 1) -> bytes:
    """SEV metadata with these (gpa, size, type) sections."""
    body = b"".join(_u32(number) for section in sections for number in section)
    return b"ASEV" + _u32(16 + len(body)) + _u32(version) + _u32(len(sections)) + body


def footer(entries: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """A footer table with these (GUID, data) entries, first to last, and its own entry."""
    body = b"".join(data + _u16(len(data) + ovmf.ENTRY_TAIL) + guid for guid, data in entries)
    return body + _u16(len(body) + ovmf.ENTRY_TAIL) + ovmf.FOOTER


def sample_firmware(size: int = 512 * 1024) -> bytes:
    """The image: pages with content of their own, then zeros, then metadata, footer table and reset vector.

    Args:
        size: Bytes, a multiple of 4096 from 8192 up to 16 MiB.

    Raises:
        UsageError: The size is none of these.
    """
    if size % ovmf.PAGE_SIZE or not 2 * ovmf.PAGE_SIZE <= size <= 16 << 20:
        raise UsageError(
            f"sample firmware: {size} bytes: expected a multiple of 4096 from 8192 to 16 MiB", field="size"
        )
    image = bytearray(size)
    for page in range(size // ovmf.PAGE_SIZE // 2):
        text = b"sevd sample firmware, page %d\n" % page
        start = page * ovmf.PAGE_SIZE
        image[start : start + ovmf.PAGE_SIZE] = (text * (ovmf.PAGE_SIZE // len(text) + 1))[: ovmf.PAGE_SIZE]
    place(image, _METADATA_FROM_END, metadata(SECTIONS))
    table = footer(
        (
            (ovmf.RESET_BLOCK, _u32(RESET_ADDRESS)),
            (_SECRET_AREA, _u32(0x80F000) + _u32(0xC00)),
            (ovmf.HASHES_TABLE, _u32(HASHES_ADDRESS) + _u32(0x400)),
            (ovmf.SEV_METADATA, _u32(_METADATA_FROM_END)),
        )
    )
    place(image, ovmf.FOOTER_END + len(table), table)
    place(image, 16, b"\xf4\xeb\xfd")  # hlt; jmp back to it
    return bytes(image)


def place(image: bytearray, from_end: int, data: bytes) -> None:
    """Writes `data` so that it starts `from_end` bytes before the image's end."""
    start = len(image) - from_end
    image[start : start + len(data)] = data


def _u16(number: int) -> bytes:
    return number.to_bytes(2, "little")


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")
