"""Firmware that really runs: real-mode code at the reset vector, in an image with valid SEV metadata.

The image is two pages below 4 GiB. Its first page holds the code and what it needs; the last one the metadata, the
table that leads to it, and the reset vector, which jumps to the code. The code segment's base is 0xFFFF0000.
"""

from __future__ import annotations

from sev.measurement import ovmf
from sev.measurement.sample import footer, metadata, place

SIZE = 0x2000
CODE = 0xE000
"""Offset of the first page in the code segment."""
TEXT = 0xE100
"""Offset of the text in it."""
DEBUG_PORT = 0xE9
AP_RESET = 0x1000
SECTIONS = (
    (0x1000, 0x1000, ovmf.SEC_MEM),
    (0x2000, 0x1000, ovmf.SECRETS),
    (0x3000, 0x1000, ovmf.CPUID),
)
HALT = bytes.fromhex("f4ebfd")  # hlt; jmp back to it

PRINT = bytes.fromhex(
    "be00e1"  # mov si, TEXT
    "2e8a04"  # next: mov al, cs:[si]
    "84c0"  # test al, al
    "7407"  # jz end
    "bae900"  # mov dx, DEBUG_PORT
    "ee"  # out dx, al
    "46"  # inc si
    "ebf2"  # jmp next
)
"""Prints the text at TEXT up to a zero byte."""


def tiny_firmware(code: bytes, text: bytes = b"") -> bytes:
    """The image, 8192 bytes: `code` runs at reset, `text` lies at TEXT."""
    image = bytearray(SIZE)
    image[: len(code)] = code
    image[TEXT - CODE : TEXT - CODE + len(text)] = text
    place(image, 0x400, metadata(SECTIONS))
    table = footer(
        ((ovmf.RESET_BLOCK, AP_RESET.to_bytes(4, "little")), (ovmf.SEV_METADATA, (0x400).to_bytes(4, "little")))
    )
    place(image, ovmf.FOOTER_END + len(table), table)
    # jmp near to CODE, from 0xFFF0.
    place(image, 16, b"\xe9" + ((CODE - 0xFFF3) & 0xFFFF).to_bytes(2, "little"))
    return bytes(image)
