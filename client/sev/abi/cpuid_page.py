"""The CPUID page of an SNP launch: 4096 bytes that the firmware checks (AMD 56860, PAGE_TYPE_CPUID).

    0x000  4  count of entries, at most 64
    0x004 12  reserved, zero
    0x010     entries of 48 bytes: eax_in, ecx_in (u32), xcr0_in, xss_in (u64), eax, ebx, ecx, edx (u32), reserved u64

Little-endian. The firmware corrects entries that promise more than the processor has, and refuses the page once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sev.abi.kvm_vcpu import CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry
from sev.errors import MalformedInput, UsageError

SIZE = 4096
COUNT_MAX = 64
HEADER_SIZE = 16

_HEADER = struct.Struct("<I12s")
_FUNCTION = struct.Struct("<IIQQIIII8x")

XSAVE_LEAF = 0xD
XSAVE_LEGACY_SIZE = 0x240
"""Bytes of the legacy XSAVE area and header: what XCR0 = 1 enables."""


class Function(NamedTuple):
    """One entry, 48 bytes: inputs (leaf, subleaf, XCR0, XSS) and outputs."""

    eax_in: int
    ecx_in: int
    xcr0_in: int
    xss_in: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def build(functions: Sequence[Function]) -> bytes:
    """The page, 4096 bytes.

    Raises:
        UsageError: More than 64 entries, or a value that does not fit its field.
    """
    if len(functions) > COUNT_MAX:
        raise UsageError(f"a CPUID page holds {COUNT_MAX} entries, not {len(functions)}", field="functions")
    try:
        entries = b"".join(_FUNCTION.pack(*entry) for entry in functions)
    except struct.error as error:
        raise UsageError(f"a value does not fit an entry of a CPUID page: {error}", field="functions") from None
    return (_HEADER.pack(len(functions), bytes(12)) + entries).ljust(SIZE, b"\0")


def parse(page: bytes | bytearray | memoryview) -> list[Function]:
    """The entries of a page.

    Raises:
        MalformedInput: Not 4096 bytes, a count above 64, or a reserved header field that is not zero.
    """
    if len(page) != SIZE:
        raise MalformedInput(f"CPUID page: {len(page)} bytes where exactly {SIZE} were expected", field="cpuid_page")
    count, reserved = _HEADER.unpack_from(page)
    if count > COUNT_MAX:
        raise MalformedInput(f"CPUID page: count at offset 0 is {count}, expected at most {COUNT_MAX}", field="count")
    if reserved.strip(b"\0"):
        raise MalformedInput("CPUID page: reserved bytes 4 to 15 are not zero", field="reserved")
    view = memoryview(page)[HEADER_SIZE : HEADER_SIZE + count * _FUNCTION.size]
    return [Function._make(values) for values in _FUNCTION.iter_unpack(view)]


def from_kvm(entries: Iterable[CpuidEntry]) -> list[Function]:
    """Entries of KVM_GET_SUPPORTED_CPUID or KVM_SET_CPUID2 as the page's, the first 64 that say anything.

    All-zero outputs are left out: an absent entry reads as zeros. Leaf 0xD subleaves 0 and 1 are given for XCR0 = 1
    and XSS = 0, the state in which a guest starts, with the save area's size that belongs to it; so do QEMU's.
    """
    out = []
    for entry in entries:
        if not (entry.eax or entry.ebx or entry.ecx or entry.edx):
            continue
        indexed = bool(entry.flags & CPUID_FLAG_SIGNIFICANT_INDEX)
        xsave = entry.function == XSAVE_LEAF and entry.subleaf in (0, 1)
        out.append(
            Function(
                eax_in=entry.function,
                ecx_in=entry.subleaf if indexed else 0,
                xcr0_in=1 if xsave else 0,
                xss_in=0,
                eax=entry.eax,
                ebx=XSAVE_LEGACY_SIZE if xsave else entry.ebx,
                ecx=entry.ecx,
                edx=entry.edx,
            )
        )
    return out[:COUNT_MAX]


def corrections(before: bytes | bytearray | memoryview, after: bytes | bytearray | memoryview) -> list[str]:
    """What the firmware changed in a page that it refused, one line for each register: "leaf 0x1.0 ecx: 0x… is 0x…".

    Raises:
        MalformedInput: One of the pages is not a CPUID page.
    """
    out = []
    for old, new in zip(parse(before), parse(after), strict=False):
        for name in ("eax", "ebx", "ecx", "edx"):
            was, now = getattr(old, name), getattr(new, name)
            if was != now:
                out.append(f"leaf 0x{old.eax_in:x}.{old.ecx_in} {name}: 0x{was:08x}, the processor allows 0x{now:08x}")
    return out
