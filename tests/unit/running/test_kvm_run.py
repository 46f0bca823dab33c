"""Decoding struct kvm_run: every exit from bytes made here, and bytes that no kernel would write."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sev.abi import kvm_run
from sev.abi.kvm_run import Exit
from sev.errors import MalformedInput


def page(reason: int, union: bytes = b"", data: bytes = b"") -> memoryview:
    out = bytearray(3 * 4096)
    struct.pack_into("<I", out, kvm_run.EXIT_REASON, reason)
    out[kvm_run.UNION : kvm_run.UNION + len(union)] = union
    out[4096 : 4096 + len(data)] = data
    return memoryview(out)


def io(direction: int, size: int, port: int, count: int, at: int = 4096) -> bytes:
    return struct.pack("<BBHIQ", direction, size, port, count, at)


CASES: dict[str, tuple[memoryview, Exit]] = {
    "in": (page(2, io(0, 2, 0x1F0, 1)), kvm_run.PortRead(0x1F0, 2, 1)),
    "out": (page(2, io(1, 4, 0xCF8, 1), b"\x01\x02\x03\x04"), kvm_run.PortWrite(0xCF8, 4, b"\x01\x02\x03\x04")),
    "outs": (page(2, io(1, 2, 0x1F0, 3), b"abcdef"), kvm_run.PortWrite(0x1F0, 2, b"abcdef")),
    "load": (page(6, struct.pack("<Q8sIB", 0xFEE00020, b"", 4, 0)), kvm_run.MmioRead(0xFEE00020, 4)),
    "store": (page(6, struct.pack("<Q8sIB", 0xB8000, b"A\x07", 2, 1)), kvm_run.MmioWrite(0xB8000, b"A\x07")),
    "hlt": (page(5), kvm_run.HALT),
    "reset hold": (page(32), kvm_run.HALT),
    "shutdown": (page(8), kvm_run.SHUTDOWN),
    "signal": (page(10), kvm_run.INTERRUPTED),
    "failed entry": (page(9, struct.pack("<QI", 0x80000021, 3)), kvm_run.FailedEntry(0x80000021, 3)),
    "internal error": (page(17, struct.pack("<IIQQ", 1, 2, 7, 8)), kvm_run.InternalError(1, (7, 8))),
    "more words than fit": (page(17, struct.pack("<II", 1, 9999)), kvm_run.InternalError(1, (0,) * 16)),
    "termination": (page(24, struct.pack("<IIQ", 6, 1, 0x100)), kvm_run.SystemEvent(6, (0x100,))),
    "hypercall": (page(3, struct.pack("<7Q", 12, 4096, 2, 16, 0, 0, 0)), kvm_run.Hypercall(12, (4096, 2, 16, 0, 0, 0))),
    "memory fault": (page(39, struct.pack("<QQQ", 8, 0x5000, 4096)), kvm_run.MemoryFault(0x5000, 4096, True)),
    "new": (page(77), kvm_run.Other(77)),
}  # fmt: skip


@pytest.mark.parametrize(("run", "expected"), CASES.values(), ids=CASES)
def test_exits(run: memoryview, expected: Exit) -> None:
    assert kvm_run.decode(run) == expected


@pytest.mark.parametrize(
    "run",
    [page(2, io(1, 3, 1, 1)), page(2, io(1, 1, 1, 0)), page(2, io(0, 4, 1, 1 << 30)), page(2, io(1, 1, 1, 1, 1 << 40)),
     page(6, struct.pack("<Q8sIB", 0, b"", 9, 1)), page(6, struct.pack("<Q8sIB", 0, b"", 0, 0))],
    ids=["size", "count", "too many", "outside", "long store", "empty load"],
)  # fmt: skip
def test_what_no_kernel_says_is_refused(run: memoryview) -> None:
    with pytest.raises(MalformedInput, match="kvm_run"):
        kvm_run.decode(run)


@settings(max_examples=200)
@given(reason=st.integers(0, 50), union=st.binary(max_size=64))
def test_any_bytes_give_an_exit_or_a_typed_error(reason: int, union: bytes) -> None:
    try:
        found = kvm_run.decode(page(reason, union))
    except MalformedInput:
        return
    assert isinstance(found, tuple)


def test_members_lie_within_the_structure() -> None:
    assert all(offset + size <= kvm_run.SIZE for offset, size in kvm_run.OFFSETS.values())
