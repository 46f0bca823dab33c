"""Whatever a program does: OSError and nothing else, and nothing is held when it is gone. And programs at once."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev.abi import kvm, kvm_sev, sev_device
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.caller import PAGE, Machine, attempt, launching
from tests.support.simulated import simulated_host

KNOWN = [value for name, value in vars(kvm).items() if name.startswith("KVM_") and isinstance(value, int)]
KNOWN.append(sev_device.SEV_ISSUE_CMD)

descriptors = st.integers(-1, 12)
numbers = st.sampled_from(KNOWN) | st.integers(0, (1 << 32) - 1)
small = st.integers(0, 8)
words = small | st.integers(0, 70).map(lambda n: n * PAGE) | st.integers(0, (1 << 64) - 1)
steps = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(["/dev/sev", "/dev/kvm", "/nothing"]), st.integers(0, 3)),
    st.tuples(st.just("close"), descriptors),
    st.tuples(st.just("vm"), small),
    st.tuples(st.just("ioctl"), descriptors, numbers, words),
    st.tuples(st.just("data"), descriptors, numbers, st.lists(words, min_size=1, max_size=8)),
    st.tuples(st.just("op"), st.sampled_from([0, 1, 2, 16, 22, 100, 101, 102, 103, 200]), st.lists(words, max_size=6)),
    st.tuples(st.just("good"), st.sampled_from(["init2", "memory", "vcpu", "start", "update", "zero", "finish"])),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulated_host(tmp_path_factory.mktemp("host")) as simulator:
        yield simulator


class Program:
    """Does steps; a step may fail, but only as system calls fail."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.machine: Machine | None = None

    def step(self, kind: str, *arguments: object) -> None:
        with contextlib.suppress(OSError):
            getattr(self, "do_" + kind)(*arguments)

    def do_open(self, path: str, flags: int) -> None:
        self.process.open(path, flags)

    def do_close(self, fd: int) -> None:
        self.process.close(fd)

    def do_vm(self, vm_type: int) -> None:
        self.machine = Machine.make(self.process, vm_type)

    def do_ioctl(self, fd: int, request: int, argument: int) -> None:
        self.process.ioctl(fd, request, argument)

    def do_data(self, fd: int, request: int, values: list[int]) -> None:
        raw = bytearray(b"".join(value.to_bytes(8, "little") for value in values).ljust(512, b"\0"))
        self.process.ioctl(fd, request, self.process.memory.place(raw))

    def do_op(self, number: int, values: list[int]) -> None:
        if self.machine is not None:
            raw = b"".join(value.to_bytes(8, "little") for value in values).ljust(96, b"\0")
            self.machine.op(number, raw)

    def do_good(self, name: str) -> None:
        machine = self.machine
        if machine is None:
            return
        if name == "memory":
            if machine.memfd < 0:
                self._memory(machine)
        elif name == "vcpu":
            attempt(self.process, machine.vm, kvm.KVM_CREATE_VCPU, 0)
        elif name in ("update", "zero"):
            machine.update(0, 4, kvm_sev.PAGE_NORMAL if name == "update" else kvm_sev.PAGE_ZERO)
        else:
            {"init2": machine.init2, "start": machine.start, "finish": machine.finish}[name]()

    @staticmethod
    def _memory(machine: Machine) -> None:
        try:
            machine.add_memory(8)
        except AssertionError:
            return  # the VM's number was taken by something else


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(program=st.lists(steps, max_size=25))
def test_random_programs(shared: Simulator, program: list[tuple[object, ...]]) -> None:
    process = shared.process()
    running = Program(process)
    for kind, *arguments in program:
        running.step(str(kind), *arguments)
    process.exit()
    assert {use for _, use in shared.asids().values()} == {0}
    assert shared.guest_count() == 0


@given(data=st.binary(max_size=200), request_number=numbers, fd=st.integers(0, 4))
def test_random_bytes_for_every_ioctl(shared: Simulator, data: bytes, request_number: int, fd: int) -> None:
    process = shared.process()
    machine = launching(process)
    fd = [machine.sev, machine.device, machine.vm, machine.memfd, process.descriptors()[-1]][fd]
    for place in (bytearray(data), bytearray(data.ljust(8192, b"\0"))):
        attempt(process, fd, request_number, process.memory.place(place))
    for number in (100, 101, 102):
        machine.op(number, bytes(data[:88].ljust(88, b"\0")))
    process.exit()
    assert shared.guest_count() == 0


def test_programs_at_once(shared: Simulator) -> None:
    """Eight processes in eight threads, each with guest after guest; every digest is right, nothing is left."""
    digests: list[bytes] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(6):
                process = shared.process()
                machine = launching(process)
                assert machine.update(0, 32).name == "ok"
                assert machine.finish().name == "ok"
                digests.append(shared.launch_digest(process, machine.vm))
                process.exit()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(digests) == 48
    assert len(set(digests)) == 1
    assert shared.asids()["sev_es"][1] == shared.guest_count() == 0


def test_threads_of_one_process(shared: Simulator) -> None:
    """Descriptors and memory of one process from several threads."""
    process = shared.process()
    seen: list[set[int]] = []

    def run() -> None:
        mine: set[int] = set()
        for round_ in range(200):
            fd = process.open("/dev/kvm", os.O_RDWR)
            at = process.memory.place(bytes([round_ % 256]) * 100)
            assert process.memory.read(at, 100) == bytes([round_ % 256]) * 100
            process.memory.release(at)
            assert process.ioctl(fd, kvm.KVM_GET_API_VERSION) == 12
            process.close(fd)
            mine.add(at)
        seen.append(mine)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(map(len, seen)) == len(set().union(*seen)) == 800
    assert process.descriptors() == []
    process.exit()


def test_closing_while_an_ioctl_runs(shared: Simulator) -> None:
    """The guest ends after the ioctl that was under way, not under it."""
    process = shared.process()
    machine = launching(process)
    inside, go_on = threading.Event(), threading.Event()

    def hook(command: str) -> None:
        if command == "SNP_LAUNCH_UPDATE":
            inside.set()
            assert go_on.wait(30)

    shared.faults = hook
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(machine.update(0, 4).name))
    thread.start()
    assert inside.wait(30)
    process.exit()
    assert shared._kvm.asids["sev_es"].in_use == 1
    go_on.set()
    thread.join(30)
    shared.faults = lambda _command: None
    assert shared._kvm.asids["sev_es"].in_use == 0
    assert shared.guest_count() == 0


def test_large_guests_are_lazy(shared: Simulator, tmp_path: Path) -> None:
    """A terabyte of guest memory costs what is touched."""
    del tmp_path
    process = shared.process()
    machine = Machine.make(process)
    machine.init2()
    request = process.memory.place(kvm.CreateGuestMemfd(1 << 40).encode())
    memfd = process.ioctl(machine.vm, kvm.KVM_CREATE_GUEST_MEMFD, request)
    page = process.memory.place(bytearray(PAGE))
    region = kvm.UserMemoryRegion2(0, kvm.MEM_GUEST_MEMFD, 0, 1 << 40, PAGE, 0, memfd)
    assert machine.ioctl(kvm.KVM_SET_USER_MEMORY_REGION2, region) == "ok"
    assert machine.set_private(0, (1 << 40) // PAGE) == "ok"
    assert machine.start().name == "ok"
    assert machine.update((1 << 39) // PAGE, uaddr=page).name == "ok"
    process.exit()
