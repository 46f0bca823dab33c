"""GUIDs as they lie in firmware tables: mixed-endian, the first three groups little-endian."""

from __future__ import annotations


def mixed(text: str) -> bytes:
    """The 16 bytes of a GUID in its usual spelling."""
    data = bytes.fromhex(text.replace("-", ""))
    return data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:]


def spelled(data: bytes) -> str:
    """The usual spelling of 16 bytes."""
    digits = (data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:16]).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
