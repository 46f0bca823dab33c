"""The document that sevctl 0.6 prints of a VMSA page: every field of its structure in order, also those that are zero.

Numbers are decimal, reserved bytes lists of numbers. It ends with x87_state_gpa at 0x400, before the x87 and SSE state.
"""

from __future__ import annotations

_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr")
_BYTES = {
    "reserved_1": 43, "cpl": 1, "reserved_2": 4, "reserved_3": 104, "reserved_4": 88, "reserved_5": 24,
    "reserved_6": 32, "reserved_7": 72, "spec_ctrl": 4, "reserved_7b": 4, "pkru": 4, "reserved_7a": 20,
    "reserved_10": 16, "reserved_11": 56, "valid_bitmap": 16,
}  # fmt: skip
_ORDER = (
    "reserved_1 cpl reserved_2 efer reserved_3 xss cr4 cr3 cr0 dr7 dr6 rflags rip reserved_4 rsp reserved_5 rax star "
    "lstar cstar sfmask kernel_gs_base sysenter_cs sysenter_esp sysenter_eip cr2 reserved_6 g_pat dbgctl br_from br_to "
    "last_excp_from last_excp_to reserved_7 spec_ctrl reserved_7b pkru reserved_7a reserved_8 rcx rdx rbx reserved_9 "
    "rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 reserved_10 sw_exit_code sw_exit_info_1 sw_exit_info_2 sw_scratch "
    "reserved_11 xcr0 valid_bitmap x87_state_gpa"
)
"""Fields after the segment registers, which take 16 bytes each; those that `_BYTES` does not have are 8 bytes long."""


def document(page: bytes) -> dict[str, object]:
    """The fields of a page of 4096 bytes."""
    found: dict[str, object] = {}
    at = 0
    for name in _SEGMENTS:
        parts = (("selector", 0, 2), ("attrib", 2, 4), ("limit", 4, 8), ("base", 8, 16))
        found[name] = {part: int.from_bytes(page[at + start : at + end], "little") for part, start, end in parts}
        at += 16
    for name in _ORDER.split():
        size = _BYTES.get(name, 8)
        piece = page[at : at + size]
        listed = name == "valid_bitmap" or (name.startswith("reserved") and name in _BYTES)
        found[name] = list(piece) if listed else int.from_bytes(piece, "little")
        at += size
    return found
