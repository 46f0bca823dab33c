"""SNP_LAUNCH_START and SNP_LAUNCH_FINISH: order of checks, errno, status, and what a failure burns."""

from __future__ import annotations

import errno

import pytest

from sev import status
from sev.abi import kvm, kvm_sev, kvm_vcpu
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.caller import POLICY, UNTOUCHED, Machine, code, launching, ready
from tests.support.simulated import EVERY_ERA, refuse

UNMAPPED = 0x1000


# SNP_LAUNCH_START


@EVERY_ERA
def test_start_before_init_is_enotty(process: Process) -> None:
    assert Machine.make(process).start()[:2] == (errno.ENOTTY, UNTOUCHED)


def test_start_of_unreadable_data_is_efault(process: Process) -> None:
    assert ready(process).op(kvm_sev.SNP_LAUNCH_START, UNMAPPED)[:2] == (errno.EFAULT, UNTOUCHED)


@pytest.mark.parametrize(
    ("policy", "changes", "expected"),
    [
        (POLICY, {}, ("ok", 0)),
        (POLICY, {"flags": 1}, ("EINVAL", UNTOUCHED)),
        (POLICY & ~(1 << 17), {}, ("EINVAL", UNTOUCHED)),
        (POLICY | 1 << 18, {}, ("EINVAL", UNTOUCHED)),
        (POLICY | 1 << 24, {}, ("EINVAL", UNTOUCHED)),
        (POLICY | 1 << 26, {}, ("EINVAL", UNTOUCHED)),
        (POLICY | 1 << 63, {}, ("EINVAL", UNTOUCHED)),
        (POLICY | 1 << 19, {}, ("ok", 0)),
        (POLICY | 1 << 20, {}, ("ok", 0)),
        (POLICY | 1 << 21, {}, ("ok", 0)),
        (POLICY | 0x0137, {}, ("ok", 0)),
        (POLICY | 0x0138, {}, ("EIO", status.POLICY_FAILURE)),
        (POLICY | 0x0200, {}, ("EIO", status.POLICY_FAILURE)),
        (POLICY & ~(1 << 16), {}, ("EIO", status.POLICY_FAILURE)),
    ],
    ids=[
        "usual", "flags", "no bit 17", "migration", "not advertised", "bit 26", "bit 63", "debug", "single socket", "cxl",
        "this abi", "abi minor above", "abi major above", "smt is on",
    ],
)  # fmt: skip
def test_policies(
    host: Simulator, process: Process, policy: int, changes: dict[str, int], expected: tuple[str, int]
) -> None:
    machine = ready(process)
    outcome = machine.start(policy, **changes)
    assert (outcome.name, outcome.error) == expected
    assert host.guest_count() == (expected[0] == "ok")
    assert host.asids()["sev_es"][1] == 1
    again = machine.start()
    assert again[:2] == ((errno.EINVAL, UNTOUCHED) if expected[0] == "ok" else (0, 0))  # a retry is allowed
    assert host.guest_count() == 1


@EVERY_ERA
def test_bad_descriptors_hide_behind_enotty(host: Simulator, process: Process) -> None:
    machine = ready(process)
    for fd in (99, -1, machine.device, machine.vm, process.open("/dev/sev", 0o10000000)):
        assert machine.start(sev_fd=fd)[:2] == (errno.ENOTTY, UNTOUCHED)
    assert host.guest_count() == 0


@EVERY_ERA
def test_context_errors_hide_behind_enotty_with_their_status(host: Simulator, process: Process) -> None:
    machine = ready(process)
    refuse(host, "SNP_GCTX_CREATE", code=status.RESOURCE_LIMIT)
    assert machine.start()[:2] == (errno.ENOTTY, status.RESOURCE_LIMIT)


@pytest.mark.parametrize("command", ["SNP_LAUNCH_START", "SNP_ACTIVATE"])
def test_a_start_that_fails_later_gives_its_context_back(host: Simulator, process: Process, command: str) -> None:
    machine = ready(process)
    refuse(host, command, code=status.HWERROR_UNSAFE)
    assert machine.start()[:2] == (errno.EIO, status.HWERROR_UNSAFE)
    host.faults = lambda _command: None
    assert host.guest_count() == 0
    assert machine.start()[:2] == (0, 0)


def test_any_access_mode_will_do(process: Process) -> None:
    for mode in (0, 1, 2, 3):
        machine = ready(process)
        assert machine.start(sev_fd=process.open("/dev/sev", mode)).name == "ok"


def test_the_descriptor_may_come_from_elsewhere(host: Simulator, process: Process) -> None:
    sender = host.process()
    fd = process.receive(sender, sender.open("/dev/sev", 0))
    sender.exit()
    assert ready(process).start(sev_fd=fd).name == "ok"


# SNP_LAUNCH_FINISH


@EVERY_ERA
def test_finish_out_of_order(process: Process) -> None:
    assert Machine.make(process).finish()[:2] == (errno.ENOTTY, UNTOUCHED)
    assert ready(process).finish()[:2] == (errno.EINVAL, UNTOUCHED)
    machine = launching(process)
    assert machine.op(kvm_sev.SNP_LAUNCH_FINISH, UNMAPPED)[:2] == (errno.EFAULT, UNTOUCHED)
    assert machine.finish(flags=1)[:2] == (errno.EINVAL, UNTOUCHED)
    assert machine.finish()[:2] == (0, 0)  # nothing of it burned the VM


def test_a_second_finish_is_einval_with_vcpus(process: Process) -> None:
    machine = launching(process)
    assert machine.finish().name == "ok"
    assert machine.finish()[:2] == (errno.EINVAL, UNTOUCHED)


def test_a_second_finish_is_the_firmwares_without_vcpus(process: Process) -> None:
    machine = launching(process, vcpus=0)
    assert machine.finish().name == "ok"
    assert machine.finish()[:2] == (errno.EIO, status.INVALID_GUEST_STATE)


def test_no_id_block_no_keys(process: Process) -> None:
    """auth_key_en counts together with id_block_en only; the addresses are not looked at without it."""
    assert launching(process).finish(auth_key_en=1, id_block_uaddr=1, id_auth_uaddr=1).name == "ok"


@EVERY_ERA
@pytest.mark.parametrize(
    ("block", "auth", "expected"),
    [(0, 0, "EINVAL"), (UNMAPPED, 0, "EFAULT"), (None, 0, "EINVAL"), (None, UNMAPPED, "EFAULT")],
    ids=["no block", "unreadable block", "no auth", "unreadable auth"],
)
def test_a_bad_id_block_pointer_burns_the_vm(
    host: Simulator, process: Process, block: int | None, auth: int, expected: str
) -> None:
    machine = launching(process)
    address = process.memory.place(bytes(96)) if block is None else block
    outcome = machine.finish(id_block_en=1, id_block_uaddr=address, id_auth_uaddr=auth)
    assert (outcome.name, outcome.error) == (expected, 0)  # the vCPU reached the firmware
    assert machine.finish()[:2] == (errno.EINVAL, UNTOUCHED)
    assert host.guest_count() == 1


@EVERY_ERA
def test_a_refused_id_block_burns_the_vm(process: Process) -> None:
    machine = launching(process)
    block, auth = process.memory.place(bytes(96)), process.memory.place(bytes(4096))
    outcome = machine.finish(id_block_en=1, id_block_uaddr=block, id_auth_uaddr=auth)
    assert outcome[:2] == (errno.EIO, status.BAD_MEASUREMENT)
    assert machine.finish()[:2] == (errno.EINVAL, UNTOUCHED)


def test_a_first_vcpu_that_is_refused_burns_nothing(host: Simulator, process: Process) -> None:
    machine = launching(process, vcpus=2)
    refuse(host, "SNP_LAUNCH_UPDATE", code=status.HWERROR_UNSAFE)
    assert machine.finish()[:2] == (errno.EIO, status.HWERROR_UNSAFE)
    host.faults = lambda _command: None
    assert machine.finish()[:2] == (0, 0)


def test_a_second_vcpu_that_is_refused_burns_the_vm(host: Simulator, process: Process) -> None:
    machine = launching(process, vcpus=2)
    refuse(host, "SNP_LAUNCH_UPDATE", code=status.HWERROR_UNSAFE, after=1)
    assert machine.finish()[:2] == (errno.EIO, status.HWERROR_UNSAFE)
    host.faults = lambda _command: None
    assert machine.finish()[:2] == (errno.EINVAL, UNTOUCHED)


def test_a_debug_register_that_is_set_is_einval(process: Process) -> None:
    machine = ready(process, vcpus=0)
    vcpu = machine.vcpu()
    assert code(process, vcpu, kvm.KVM_SET_DEBUGREGS, kvm_vcpu.DebugRegs(dr7=0x401)) == "ok"
    machine.start()
    assert machine.finish()[:2] == (errno.EINVAL, UNTOUCHED)


@EVERY_ERA
def test_vmsas_go_through_the_callers_descriptor_and_the_end_through_the_remembered(process: Process) -> None:
    machine = launching(process)
    assert machine.finish(sev_fd=99)[:2] == (errno.EBADF, UNTOUCHED)
    other = process.open("/dev/sev", 0)
    process.close(machine.sev)
    assert machine.finish(sev_fd=other)[:2] == (errno.EBADF, 0)


@EVERY_ERA
def test_reopening_on_the_remembered_number_heals(process: Process) -> None:
    machine = launching(process, vcpus=0)
    process.close(machine.sev)
    assert machine.finish(sev_fd=99)[:2] == (errno.EBADF, UNTOUCHED)
    assert process.open("/dev/sev", 0) == machine.sev
    assert machine.finish(sev_fd=99)[:2] == (0, 0)


def test_registers_are_sealed_after_finish(process: Process) -> None:
    machine = ready(process, vcpus=0)
    vcpu = machine.vcpu()
    machine.start()
    assert code(process, vcpu, kvm.KVM_GET_REGS, bytearray(144)) == "ok"
    machine.finish()
    sizes = {
        kvm.KVM_GET_REGS: 144, kvm.KVM_SET_REGS: 144, kvm.KVM_GET_SREGS: 312, kvm.KVM_SET_SREGS: 312,
        kvm.KVM_GET_FPU: 416, kvm.KVM_SET_FPU: 416, kvm.KVM_GET_MSRS: 8, kvm.KVM_SET_MSRS: 8,
        kvm.KVM_GET_DEBUGREGS: 128, kvm.KVM_SET_DEBUGREGS: 128,
    }  # fmt: skip
    assert {code(process, vcpu, request, bytearray(size)) for request, size in sizes.items()} == {"EINVAL"}


def test_vcpus_are_measured_in_the_order_of_creation(host: Simulator, process: Process) -> None:
    digests = []
    for order in ((0, 1), (1, 0)):
        machine = ready(process, vcpus=0)
        for index in order:
            vcpu = machine.vcpu(index)
            code(process, vcpu, kvm.KVM_SET_REGS, kvm_vcpu.Regs(rax=index))
        machine.start()
        assert machine.finish().name == "ok"
        digests.append(host.launch_digest(process, machine.vm))
    assert digests[0] != digests[1]


def test_secure_tsc_reaches_the_save_area(process: Process) -> None:
    machine = Machine.make(process)
    machine.init2(vmsa_features=kvm_sev.VMSA_SECURE_TSC)
    vcpu = machine.vcpu()
    machine.start()
    machine.finish()
    file = process.take(vcpu)
    page = file.vcpu.page  # type: ignore[attr-defined]
    file.drop()
    assert page[0x3B0:0x3B8] == (0x201).to_bytes(8, "little")
    assert any(page[0x2F0:0x2F8])
