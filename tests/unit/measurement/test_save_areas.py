"""VMSA pages: packing, and what each VMM puts into them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.abi import vmsa
from sev.errors import MalformedInput, UsageError
from sev.measurement import vmm
from tests.support.data import DATA

Registers = dict[str, int | tuple[int, int, int, int]]

SEGMENT = st.tuples(
    st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
)


@st.composite
def registers(draw: st.DrawFn) -> Registers:
    found: Registers = {}
    for name in draw(st.sets(st.sampled_from(sorted(vmsa.SEGMENTS)))):
        found[name] = draw(SEGMENT)
    for name in draw(st.sets(st.sampled_from(sorted(vmsa.REGISTERS)))):
        found[name] = draw(st.integers(0, 2 ** (8 * vmsa.REGISTERS[name][1]) - 1))
    return found


def _set(value: int | tuple[int, int, int, int]) -> bool:
    return any(value) if isinstance(value, tuple) else value != 0


@given(registers())
def test_pages_read_back(values: Registers) -> None:
    page = vmsa.build(values)
    assert len(page) == 4096
    assert vmsa.parse(page) == {name: value for name, value in values.items() if _set(value)}


def test_fields_do_not_overlap() -> None:
    spans = [(offset, 16) for offset in vmsa.SEGMENTS.values()] + list(vmsa.REGISTERS.values())
    end = 0
    for offset, size in sorted(spans):
        assert offset >= end
        end = offset + size
    assert end <= vmsa.SIZE


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 8192])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(MalformedInput, match="expected 4096 bytes"):
        vmsa.parse(bytes(size))


def test_unknown_registers_and_large_numbers_are_bugs_of_the_caller() -> None:
    with pytest.raises(KeyError):
        vmsa.build({"cr99": 1})
    with pytest.raises(struct.error):
        vmsa.build({"mxcsr": 1 << 32})


@pytest.mark.parametrize(("number", "address"), [(0, vmm.BOOT_ADDRESS), (1, 0x80B004)])
def test_segments_and_control_registers_of_a_captured_page(number: int, address: int) -> None:
    """Pages of an SEV-ES guest: KVM did not put the x87 and SSE state there, and there were no SEV features."""
    captured = vmsa.parse((DATA / "measure" / f"vmsa{number}.bin").read_bytes())
    ours = vmsa.parse(vmm.save_area(vmm.by_name("qemu"), address, 0xA00F11, 0))
    assert {"mxcsr": 0x1F80, "x87_fcw": 0x37F, **captured} == ours


def _difference(name: str, address: int = vmm.BOOT_ADDRESS) -> Registers:
    """Registers that differ from QEMU's."""
    qemu = vmsa.parse(vmm.save_area(vmm.by_name("qemu"), address, 0xB00F00, 0x1))
    other = vmsa.parse(vmm.save_area(vmm.by_name(name), address, 0xB00F00, 0x1))
    return {name: other.get(name, 0) for name in qemu.keys() | other.keys() if qemu.get(name, 0) != other.get(name, 0)}


def test_differences_of_the_vmms() -> None:
    ec2: Registers = {"ss": (0, 0x92, 0xFFFF, 0), "tr": (0, 0x83, 0xFFFF, 0), "mxcsr": 0, "x87_fcw": 0}
    boot: Registers = {"cs": (0xF000, 0x9A, 0xFFFF, 0xFFFF0000)}
    assert _difference("ec2") == {**ec2, **boot, "rdx": 0x600}
    assert _difference("ec2-2026") == _difference("ec2")
    assert _difference("ec2-2023") == {**ec2, **boot, "rdx": 0}
    assert _difference("ec2", 0x80B004) == {**ec2, "rdx": 0x600}
    assert _difference("krun") == {**ec2, **boot, "rdx": 0}
    assert _difference("krun", 0x80B004) == {**ec2, "cs": (0xF000, 0x9A, 0xFFFF, 0x800000), "rdx": 0}
    assert _difference("gce") == {"g_pat": 0x70106, "rdx": 0x600, "mxcsr": 0, "x87_fcw": 0}


def test_names_in_any_case_and_unknown_ones() -> None:
    assert vmm.by_name("QEMU") is vmm.by_name("qemu")
    assert {vmm.by_name(name).name for name in vmm.NAMES} == set(vmm.VMMS)
    with pytest.raises(UsageError, match="unknown VMM 'vmware'"):
        vmm.by_name("vmware")


def test_svsm_page() -> None:
    page = vmsa.parse(vmm.svsm_save_area(0xFFAEA000, 0x800F12))
    assert page["rip"] == 0xFFAEA000
    assert page["cr0"] == 0x11
    assert page["cs"] == (8, 0xC9B, 0xFFFFFFFF, 0)
    assert "x87_fcw" not in page
    assert vmsa.parse(vmm.svsm_save_area(0xFFAEA000, 0x800F12, 0x37F)) == {**page, "x87_fcw": 0x37F}
