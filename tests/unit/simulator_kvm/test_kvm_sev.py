"""KVM_MEMORY_ENCRYPT_OP: the envelope's rules, INIT2, ASIDs, regions; from SEV guests to SNP ones."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from sev import status
from sev.abi import kvm, kvm_sev
from sev.products import GENOA
from sevd.simulator import Simulator
from sevd.simulator.asids import AsidPool
from sevd.simulator.errnos import fail
from sevd.simulator.firmware_platform import Platform
from sevd.simulator.process import Process
from sevd.simulator.versions import parse
from tests.support.caller import PAGE, UNTOUCHED, Machine, attempt, launching, ready
from tests.support.simulated import EVERY_ERA, refuse, simulated_host

UNMAPPED = 0x1000
LEGACY_OF_SEV = (2, 3, 5, 6, 7, 8, 9, 11, 12, 15, 16, 17, 18, 20, 21)


@EVERY_ERA
def test_no_argument_is_the_probe(machine: Machine) -> None:
    assert machine.ioctl(kvm.KVM_MEMORY_ENCRYPT_OP, 0) == "ok"


@EVERY_ERA
def test_an_unreadable_envelope_is_efault(machine: Machine) -> None:
    assert machine.ioctl(kvm.KVM_MEMORY_ENCRYPT_OP, UNMAPPED) == "EFAULT"
    assert machine.ioctl(kvm.KVM_MEMORY_ENCRYPT_OP, bytes(23)) == "EFAULT"


def test_a_kernel_without_sev_is_enotty(host: Simulator, machine: Machine) -> None:
    host._kvm.sev = False
    for argument in (0, UNMAPPED):
        assert machine.ioctl(kvm.KVM_MEMORY_ENCRYPT_OP, argument) == "ENOTTY"
    assert machine.ioctl(kvm.KVM_MEMORY_ENCRYPT_REG_REGION, UNMAPPED) == "ENOTTY"


@EVERY_ERA
@pytest.mark.parametrize("number", [10, 14, 19, 23, 24, 99, 104, 1000, (1 << 32) - 1])
def test_unknown_and_unimplemented_ids_are_einval(machine: Machine, number: int) -> None:
    assert machine.op(number)[:2] == (errno.EINVAL, UNTOUCHED)


@EVERY_ERA
@pytest.mark.parametrize("number", [0, 1, 2, 6, 10, 16, 22, 99])
def test_ids_below_100_are_eperm_on_snp(machine: Machine, number: int) -> None:
    machine.init2()
    assert machine.op(number, UNMAPPED)[:2] == (errno.EPERM, UNTOUCHED)


@pytest.mark.parametrize("number", LEGACY_OF_SEV)
def test_sev_commands_without_a_guest_are_enotty(machine: Machine, number: int) -> None:
    assert machine.op(number)[:2] == (errno.ENOTTY, UNTOUCHED)


def test_receive_update_without_a_guest_is_einval(machine: Machine) -> None:
    assert machine.op(kvm_sev.RECEIVE_UPDATE_DATA)[:2] == (errno.EINVAL, UNTOUCHED)


def sev_guest(process: Process) -> Machine:
    machine = Machine.make(process, kvm.VM_TYPE_SEV)
    assert machine.init2().name == "ok"
    return machine


@EVERY_ERA
def test_sev_guests_have_no_snp_commands(host: Simulator, process: Process) -> None:
    machine = sev_guest(process)
    assert host.asids()["sev"][1] == 1
    assert machine.op(kvm_sev.LAUNCH_UPDATE_VMSA)[:2] == (errno.ENOTTY, UNTOUCHED)
    assert machine.op(kvm_sev.SNP_LAUNCH_START)[:2] == (errno.ENOTTY, UNTOUCHED)
    assert machine.op(kvm_sev.SNP_LAUNCH_FINISH)[:2] == (errno.ENOTTY, UNTOUCHED)
    assert machine.op(kvm_sev.SNP_LAUNCH_UPDATE)[:2] == (errno.EINVAL, UNTOUCHED)


@pytest.mark.parametrize("number", [kvm_sev.SEV_INIT, kvm_sev.SEV_ES_INIT])
def test_legacy_init_is_for_plain_vms(host: Simulator, process: Process, number: int) -> None:
    pool = "sev" if number == kvm_sev.SEV_INIT else "sev_es"
    assert Machine.make(process).op(number)[:2] == (errno.EINVAL, UNTOUCHED)
    plain = Machine.make(process, kvm.VM_TYPE_DEFAULT)
    assert plain.init2()[:2] == (errno.EINVAL, UNTOUCHED)
    assert plain.op(number)[:2] == (0, UNTOUCHED)
    assert host.asids()[pool][1] == 1
    assert plain.op(number)[:2] == (errno.EINVAL, UNTOUCHED)
    plain.process.close(plain.vm)
    assert host.asids()[pool][1] == 0


def test_es_init_without_es_is_enotty(host: Simulator, process: Process) -> None:
    host._kvm.es = False
    assert Machine.make(process, kvm.VM_TYPE_DEFAULT).op(kvm_sev.SEV_ES_INIT)[:2] == (errno.ENOTTY, UNTOUCHED)


@pytest.mark.parametrize(
    ("vm_type", "changes", "expected"),
    [
        (4, {}, "ok"),
        (4, {"ghcb_version": 2}, "ok"),
        (4, {"ghcb_version": 1}, "EINVAL"),
        (4, {"ghcb_version": 3}, "EINVAL"),
        (4, {"flags": 1}, "EINVAL"),
        (4, {"vmsa_features": 1}, "EINVAL"),
        (4, {"vmsa_features": 1 << 5}, "ok"),
        (4, {"vmsa_features": 1 << 9}, "ok"),
        (4, {"vmsa_features": 1 << 3}, "EINVAL"),
        (4, {"vmsa_features": 1 << 63}, "EINVAL"),
        (3, {}, "ok"),
        (3, {"ghcb_version": 1}, "ok"),
        (3, {"vmsa_features": 1 << 5}, "ok"),
        (3, {"vmsa_features": 1 << 9}, "EINVAL"),
        (2, {}, "ok"),
        (2, {"vmsa_features": 1 << 5}, "EINVAL"),
        (2, {"ghcb_version": 1}, "EINVAL"),
    ],
    ids=str,
)
def test_init2(tmp_path: Path, vm_type: int, changes: dict[str, int], expected: str) -> None:
    with simulated_host(tmp_path):
        pass
    Platform.store_new(GENOA, tmp_path / "genoa", parse("1.55.40"))  # one that still offers SEV-ES
    host = Simulator.open(tmp_path, product="genoa")
    machine = Machine.make(host.process(), vm_type)
    outcome = machine.init2(**changes)
    assert (outcome.name, outcome.error) == (expected, UNTOUCHED)
    in_use = sum(use for _, use in host.asids().values())
    assert in_use == (expected == "ok")
    assert machine.ioctl(kvm.KVM_CREATE_VCPU, 0) == "ok"
    host.close()
    assert sum(use for _, use in host.asids().values()) == 0


def test_init2_twice_after_vcpus_and_unreadable(host: Simulator, process: Process, machine: Machine) -> None:
    assert machine.op(kvm_sev.SEV_INIT2, UNMAPPED)[:2] == (errno.EFAULT, UNTOUCHED)
    assert machine.init2().name == "ok"
    assert machine.init2().name == "EPERM"  # an SNP guest now
    sev = sev_guest(process)
    assert sev.init2().name == "EINVAL"
    late = Machine.make(process)
    late.vcpu()
    assert late.init2()[:2] == (errno.EINVAL, UNTOUCHED)
    assert host.asids()["sev_es"][1] == 1


@EVERY_ERA
def test_init2_takes_no_descriptor(host: Simulator, machine: Machine) -> None:
    machine.process.close(machine.sev)
    assert machine.op(kvm_sev.SEV_INIT2, kvm_sev.SevInit(), sev_fd=-1).name == "ok"
    assert host.asids()["sev_es"][1] == 1


def test_a_platform_that_cannot_be_initialised_costs_no_asid(host: Simulator, machine: Machine) -> None:
    host._ccp.shut_down()
    refuse(host, "SNP_INIT", code=status.HWERROR_PLATFORM)
    assert machine.init2()[:2] == (errno.EIO, status.HWERROR_PLATFORM)
    assert host.asids()["sev_es"][1] == 0
    host.faults = lambda _command: None
    assert machine.init2()[:2] == (0, 0)


@EVERY_ERA
def test_a_full_range_is_ebusy_and_recycled_with_one_flush(host: Simulator, process: Process) -> None:
    total = host.asids()["sev_es"][0]
    machines = [Machine.make(process) for _ in range(total + 1)]
    for machine in machines[:total]:
        assert machine.init2().name == "ok"
    assert host.asids()["sev_es"] == (total, total)
    last = machines[total]
    assert last.init2()[:2] == (errno.EBUSY, UNTOUCHED)
    pool = host._kvm.asids["sev_es"]
    assert pool.flushes == 0
    for machine in machines[:3]:
        process.close(machine.vm)
    assert host.asids()["sev_es"] == (total, total - 3)
    assert last.init2().name == "ok"
    assert Machine.make(process).init2().name == "ok"
    assert pool.flushes == 1
    assert host.asids()["sev_es"] == (total, total - 1)


def test_a_recycled_asid_is_activated(host: Simulator, process: Process) -> None:
    """The firmware refuses a dirty ASID: the flush must reach it."""
    total = host.asids()["sev_es"][0]
    held = [Machine.make(process) for _ in range(total - 1)]
    for machine in held:
        machine.init2()
    for _ in range(3):
        guest = Machine.make(process)
        assert guest.init2().name == "ok"
        assert guest.start().name == "ok"
        process.close(guest.vm)


def test_a_flush_that_fails_is_ebusy() -> None:
    pool = AsidPool(1, 1, lambda: fail(errno.EIO))
    pool.give(pool.take())
    with pytest.raises(OSError, match="busy") as refused:
        pool.take()
    assert refused.value.errno == errno.EBUSY


def test_an_empty_range_is_enotty_and_a_leak_is_lost() -> None:
    with pytest.raises(OSError, match="ioctl") as refused:
        AsidPool(1, 0, lambda: None).take()
    assert refused.value.errno == errno.ENOTTY
    pool = AsidPool(5, 6, lambda: None)
    assert (pool.take(), pool.take()) == (5, 6)
    pool.leak(5)
    pool.give(6)
    assert (pool.total, pool.in_use, pool.take(), pool.flushes) == (2, 0, 6, 1)
    with pytest.raises(OSError, match="busy"):
        pool.take()


def test_asid_ranges_by_product(tmp_path: Path) -> None:
    for product, sev, es in (("milan", 410, 99), ("genoa", 907, 99), ("turin", 907, 99)):
        with simulated_host(tmp_path / product, product) as host:
            assert host.asids() == {"sev": (sev, 0), "sev_es": (es, 0)}


def test_certificates_are_asked_for_between_init_and_vcpus(process: Process, machine: Machine) -> None:
    assert machine.op(kvm_sev.SNP_ENABLE_REQ_CERTS)[:2] == (errno.EINVAL, UNTOUCHED)
    machine.init2()
    assert machine.op(kvm_sev.SNP_ENABLE_REQ_CERTS)[:2] == (0, UNTOUCHED)
    machine.vcpu()
    assert machine.op(kvm_sev.SNP_ENABLE_REQ_CERTS)[:2] == (errno.EINVAL, UNTOUCHED)
    assert sev_guest(process).op(kvm_sev.SNP_ENABLE_REQ_CERTS)[:2] == (errno.EINVAL, UNTOUCHED)


def test_regions(process: Process) -> None:
    plain = Machine.make(process, kvm.VM_TYPE_DEFAULT)
    at = process.memory.place(bytearray(4 * PAGE))
    whole = kvm.EncRegion(at, 4 * PAGE)
    register, forget = kvm.KVM_MEMORY_ENCRYPT_REG_REGION, kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION
    assert plain.ioctl(register, UNMAPPED) == "EFAULT"
    assert plain.ioctl(register, whole) == "ENOTTY"
    machine = sev_guest(process)
    assert machine.ioctl(forget, whole) == "EINVAL"
    assert [machine.ioctl(register, whole) for _ in range(2)] == ["ok", "ok"]
    assert machine.ioctl(register, replace(whole, size_bytes=0)) == "EINVAL"
    assert machine.ioctl(register, replace(whole, addr=(1 << 64) - 1)) == "EINVAL"
    assert machine.ioctl(register, replace(whole, size_bytes=5 * PAGE)) == "ENOMEM"
    assert machine.ioctl(forget, replace(whole, size_bytes=PAGE)) == "EINVAL"
    assert [machine.ioctl(forget, whole) for _ in range(3)] == ["ok", "ok", "EINVAL"]


# Whose VM it is, and how long it lives.


@EVERY_ERA
def test_another_process_gets_eio(host: Simulator, process: Process) -> None:
    machine = ready(process)
    vcpu = process.dup(machine.vcpu(7))
    stranger = host.process()
    vm, theirs = stranger.receive(process, machine.vm), stranger.receive(process, vcpu)
    sev = stranger.open("/dev/sev", 0)
    envelope = stranger.memory.place(bytearray(kvm_sev.SevCmd(kvm_sev.SNP_LAUNCH_START, 0, 0, sev).encode()))
    for fd, request, argument in (
        (vm, kvm.KVM_MEMORY_ENCRYPT_OP, 0),
        (vm, kvm.KVM_MEMORY_ENCRYPT_OP, envelope),
        (vm, kvm.KVM_CHECK_EXTENSION, kvm.CAP_VM_TYPES),
        (vm, kvm.KVM_CREATE_VCPU, 1),
        (vm, 0xAEFF, 0),
        (theirs, kvm.KVM_RUN, 0),
        (theirs, kvm.KVM_GET_REGS, envelope),
    ):
        assert attempt(stranger, fd, request, argument)[0] == errno.EIO
    assert machine.start().name == "ok"
    stranger.exit()


def test_a_received_kvm_makes_the_receivers_vms(host: Simulator, process: Process) -> None:
    fd = process.open("/dev/kvm", 0)
    other = host.process()
    vm = other.ioctl(other.receive(process, fd), kvm.KVM_CREATE_VM, 4)
    assert attempt(other, vm, kvm.KVM_MEMORY_ENCRYPT_OP)[0] == 0
    assert attempt(process, process.receive(other, vm), kvm.KVM_MEMORY_ENCRYPT_OP)[0] == errno.EIO
    other.exit()


@EVERY_ERA
@pytest.mark.parametrize("last", ["vm", "vcpu", "memfd", "sent"])
def test_the_last_descriptor_frees_the_asid(host: Simulator, process: Process, last: str) -> None:
    machine = launching(process, vcpus=0)
    vcpu = machine.vcpu()
    other = host.process()
    sent = other.receive(process, machine.vm)
    fds = {"vm": machine.vm, "vcpu": vcpu, "memfd": machine.memfd}
    for name, fd in fds.items():
        if name != last:
            process.close(fd)
    if last != "sent":
        other.close(sent)
    assert host.asids()["sev_es"][1] == host.guest_count() == 1
    if last == "sent":
        other.exit()
    else:
        process.close(fds[last])
    assert host.asids()["sev_es"][1] == host.guest_count() == 0
    other.exit()


@EVERY_ERA
def test_closing_the_sev_device_frees_nothing(host: Simulator, process: Process) -> None:
    machine = launching(process)
    process.close(machine.sev)
    assert host.guest_count() == 1


@pytest.mark.parametrize("stage", ["created", "initialised", "started", "updated", "finished", "failed"])
def test_exit_leaves_nothing_at_any_stage(host: Simulator, stage: str) -> None:
    process = host.process()
    machine = Machine.make(process)
    if stage != "created":
        machine.init2()
    if stage not in ("created", "initialised"):
        machine.add_memory()
        machine.vcpu()
        assert machine.start().name == "ok"
    if stage in ("updated", "finished", "failed"):
        assert machine.update(0, 8).name == "ok"
    if stage == "finished":
        assert machine.finish().name == "ok"
    if stage == "failed":
        assert machine.finish(id_block_en=1).name == "EINVAL"
    process.exit()
    assert host.asids()["sev_es"][1] == host.guest_count() == 0


def test_a_context_that_cannot_be_decommissioned_costs_the_asid(host: Simulator) -> None:
    process = host.process()
    launching(process)
    refuse(host, "SNP_DECOMMISSION", code=status.ACTIVE)
    process.exit()
    host.faults = lambda _command: None
    assert host.guest_count() == 1
    assert host._kvm.asids["sev_es"].take() == 2


def test_switching_off_ends_every_process(tmp_path: Path) -> None:
    with simulated_host(tmp_path) as host:
        processes = [host.process() for _ in range(3)]
        for one in processes:
            launching(one)
        host.close()
        assert host.asids()["sev_es"][1] == 0
        assert all(one.descriptors() == [] for one in processes)
