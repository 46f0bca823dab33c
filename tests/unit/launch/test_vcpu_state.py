"""The state of a vCPU as bytes: what comes from elsewhere is a state, or refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sev.errors import KernelError, MalformedInput
from sev.launch import vcpu_state
from sev.launch.linux import LinuxKernel
from sev.launch.machine import Machine
from tests.support.needs import need_kvm


def part(name: bytes, data: bytes) -> bytes:
    return name[:8].ljust(8, b"\0") + len(data).to_bytes(4, "little") + data


SMALLEST = vcpu_state.MAGIC + part(b"sregs", bytes(312)) + part(b"regs", bytes(144))


def test_parts_come_in_the_order_in_which_they_are_given() -> None:
    state = vcpu_state.MAGIC + part(b"msr", b"m" * 24) + part(b"regs", b"r" * 144) + part(b"sregs", b"s" * 312)
    assert vcpu_state.parse(state) == [("sregs", b"s" * 312), ("regs", b"r" * 144), ("msr", b"m" * 24)]


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SEVVCPU2" + SMALLEST[8:], id="another kind"),
        pytest.param(vcpu_state.MAGIC, id="no registers"),
        pytest.param(SMALLEST[:-1], id="cut off"),
        pytest.param(SMALLEST + b"msr", id="cut off in a head"),
        pytest.param(SMALLEST + part(b"regs", bytes(144)), id="twice"),
        pytest.param(SMALLEST + part(b"regs2", bytes(144)), id="unknown part"),
        pytest.param(SMALLEST + part(b"fpu", bytes(415)), id="another size"),
        pytest.param(SMALLEST + part(b"msr", bytes(24)) * 300, id="too many MSRs"),
    ],
)
def test_what_is_no_state(state: bytes) -> None:
    with pytest.raises(MalformedInput):
        vcpu_state.parse(state)


@given(st.binary(max_size=600), st.integers(0, len(SMALLEST)))
@settings(max_examples=100)
def test_random_bytes(noise: bytes, at: int) -> None:
    for state in (noise, vcpu_state.MAGIC + noise, SMALLEST[:at] + noise + SMALLEST[at + len(noise) :]):
        with contextlib.suppress(MalformedInput):
            assert {"sregs", "regs"} <= {name for name, _ in vcpu_state.parse(state)}


def test_a_real_vcpu_takes_what_another_had() -> None:
    need_kvm()
    kernel = LinuxKernel()
    machines = [Machine(kernel, "/dev/kvm", 0) for _ in range(2)]
    try:
        for machine, start in zip(machines, (0x1000, 0x2000), strict=True):
            machine.add_memory(1 << 20, 0)
            machine.add_vcpus(2, 0, start)
        (_, first), (_, second) = (machine.vcpu_fds for machine in machines)
        state = vcpu_state.take(kernel, first)
        names = [name for name, _ in vcpu_state.parse(state)]
        assert names[:2] == ["sregs", "regs"]
        assert {"xsave", "fpu", "events", "msr"} <= set(names)
        before = dict(vcpu_state.parse(vcpu_state.take(kernel, second)))
        assert before["regs"] != dict(vcpu_state.parse(state))["regs"]  # they start elsewhere
        vcpu_state.give(kernel, second, state)
        after = dict(vcpu_state.parse(vcpu_state.take(kernel, second)))
        for name in ("sregs", "regs", "fpu", "debugregs"):
            assert after[name] == dict(vcpu_state.parse(state))[name]
        broken = vcpu_state.MAGIC + part(b"sregs", b"\xff" * 312) + part(b"regs", bytes(144))
        with pytest.raises(KernelError):
            vcpu_state.give(kernel, second, broken)
    finally:
        for machine in machines:
            machine.close()
