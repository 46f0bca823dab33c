"""What the firmware accepts in a CPUID table: the same rules for the CPUID page and for MSG_CPUID_REQ.

A table holds up to 64 entries of 48 bytes after a header of 16; `correct` says what each entry may be. Rule letters,
one for each of EAX, EBX, ECX, EDX:

    E  equals the hardware            M  only bits that the hardware has
    L  at most the hardware's value   U  anything

Leaves 0 to 0xFFFF and 0x80000000 to 0x8000FFFF are checked, others pass; a checked leaf without a rule must be zeros.
Source: behaviour of AMD's published Genoa firmware; hardware values are the simulated part's (see `hardware`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from sev import products
from sevd.simulator.hardware import Hardware, Registers

ENTRIES_MAX = 64
HEADER_SIZE = 16
ENTRY_SIZE = 48
_ENTRY = struct.Struct("<IIQQIIIIQ")

XCR0_MPK, XCR0_HI_ZMM, XCR0_ZMM_HI256, XCR0_OPMASK, XCR0_AVX = 9, 7, 6, 5, 2
XSS_CET_U, XSS_CET_S = 11, 12

_ANY = {  # whatever the subleaf
    0x0: "LUUU", 0x2: "UUUU", 0x4: "UUUU", 0x5: "UUUU", 0x6: "MEME", 0x80000000: "LUUU", 0x80000002: "UUUU",
    0x80000003: "UUUU", 0x80000004: "UUUU", 0x80000005: "UUUU", 0x80000006: "UUUU", 0x80000007: "EMUM",
    0x8000000A: "UUEM", 0x80000019: "UUEE", 0x8000001A: "UEEE", 0x8000001B: "MEEE", 0x8000001E: "UUUU",
    0x80000021: "MUEE", 0x80000023: "MUEE",
}  # fmt: skip
_BY_SUBLEAF = {
    (0x7, 1): "MEEE", (0xB, 0): "UUUU", (0xB, 1): "UUUU", (0xB, 2): "UUUU", (0xD, 2): "EEEE", (0xD, 5): "EEME",
    (0xD, 6): "EEME", (0xD, 7): "EEME", (0xD, 9): "EEEE", (0xD, 0xB): "EEEE", (0xD, 0xC): "EEEE", (0xF, 0): "EUEU",
    (0xF, 1): "UUUU", (0x10, 0): "EUEE", (0x10, 1): "UUUU", (0x8000001D, 0): "UUUU", (0x8000001D, 1): "UUUU",
    (0x8000001D, 2): "UUUU", (0x8000001D, 3): "UUUU", (0x8000001D, 4): "UEUE", (0x80000020, 0): "EUEE",
    (0x80000020, 1): "UEEU", (0x80000020, 2): "UEEU", (0x80000020, 3): "EUME", (0x80000024, 0): "LMME",
    (0x80000024, 1): "MEEE", (0x80000026, 0): "UUUU", (0x80000026, 1): "UUUU", (0x80000026, 2): "UUUU",
    (0x80000026, 3): "UUUU",
}  # fmt: skip

Special = Callable[[Registers, Registers, int, int], Registers]
"""(given, hardware, xcr0_in, xss_in) to what is allowed."""


def _signature(given: int, hardware: int) -> int:
    """Family, model, stepping, compared in that order, at most the hardware's."""
    return given if products.split_signature(given) <= products.split_signature(hardware) else hardware


def _leaf_1(given: Registers, hardware: Registers, _xcr0: int, _xss: int) -> Registers:
    free = 1 << 27 | 1 << 31  # OSXSAVE follows CR4, the hypervisor bit is the hypervisor's
    return (
        _signature(given[0], hardware[0]),
        given[1] & ~0xFF00 | hardware[1] & 0xFF00,
        given[2] & (hardware[2] | free),
        given[3] & hardware[3],
    )


def _leaf_7(given: Registers, hardware: Registers, _xcr0: int, _xss: int) -> Registers:
    return min(given[0], hardware[0]), given[1] & hardware[1], given[2] & (hardware[2] | 1 << 4), given[3] & hardware[3]


def _xsave_size(given: Registers, hardware: Registers, xcr0: int, _xss: int) -> Registers:
    sizes = (
        (XCR0_MPK, 0x988), (XCR0_HI_ZMM, 0x980), (XCR0_ZMM_HI256, 0x580), (XCR0_OPMASK, 0x380), (XCR0_AVX, 0x340),
    )  # fmt: skip
    size = next((size for bit, size in sizes if xcr0 >> bit & 1), 0x240)
    return given[0] & hardware[0] | 3, size, given[2], hardware[3]


def _xsave_compact(given: Registers, hardware: Registers, xcr0: int, xss: int) -> Registers:
    size = 0x240
    for bit, more in (
        (XCR0_AVX, 0x100),
        (XCR0_OPMASK, 0x40),
        (XCR0_ZMM_HI256, 0x200),
        (XCR0_HI_ZMM, 0x400),
        (XCR0_MPK, 8),
    ):
        size += more if xcr0 >> bit & 1 else 0
    for bit, more in ((XSS_CET_U, 0x10), (XSS_CET_S, 0x18)):
        size += more if xss >> bit & 1 else 0
    return given[0] & hardware[0], size, given[2] & hardware[2], given[3] & hardware[3]


def _leaf_80000001(given: Registers, hardware: Registers, _xcr0: int, _xss: int) -> Registers:
    return _signature(given[0], hardware[0]), given[1], given[2] & hardware[2], given[3] & hardware[3]


def _fields_at_most(given: int, hardware: int, *fields: tuple[int, int]) -> int:
    """Each (shift, width) field at most the hardware's; bits outside the fields stay as given."""
    for shift, width in fields:
        mask = (1 << width) - 1 << shift
        if given & mask > hardware & mask:
            given = given & ~mask | hardware & mask
    return given


def _address_sizes(given: Registers, hardware: Registers, _xcr0: int, _xss: int) -> Registers:
    return (
        _fields_at_most(given[0] & 0xFFFFFF, hardware[0], (0, 8), (8, 8), (16, 8)),
        given[1] & hardware[1],
        given[2],
        _fields_at_most(given[3], hardware[3], (0, 16), (16, 16)),
    )


def _encryption(given: Registers, hardware: Registers, _xcr0: int, _xss: int) -> Registers:
    reduction = given[1] & 0xFC0  # what the hypervisor wants to give up of the address space is its own affair
    levels = min(given[1] >> 12 & 0xF, 4)
    return given[0] & hardware[0], hardware[1] & 0x3F | reduction | levels << 12, given[2], given[3]


def _performance(given: Registers, hardware: Registers, _xcr0: int, _xss: int) -> Registers:
    counters = min(given[1] & 0xF, 6)
    stack = min(given[1] >> 4 & 0x3F, 0x10)
    return given[0] & hardware[0], given[1] & ~0x3FF | stack << 4 | counters, given[2], hardware[3]


_SPECIAL: dict[tuple[int, int | None], Special] = {
    (0x1, None): _leaf_1,
    (0x7, 0): _leaf_7,
    (0xD, 0): _xsave_size,
    (0xD, 1): _xsave_compact,
    (0x80000001, None): _leaf_80000001,
    (0x80000008, None): _address_sizes,
    (0x8000001F, None): _encryption,
    (0x80000022, None): _performance,
}


def correct(hardware: Hardware, leaf: int, subleaf: int, given: Registers, *, xcr0: int, xss: int) -> Registers:
    """The registers nearest to `given` that the firmware lets stand; equal to `given` where nothing is wrong."""
    if not (leaf <= 0xFFFF or 0x80000000 <= leaf <= 0x8000FFFF):
        return given
    special = _SPECIAL.get((leaf, subleaf)) or _SPECIAL.get((leaf, None))
    rules = _ANY.get(leaf)
    real = hardware.registers(leaf, 0 if rules or (leaf, None) in _SPECIAL else subleaf)
    if special is not None:
        return special(given, real, xcr0, xss)
    rules = rules or _BY_SUBLEAF.get((leaf, subleaf))
    if rules is None:
        return 0, 0, 0, 0
    kept = [
        {"E": there, "M": value & there, "L": min(value, there), "U": value}[rule]
        for rule, value, there in zip(rules, given, real, strict=True)
    ]
    return kept[0], kept[1], kept[2], kept[3]


def check(hardware: Hardware, table: bytes | memoryview) -> bytes | None:
    """Checks a table: header of 16 bytes, then entries of 48.

    Returns:
        The corrected entries (without header) if something must change; empty bytes if all is well; None if the header
        itself is wrong: a count above 64 or beyond the table, or a reserved field set.
    """
    count, reserved_1, reserved_2 = struct.unpack_from("<IIQ", table)
    if count > ENTRIES_MAX or HEADER_SIZE + count * ENTRY_SIZE > len(table) or reserved_1 or reserved_2:
        return None
    out = bytearray()
    wrong = False
    for at in range(HEADER_SIZE, HEADER_SIZE + count * ENTRY_SIZE, ENTRY_SIZE):
        leaf, subleaf, xcr0, xss, eax, ebx, ecx, edx, reserved = _ENTRY.unpack_from(table, at)
        given = (eax, ebx, ecx, edx)
        allowed = correct(hardware, leaf, subleaf, given, xcr0=xcr0, xss=xss)
        wrong |= allowed != given
        out += _ENTRY.pack(leaf, subleaf, xcr0, xss, *allowed, reserved)
    return bytes(out) if wrong else b""
