"""CPUID as this machine answers it: the instruction, the device, and what is told where neither is to be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sev.host import cpuid

X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="not x86-64")


def _vendor(registers: tuple[int, int, int, int]) -> str:
    _, ebx, ecx, edx = registers
    return b"".join(word.to_bytes(4, "little") for word in (ebx, edx, ecx)).decode()


def _cpuinfo(key: str) -> str:
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return next(value.strip() for name, _, value in lines if name.strip() == key)


@X86
def test_the_instruction_says_what_the_kernel_read_from_it() -> None:
    ask = cpuid.instruction()
    assert ask.source == "instruction"
    assert _vendor(ask.registers(0)) == _cpuinfo("vendor_id")
    brand = b"".join(
        word.to_bytes(4, "little") for leaf in (0x80000002, 0x80000003, 0x80000004) for word in ask.registers(leaf)
    )
    assert brand.rstrip(b"\0").decode().strip() == _cpuinfo("model name")
    assert cpuid.cpuid(0) == ask.registers(0)


@X86
def test_a_leaf_above_the_highest_is_zeros() -> None:
    ask = cpuid.instruction()
    for first in (0, cpuid.EXTENDED):
        highest = ask.registers(first)[0]
        assert highest >= first
        assert ask.registers(highest + 1) == (0, 0, 0, 0)
        assert ask.registers(first + 0xFFFF) == (0, 0, 0, 0)


@X86
def test_the_callers_registers_survive() -> None:
    ask = cpuid.instruction()
    assert len({ask.registers(0) for _ in range(1000)}) == 1


@X86
def test_the_device_agrees_with_the_instruction() -> None:
    try:
        by_device = cpuid.device()
    except cpuid.CpuidUnavailable as error:
        pytest.skip(error.message)
    ask = cpuid.instruction()
    for leaf in (0, 0x80000000, 0x80000002, 0x80000003, 0x80000004):
        assert by_device.registers(leaf) == ask.registers(leaf)


@X86
def test_no_page_is_writable_and_executable() -> None:
    cpuid.instruction()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:cpuid" in line]
    assert maps
    assert {line[1] for line in maps} == {"r-xp"}


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(cpuid.CpuidUnavailable, match="No such file"):
        cpuid.device(path=str(tmp_path / "{}"))


def test_a_device_that_answers_too_little(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(bytes(8))
    with pytest.raises(cpuid.CpuidUnavailable, match="8 bytes at leaf 0x0, expected 16"):
        cpuid.device(path=str(tmp_path / "{}"))


def test_another_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*name[:4], "aarch64")))
    for way in (cpuid.instruction, cpuid.find):
        with pytest.raises(cpuid.CpuidUnavailable, match=r"^skipped: not x86-64"):
            way()


def test_without_leave_to_execute_the_device_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(cpuid, "device", lambda: cpuid.Cpuid(lambda leaf, sub: (leaf, sub, 0, 0), "device"))
    if os.uname().machine == "x86_64":
        assert cpuid.find().source == "device"
