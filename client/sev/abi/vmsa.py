"""VMSA: the encrypted save area of a vCPU (struct sev_es_save_area), one page of 4096 bytes, little-endian.

Source: AMD64 Architecture Programmer's Manual volume 2, table B-4; arch/x86/include/asm/svm.h (sev_es_save_area).
"""

from __future__ import annotations

from struct import Struct

from sev.errors import MalformedInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SIZE = 4096
"""Bytes of the page."""

SEGMENTS = {
    "es": 0x00,
    "cs": 0x10,
    "ss": 0x20,
    "ds": 0x30,
    "fs": 0x40,
    "gs": 0x50,
    "gdtr": 0x60,
    "ldtr": 0x70,
    "idtr": 0x80,
    "tr": 0x90,
}
"""Segment registers: offset of 16 bytes (selector u16, attributes u16, limit u32, base u64)."""

REGISTERS = {
    "vmpl": (0x0CA, 1),
    "cpl": (0x0CB, 1),
    "efer": (0x0D0, 8),
    "xss": (0x140, 8),
    "cr4": (0x148, 8),
    "cr3": (0x150, 8),
    "cr0": (0x158, 8),
    "dr7": (0x160, 8),
    "dr6": (0x168, 8),
    "rflags": (0x170, 8),
    "rip": (0x178, 8),
    "rsp": (0x1D8, 8),
    "rax": (0x1F8, 8),
    "star": (0x200, 8),
    "lstar": (0x208, 8),
    "cstar": (0x210, 8),
    "sfmask": (0x218, 8),
    "kernel_gs_base": (0x220, 8),
    "sysenter_cs": (0x228, 8),
    "sysenter_esp": (0x230, 8),
    "sysenter_eip": (0x238, 8),
    "cr2": (0x240, 8),
    "g_pat": (0x268, 8),
    "dbgctl": (0x270, 8),
    "pkru": (0x2E8, 4),
    "tsc_aux": (0x2EC, 4),
    "guest_tsc_scale": (0x2F0, 8),
    "guest_tsc_offset": (0x2F8, 8),
    "rcx": (0x308, 8),
    "rdx": (0x310, 8),
    "rbx": (0x318, 8),
    "rbp": (0x328, 8),
    "rsi": (0x330, 8),
    "rdi": (0x338, 8),
    "r8": (0x340, 8),
    "r9": (0x348, 8),
    "r10": (0x350, 8),
    "r11": (0x358, 8),
    "r12": (0x360, 8),
    "r13": (0x368, 8),
    "r14": (0x370, 8),
    "r15": (0x378, 8),
    "sev_features": (0x3B0, 8),
    "vintr_ctrl": (0x3B8, 8),
    "virtual_tom": (0x3C8, 8),
    "xcr0": (0x3E8, 8),
    "mxcsr": (0x408, 4),
    "x87_ftw": (0x40C, 2),
    "x87_fsw": (0x40E, 2),
    "x87_fcw": (0x410, 2),
    "x87_fop": (0x412, 2),
    "x87_ds": (0x414, 2),
    "x87_cs": (0x416, 2),
    "x87_rip": (0x418, 8),
}
"""Other registers: (offset, bytes)."""

UNMEASURED = slice(0x2F0, 0x300)
"""The TSC fields, which the firmware fills: it measures the page with zeros here."""

_SEGMENT = Struct("<HHIQ")
_PARTS = {"selector": (0, 2), "attributes": (2, 2), "limit": (4, 4), "base": (8, 8)}
"""Parts of a segment register: (offset, bytes)."""
_NUMBERS = {1: Struct("<B"), 2: Struct("<H"), 4: Struct("<I"), 8: Struct("<Q")}

SEV_FEATURES = {
    "snp_active": 0,
    "vtom": 1,
    "reflect_vc": 2,
    "restricted_injection": 3,
    "alternate_injection": 4,
    "debug_swap": 5,
    "prevent_host_ibs": 6,
    "btb_isolation": 7,
    "vmpl_sss": 8,
    "secure_tsc": 9,
    "vmgexit_parameter": 10,
    "ibs_virtualization": 12,
    "vmsa_reg_prot": 14,
    "smt_protection": 15,
}
"""Names of the bits of `sev_features` (the guest features of a measurement)."""


def build(registers: Mapping[str, int | tuple[int, int, int, int]]) -> bytes:
    """The page, 4096 bytes, with these registers and zeros elsewhere.

    Args:
        registers: A number for a name of `REGISTERS`, (selector, attributes, limit, base) for one of `SEGMENTS`.

    Raises:
        KeyError: A name is not a register.
        struct.error: A number does not fit its field.
    """
    page = bytearray(SIZE)
    for name, value in registers.items():
        if isinstance(value, tuple):
            _SEGMENT.pack_into(page, SEGMENTS[name], *value)
        else:
            offset, size = REGISTERS[name]
            _NUMBERS[size].pack_into(page, offset, value)
    return bytes(page)


def parse(page: bytes) -> dict[str, int | tuple[int, int, int, int]]:
    """The registers of a page that are not zero; `build` of them gives the page if nothing else is set in it.

    Raises:
        MalformedInput: It is not 4096 bytes.
    """
    if len(page) != SIZE:
        raise MalformedInput(f"VMSA: expected {SIZE} bytes, not {len(page)}", field="vmsa")
    found: dict[str, int | tuple[int, int, int, int]] = {}
    for name, offset in SEGMENTS.items():
        selector, attributes, limit, base = _SEGMENT.unpack_from(page, offset)
        if selector or attributes or limit or base:
            found[name] = (selector, attributes, limit, base)
    for name, (offset, size) in REGISTERS.items():
        (value,) = _NUMBERS[size].unpack_from(page, offset)
        if value:
            found[name] = value
    return found


def store(page: bytearray, name: str, value: int) -> None:
    """Puts a register into a page: a name of `REGISTERS`, or `cs.base` and the like for a part of a segment.

    Raises:
        UsageError: No such register, or a number that does not fit it.
    """
    segment, dot, part = name.partition(".")
    if dot and segment in SEGMENTS and part in _PARTS:
        offset, size = _PARTS[part]
        offset += SEGMENTS[segment]
    elif name in REGISTERS:
        offset, size = REGISTERS[name]
    else:
        known = f"{', '.join(REGISTERS)}, or a segment's part such as cs.base"
        raise UsageError(f"no register {name!r} in a VMSA", remedy=f"Known are {known}.", field=name)
    if not 0 <= value < 1 << 8 * size:
        raise UsageError(f"{name}: {value:#x} does not fit in {size} bytes", field=name)
    page[offset : offset + size] = value.to_bytes(size, "little")
