"""Vcpu on the real KVM: what tiny guests ask for, the answers they get, and runs that are interrupted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sev.abi import kvm, kvm_run, kvm_vcpu
from sev.abi.kvm_run import (
    HALT,
    INTERRUPTED,
    SHUTDOWN,
    MmioRead,
    MmioWrite,
    PortRead,
    PortWrite,
)
from sev.errors import KernelError, UsageError
from sev.launch.vcpu import Vcpu, allow_interrupts
from tests.support import real_mode as rm
from tests.support.needs import need_kvm

Make = Callable[..., rm.Bare]


@pytest.fixture
def make() -> Iterator[Make]:
    need_kvm()
    allow_interrupts()
    made: list[rm.Bare] = []

    def bare(*pieces: bytes, hypercalls: bool = False) -> rm.Bare:
        made.append(rm.Bare(b"".join(pieces), hypercalls=hypercalls))
        return made[-1]

    before = len(os.listdir("/proc/self/fd"))
    yield bare
    for each in made:
        each.close()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor is left behind"


def test_prints_over_a_port_and_halts(make: Make) -> None:
    vcpu = make(rm.text(0x3F8, b"hi!"), rm.HLT).vcpu()
    assert [vcpu.run() for _ in range(4)] == [
        PortWrite(0x3F8, 1, b"h"), PortWrite(0x3F8, 1, b"i"), PortWrite(0x3F8, 1, b"!"), HALT,
    ]  # fmt: skip


def test_what_is_read_from_a_port_is_what_was_answered(make: Make) -> None:
    vcpu = make(rm.read(0x60), rm.echo(0x61), rm.HLT).vcpu()
    assert vcpu.run() == PortRead(0x60, 1, 1)
    vcpu.complete(b"\xa7")
    assert vcpu.run() == PortWrite(0x61, 1, b"\xa7")


def test_string_instructions_carry_many_values(make: Make) -> None:
    bare = make(rm.reads(0x70, 0x3000, 16), rm.outs(0x71, 0x3000, 16), rm.HLT)
    vcpu = bare.vcpu()
    data, got, asked = bytes(range(0x30, 0x40)), b"", 0
    while (exit_ := vcpu.run()) != HALT:
        if isinstance(exit_, PortRead):
            count = exit_.repeat * exit_.size
            vcpu.complete(data[asked : asked + count])
            asked += count
        else:
            assert isinstance(exit_, PortWrite)
            got += exit_.data
    assert (asked, got) == (16, data)
    assert bare.ram[0x3000:0x3010] == data


def test_memory_that_is_not_there_is_asked_for(make: Make) -> None:
    vcpu = make(rm.store(0xF000, 0x12, 0x5A), rm.fetch(0xF000, 0x34), rm.echo(0x61), rm.HLT).vcpu()
    assert vcpu.run() == MmioWrite(0xF0012, b"\x5a")
    assert vcpu.run() == MmioRead(0xF0034, 1)
    vcpu.complete(b"\x3c")
    assert vcpu.run() == PortWrite(0x61, 1, b"\x3c")


def test_a_triple_fault_is_a_shutdown(make: Make) -> None:
    assert make(rm.TRIPLE_FAULT).vcpu().run() == SHUTDOWN


@pytest.mark.parametrize(("first", "data"), [(0, b""), (0, b"ab"), (1, b"a")], ids=["none", "too much", "for a write"])
def test_wrong_answers_are_refused(make: Make, first: int, data: bytes) -> None:
    vcpu = make((rm.read(0x60), rm.out(0x60, 1))[first], rm.HLT).vcpu()
    vcpu.run()
    with pytest.raises(UsageError, match="expected"):
        vcpu.complete(data)
    with pytest.raises(UsageError, match="hypercall"):
        vcpu.answer_hypercall(0)


class Runner(threading.Thread):
    """Runs a vCPU once on a thread of its own."""

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__()
        self.vcpu = vcpu
        self.exit: kvm_run.Exit | None = None
        self.start()

    def run(self) -> None:
        self.vcpu.enter()
        try:
            self.exit = self.vcpu.run()
        finally:
            self.vcpu.leave()


def test_an_endless_loop_is_interrupted(make: Make) -> None:
    vcpu = make(rm.FOREVER).vcpu()
    for _ in range(20):
        runner = Runner(vcpu)
        time.sleep(0.002)
        vcpu.interrupt()
        runner.join(10)
        assert runner.exit == INTERRUPTED


def test_an_interruption_before_the_run_is_not_lost(make: Make) -> None:
    vcpu = make(rm.out(0x61, 7), rm.FOREVER).vcpu()
    vcpu.interrupt()
    assert vcpu.run() == INTERRUPTED
    assert vcpu.run() == PortWrite(0x61, 1, b"\x07")  # and it is used up
    vcpu.interrupt()
    assert vcpu.run() == INTERRUPTED


def test_interruptions_at_any_moment_end_every_run(make: Make) -> None:
    vcpu = make(rm.FOREVER).vcpu()
    for round_ in range(200):
        runner = Runner(vcpu)
        if round_ % 3:
            time.sleep(0.00001 * (round_ % 7))
        vcpu.interrupt()
        runner.join(10)
        assert runner.exit == INTERRUPTED, round_


def test_an_interruption_loses_no_answer(make: Make) -> None:
    vcpu = make(rm.read(0x60), rm.echo(0x61), rm.HLT).vcpu()
    assert vcpu.run() == PortRead(0x60, 1, 1)
    vcpu.complete(b"\x11")
    vcpu.interrupt()
    assert vcpu.run() == INTERRUPTED
    assert vcpu.run() == PortWrite(0x61, 1, b"\x11")


def test_a_run_that_the_kernel_refuses_says_so(make: Make) -> None:
    bare = make(rm.HLT)
    vcpu = bare.vcpu()
    broken = Vcpu(bare.kernel, bare.fds[0], bare.mmap_size)
    object.__setattr__(broken, "_fd", bare.device)
    with pytest.raises(KernelError, match="KVM_RUN"):
        broken.run()
    broken.close()
    broken.close()
    assert vcpu.run() == HALT


def test_the_mapping_must_hold_the_structure(make: Make) -> None:
    bare = make(rm.HLT)
    with pytest.raises(UsageError, match="2352"):
        Vcpu(bare.kernel, 0, 100)
    with pytest.raises(KernelError, match="mmap"):
        Vcpu(bare.kernel, bare.vm, bare.mmap_size)


def test_registers_after_an_exit(make: Make) -> None:
    bare = make(rm.out(0x61, 0x42), rm.HLT)
    vcpu = bare.vcpu()
    vcpu.run()
    buffer = bytearray(kvm_vcpu.Regs.size())
    bare.kernel.ioctl(bare.fds[0], kvm.KVM_GET_REGS, bare.kernel.memory.place(buffer))
    assert kvm_vcpu.Regs.decode(buffer).rax & 0xFF == 0x42
