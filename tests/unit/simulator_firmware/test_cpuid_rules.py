"""CPUID tables: each kind of rule, each special leaf, and what becomes of a page that breaks them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sev import products, status
from sevd.simulator import cpuid_rules, hardware
from sevd.simulator.firmware import Firmware
from sevd.simulator.hardware import Registers
from tests.support.simulated_firmware import PAGE, refused, started, update

GENOA = hardware.of(products.GENOA)
MILAN = hardware.of(products.MILAN)

Entry = tuple[int, int, int, int, int, int, int, int]


def entry(leaf: int, subleaf: int, registers: Registers, xcr0: int = 0, xss: int = 0) -> bytes:
    return struct.pack("<IIQQIIIIQ", leaf, subleaf, xcr0, xss, *registers, 0)


def page(*entries: bytes, count: int | None = None) -> bytes:
    head = struct.pack("<IIQ", len(entries) if count is None else count, 0, 0)
    return (head + b"".join(entries)).ljust(PAGE, b"\0")


def correct(leaf: int, subleaf: int, registers: Registers, xcr0: int = 0, xss: int = 0) -> Registers:
    return cpuid_rules.correct(GENOA, leaf, subleaf, registers, xcr0=xcr0, xss=xss)


@pytest.mark.parametrize("part", ["milan", "genoa", "turin"])
def test_the_hardware_passes_its_own_check(part: str) -> None:
    here = hardware.of(products.by_name(part))
    for (leaf, subleaf), registers in here.cpuid.items():
        xcr0 = registers[0] if (leaf, subleaf) == (0xD, 0) else 0
        assert cpuid_rules.correct(here, leaf, subleaf, registers, xcr0=xcr0, xss=0) == registers, (
            f"{leaf:#x}.{subleaf}"
        )


def test_hardware_says_who_it_is() -> None:
    for part in (products.MILAN, products.GENOA, products.TURIN):
        here = hardware.of(part)
        assert products.split_signature(here.registers(1)[0]) == part.sample_cpuid
        brand = b"".join(struct.pack("<IIII", *here.registers(leaf)) for leaf in (0x80000002, 0x80000003, 0x80000004))
        assert b"EPYC" in brand
        ebx, ecx, edx = here.registers(0)[1:]
        assert struct.pack("<III", ebx, edx, ecx) == b"AuthenticAMD"
        encryption = here.registers(0x8000001F)
        assert encryption[2:] == (here.asids, here.min_sev_asid)
        assert encryption[0] & 0b111010 == 0b111010, "SEV, SEV-ES, SEV-SNP, VMPLs"


@pytest.mark.parametrize(
    ("name", "leaf", "subleaf", "given_", "allowed"),
    [
        ("L: lower stays", 0x0, 0, (0xD, 1, 2, 3), (0xD, 1, 2, 3)),
        ("L: higher is cut", 0x0, 0, (0x20, 1, 2, 3), (0x10, 1, 2, 3)),
        ("L: 0x80000000", 0x80000000, 0, (0x80000029, 0, 0, 0), (0x80000028, 0, 0, 0)),
        ("U: anything", 0x80000005, 0, (1, 2, 3, 4), (1, 2, 3, 4)),
        ("M and E: leaf 6", 0x6, 0, (0xFF, 1, 0xFF, 1), (0x4, 0, 0x1, 0)),
        ("M and E: 7.1", 0x7, 1, (0xFF, 1, 1, 1), (0x20, 0, 0, 0)),
        ("E: XSAVE area", 0xD, 2, (0, 0, 0, 0), (0x100, 0x240, 0, 0)),
        ("subleaf without a rule", 0x7, 2, (1, 2, 3, 4), (0, 0, 0, 0)),
        ("leaf without a rule", 0x3, 0, (1, 0, 0, 0), (0, 0, 0, 0)),
        ("extended leaf without a rule", 0x8000FFFF, 0, (0, 0, 0, 1), (0, 0, 0, 0)),
        ("hypervisor leaf", 0x40000000, 0, (1, 2, 3, 4), (1, 2, 3, 4)),
        ("beyond the standard range", 0x10000, 0, (1, 2, 3, 4), (1, 2, 3, 4)),
        ("beyond the extended range", 0x80010000, 0, (1, 2, 3, 4), (1, 2, 3, 4)),
        ("leaf 1: older family stays", 0x1, 0, (0x800F12, 0x800, 0, 0), (0x800F12, 0x800, 0, 0)),
        ("leaf 1: same part, older stepping", 0x1, 0, (0xA10F10, 0x800, 0, 0), (0xA10F10, 0x800, 0, 0)),
        ("leaf 1: newer stepping", 0x1, 0, (0xA10F12, 0x800, 0, 0), (0xA10F11, 0x800, 0, 0)),
        ("leaf 1: newer family, older model", 0x1, 0, (0xB00F00, 0x800, 0, 0), (0xA10F11, 0x800, 0, 0)),
        ("leaf 1: CLFLUSH size", 0x1, 0, (0xA10F11, 0x12341256, 0, 0), (0xA10F11, 0x12340856, 0, 0)),
        ("leaf 1: OSXSAVE and hypervisor free", 0x1, 0, (0xA10F11, 0x800, 0x88000000, 0), (0xA10F11, 0x800, 0x88000000, 0)),
        ("leaf 1: a bit too many", 0x1, 0, (0xA10F11, 0x800, 0x4, 0x400), (0xA10F11, 0x800, 0, 0)),
        ("leaf 7: OSPKE free", 0x7, 0, (2, 0, 0x10, 1), (1, 0, 0x10, 0)),
        ("0x80000001: EBX free", 0x80000001, 0, (0xA10F11, 0xFFFFFFFF, 0x800, 1 << 10), (0xA10F11, 0xFFFFFFFF, 0, 0)),
        ("address sizes", 0x80000008, 0, (0x3A35, 0xFFFFFFFF, 5, 0), (0x3934, 0x791EF257, 5, 0)),
        ("address sizes: smaller stay", 0x80000008, 0, (0x3028, 0, 5, 0), (0x3028, 0, 5, 0)),
        ("encryption: C-bit exact, levels", 0x8000001F, 0, (0xFFFFFFFF, 0x5FC0, 9, 9), (0x037BFD3B, 0x4FF3, 9, 9)),
        ("encryption: fewer levels", 0x8000001F, 0, (0, 0x1173, 0, 0), (0, 0x1173, 0, 0)),
        ("counters", 0x80000022, 0, (0xFF, 0x7FFFFFFF, 1, 7), (0x7, 0x7FFFFD06, 1, 0)),
    ],
)  # fmt: skip
def test_rules(name: str, leaf: int, subleaf: int, given_: Registers, allowed: Registers) -> None:
    assert correct(leaf, subleaf, given_) == allowed, name


@pytest.mark.parametrize(
    ("xcr0", "size"),
    [(1, 0x240), (3, 0x240), (7, 0x340), (0x27, 0x380), (0x67, 0x580), (0xE7, 0x980), (0x2E7, 0x988), (0x207, 0x988)],
)
def test_size_of_the_save_area(xcr0: int, size: int) -> None:
    assert correct(0xD, 0, (0x7, 0xFFFF, 0x123, 9), xcr0) == (0x7, size, 0x123, 0)


@pytest.mark.parametrize(
    ("xcr0", "xss", "size"),
    [
        (1, 0, 0x240), (7, 0, 0x340), (0x27, 0, 0x380), (0xE7, 0, 0x240 + 0x100 + 0x40 + 0x200 + 0x400),
        (0x207, 0x1800, 0x240 + 0x100 + 8 + 0x28), (1, 1 << 11, 0x250), (1, 1 << 12, 0x258),
    ],
)  # fmt: skip
def test_size_of_the_compact_save_area(xcr0: int, xss: int, size: int) -> None:
    assert correct(0xD, 1, (0xFF, 0, 0xFFFF, 0), xcr0, xss) == (0xF, size, 0x1800, 0)


def test_the_save_area_has_at_least_x87_and_sse() -> None:
    assert correct(0xD, 0, (0, 0x240, 0, 0), 1) == (3, 0x240, 0, 0)


def test_a_part_without_a_leaf_allows_nothing_in_it() -> None:
    assert cpuid_rules.correct(MILAN, 0x80000023, 0, (1, 0, 0, 0), xcr0=0, xss=0) == (0, 0, 0, 0)


@settings(max_examples=200, deadline=None)
@given(
    leaf=st.one_of(st.integers(0, 0x12), st.integers(0x80000000, 0x80000028), st.integers(0, 0xFFFFFFFF)),
    subleaf=st.integers(0, 14),
    registers=st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 4),
    xcr0=st.integers(0, (1 << 64) - 1),
    xss=st.integers(0, (1 << 64) - 1),
)
def test_what_was_corrected_passes(leaf: int, subleaf: int, registers: Registers, xcr0: int, xss: int) -> None:
    once = correct(leaf, subleaf, registers, xcr0, xss)
    assert all(0 <= value <= 0xFFFFFFFF for value in once)
    assert correct(leaf, subleaf, once, xcr0, xss) == once


# The CPUID page


def test_a_good_page_is_added_as_it_is(firmware: Firmware) -> None:
    good = page(
        *(entry(leaf, subleaf, GENOA.registers(leaf, subleaf)) for leaf, subleaf in [(0, 0), (1, 0), (7, 0), (0xB, 1)])
    )
    assert update(firmware, started(firmware), 6, 0x5000, good) == good


def test_a_wrong_page_comes_back_corrected_and_then_passes(firmware: Firmware) -> None:
    gctx = started(firmware)
    eax, ebx, ecx, edx = GENOA.registers(1)
    first = entry(0, 0, GENOA.registers(0))
    memory = bytearray(page(first, entry(1, 0, (eax, ebx, 0xFFFFFFFF, edx)), entry(3, 0, (1, 1, 1, 1))))
    rmp = bytearray(b"\1")
    with refused(status.INVALID_PARAM):
        firmware.snp_launch_update(gctx, 6, 0x5000, memoryview(memory), memoryview(rmp))
    assert rmp == b"\1"
    assert firmware.launch_digest(gctx) == bytes(48), "nothing measured"
    assert memory == page(first, entry(1, 0, (eax, ebx, ecx | 0x88000000, edx)), entry(3, 0, (0, 0, 0, 0)))
    firmware.snp_launch_update(gctx, 6, 0x5000, memoryview(memory), memoryview(rmp))
    assert rmp == b"\2"


@pytest.mark.parametrize(
    "head",
    [(65, 0, 0), (0xFFFFFFFF, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1 << 63)],
    ids=["65", "huge", "rsvd1", "rsvd2", "rsvd3"],
)
def test_a_wrong_header_is_refused_uncorrected(firmware: Firmware, head: tuple[int, int, int]) -> None:
    gctx = started(firmware)
    memory = bytearray(struct.pack("<IIQ", *head).ljust(PAGE, b"\0"))
    before = bytes(memory)
    with refused(status.INVALID_PARAM):
        firmware.snp_launch_update(gctx, 6, 0x5000, memoryview(memory), memoryview(bytearray(b"\1")))
    assert memory == before


def test_a_full_page(firmware: Firmware) -> None:
    full = page(*(entry(0x40000000 + number, 0, (1, 2, 3, 4)) for number in range(64)))
    assert update(firmware, started(firmware), 6, 0x5000, full) == full
