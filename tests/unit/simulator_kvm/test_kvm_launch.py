"""SNP_LAUNCH_START, UPDATE and FINISH: order of checks, errno, status, partial progress, what a failure burns."""

from __future__ import annotations

import errno
import hashlib

import pytest

from sev import status
from sev.abi import cpuid_page, kvm, kvm_sev, kvm_vcpu, page_info
from sevd.simulator import Simulator
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.process import Process
from tests.support.caller import PAGE, POLICY, RAM_PAGES, UNTOUCHED, Machine, code, launching, ready
from tests.support.simulated import EVERY_ERA

UNMAPPED = 0x1000


def refuse(host: Simulator, command: str, number: int, *, after: int = 0) -> list[str]:
    """Makes a firmware command fail from its so-many-th call on; answers the calls of it."""
    calls: list[str] = []

    def hook(name: str) -> None:
        if name == command:
            calls.append(name)
            if len(calls) > after:
                raise FirmwareStatus(number)

    host.faults = hook
    return calls


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
    refuse(host, "SNP_GCTX_CREATE", status.RESOURCE_LIMIT)
    assert machine.start()[:2] == (errno.ENOTTY, status.RESOURCE_LIMIT)


@pytest.mark.parametrize("command", ["SNP_LAUNCH_START", "SNP_ACTIVATE"])
def test_a_start_that_fails_later_gives_its_context_back(host: Simulator, process: Process, command: str) -> None:
    machine = ready(process)
    refuse(host, command, status.HWERROR_UNSAFE)
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


# SNP_LAUNCH_UPDATE


@EVERY_ERA
def test_update_before_start_is_einval(process: Process) -> None:
    assert Machine.make(process).op(kvm_sev.SNP_LAUNCH_UPDATE)[:2] == (errno.EINVAL, UNTOUCHED)
    assert ready(process).update()[:2] == (errno.EINVAL, UNTOUCHED)


def test_update_of_unreadable_data_is_efault(process: Process) -> None:
    assert launching(process).op(kvm_sev.SNP_LAUNCH_UPDATE, UNMAPPED)[:2] == (errno.EFAULT, UNTOUCHED)


@pytest.mark.parametrize(
    "arguments",
    [
        {"pages": 0},
        {"length": PAGE - 1},
        {"length": PAGE + 1},
        {"flags": 1},
        {"page_type": 0},
        {"page_type": 2},
        {"page_type": 7},
        {"page_type": 255},
        {"uaddr": 0},
        {"uaddr": 1},
        {"first": RAM_PAGES},
        {"first": (1 << 64) - 1, "uaddr": PAGE},
        {"first": RAM_PAGES, "page_type": kvm_sev.PAGE_ZERO},
    ],
    ids=[
        "nothing", "short", "odd", "flags", "type 0", "a VMSA", "type 7", "type 255", "no address", "unaligned",
        "past the slot", "past everything", "zeros past the slot",
    ],
)  # fmt: skip
def test_impossible_updates_are_einval(process: Process, arguments: dict[str, int]) -> None:
    machine = launching(process)
    outcome = machine.update(**arguments)
    assert outcome[:2] == (errno.EINVAL, UNTOUCHED)
    assert machine.finish().name == "ok"


def test_zeros_need_no_source(process: Process) -> None:
    machine = launching(process)
    outcome = machine.update(0, 4, kvm_sev.PAGE_ZERO, uaddr=3)
    assert outcome[:2] == (0, UNTOUCHED)
    assert kvm_sev.SnpLaunchUpdate.decode(outcome.data) == kvm_sev.SnpLaunchUpdate(4, 3, 0, kvm_sev.PAGE_ZERO)


def test_a_slot_without_private_memory_is_einval(process: Process) -> None:
    machine = launching(process)
    at = process.memory.place(bytearray(PAGE))
    request = kvm.UserMemoryRegion2(1, 0, 1 << 32, PAGE, at)
    assert machine.ioctl(kvm.KVM_SET_USER_MEMORY_REGION2, request) == "ok"
    assert machine.update(1 << 20, uaddr=at)[:2] == (errno.EINVAL, UNTOUCHED)


@EVERY_ERA
@pytest.mark.parametrize("cause", ["shared", "assigned", "unreadable", "descriptor", "memfd closed", "dead"])
def test_whatever_stops_the_first_page_is_eio(host: Simulator, process: Process, cause: str) -> None:
    machine = launching(process)
    arguments: dict[str, int] = {}
    if cause == "shared":
        machine.set_private(0, 1, attributes=0)
    elif cause == "assigned":
        assert machine.update().name == "ok"
    elif cause == "unreadable":
        arguments["uaddr"] = UNMAPPED
    elif cause == "descriptor":
        arguments["sev_fd"] = machine.device
    elif cause == "memfd closed":
        process.close(machine.memfd)
    else:
        host._ccp.dead = True
    assert machine.update(**arguments)[:2] == (errno.EIO, 0)
    host._ccp.dead = False


def test_a_status_on_the_first_page_is_eio(host: Simulator, process: Process) -> None:
    machine = launching(process)
    refuse(host, "SNP_LAUNCH_UPDATE", status.INVALID_PAGE_STATE)
    assert machine.update(0, 8)[:2] == (errno.EIO, status.INVALID_PAGE_STATE)
    host.faults = lambda _command: None
    assert machine.update(0, 8)[:2] == (0, UNTOUCHED)  # reclaimed, so it can be tried again


@EVERY_ERA
@pytest.mark.parametrize("cause", ["shared", "assigned", "unreadable", "slot end"])
def test_what_stops_a_later_page_is_success_with_less_done(process: Process, cause: str) -> None:
    machine = launching(process)
    done = 5
    first = RAM_PAGES - done if cause == "slot end" else 0
    source = machine.address + first * PAGE
    if cause == "shared":
        machine.set_private(5, 1, attributes=0)
    elif cause == "assigned":
        assert machine.update(5, 1).name == "ok"
    elif cause == "unreadable":
        source = process.memory.place(bytearray(done * PAGE))
    outcome = machine.update(first, 8, uaddr=source)
    assert outcome[:2] == (0, UNTOUCHED)
    left = kvm_sev.SnpLaunchUpdate.decode(outcome.data)
    assert left == kvm_sev.SnpLaunchUpdate(first + done, source + done * PAGE, 3 * PAGE, kvm_sev.PAGE_NORMAL)
    again = machine.op(kvm_sev.SNP_LAUNCH_UPDATE, left)
    assert again[:2] == ((errno.EINVAL, UNTOUCHED) if cause == "slot end" else (errno.EIO, 0))
    assert kvm_sev.SnpLaunchUpdate.decode(again.data) == left


def test_partial_progress_measures_exactly_what_was_done(host: Simulator, process: Process) -> None:
    machine = launching(process, vcpus=0)
    machine.set_private(3, 1, attributes=0)
    assert machine.ram is not None
    machine.ram[:] = b"".join(bytes([page]) * PAGE for page in range(RAM_PAGES))
    machine.update(0, 8)
    digest = bytes(48)
    for page in range(3):
        contents = hashlib.sha384(bytes([page]) * PAGE).digest()
        digest = page_info.extend(digest, contents, page_info.NORMAL, page * PAGE)
    assert host.launch_digest(process, machine.vm) == digest


def test_runs_cross_chunks(host: Simulator, process: Process) -> None:
    """More than 2 MiB in one call, beginning in the middle."""
    machine = Machine.make(process)
    machine.init2()
    machine.add_memory(1500)
    machine.start()
    outcome = machine.update(300, 1200)
    assert outcome[:2] == (0, UNTOUCHED)
    assert kvm_sev.SnpLaunchUpdate.decode(outcome.data).len == 0
    digest = bytes(48)
    contents = hashlib.sha384(bytes(PAGE)).digest()
    for page in range(300, 1500):
        digest = page_info.extend(digest, contents, page_info.NORMAL, page * PAGE)
    assert host.launch_digest(process, machine.vm) == digest


def test_the_source_is_copied(host: Simulator, process: Process) -> None:
    """What the host changes afterwards in its own view does not reach the guest, nor does the firmware's page the host."""
    machine = launching(process)
    assert machine.ram is not None
    before = host.launch_digest(process, machine.vm)
    machine.update(0, 1, kvm_sev.PAGE_SECRETS)
    assert not any(machine.ram)
    assert host.launch_digest(process, machine.vm) != before


@pytest.mark.parametrize("page_type", sorted(kvm_sev.PAGE_TYPES - {kvm_sev.PAGE_CPUID}))
def test_page_types_are_measured_as_they_are(host: Simulator, process: Process, page_type: int) -> None:
    machine = launching(process, vcpus=0)
    assert machine.ram is not None
    machine.ram[:PAGE] = b"\x11" * PAGE
    assert machine.update(0, 1, page_type).name == "ok"
    measured = page_type == kvm_sev.PAGE_NORMAL
    contents = hashlib.sha384(b"\x11" * PAGE).digest() if measured else bytes(48)
    assert host.launch_digest(process, machine.vm) == page_info.extend(bytes(48), contents, page_type, 0)


def cpuid(process: Process, machine: Machine) -> list[cpuid_page.Function]:
    buffer = kvm_vcpu.empty_cpuid()
    process.ioctl(machine.device, kvm.KVM_GET_SUPPORTED_CPUID, process.memory.place(buffer))
    return cpuid_page.from_kvm(kvm_vcpu.decode_cpuid(buffer))


def test_a_refused_cpuid_page_comes_back_corrected(host: Simulator, process: Process) -> None:
    machine = launching(process)
    assert machine.ram is not None
    functions = cpuid(process, machine)
    index = next(at for at, one in enumerate(functions) if one.eax_in == 1)
    wrong = [*functions]
    wrong[index] = functions[index]._replace(edx=0xFFFFFFFF)
    page = cpuid_page.build(wrong)
    machine.ram[:PAGE] = page
    before = host.launch_digest(process, machine.vm)
    assert machine.update(0, 1, kvm_sev.PAGE_CPUID)[:2] == (errno.EIO, status.INVALID_PARAM)
    assert host.launch_digest(process, machine.vm) == before
    assert machine.ram[:PAGE] != page
    assert "leaf 0x1.0 edx" in cpuid_page.corrections(page, machine.ram[:PAGE])[0]
    assert machine.update(0, 1, kvm_sev.PAGE_CPUID)[:2] == (0, UNTOUCHED)
    assert host.launch_digest(process, machine.vm) != before


def test_update_after_finish_reaches_the_firmware(process: Process) -> None:
    machine = launching(process)
    assert machine.finish().name == "ok"
    assert machine.update()[:2] == (errno.EIO, status.INVALID_GUEST_STATE)


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
    refuse(host, "SNP_LAUNCH_UPDATE", status.HWERROR_UNSAFE)
    assert machine.finish()[:2] == (errno.EIO, status.HWERROR_UNSAFE)
    host.faults = lambda _command: None
    assert machine.finish()[:2] == (0, 0)


def test_a_second_vcpu_that_is_refused_burns_the_vm(host: Simulator, process: Process) -> None:
    machine = launching(process, vcpus=2)
    refuse(host, "SNP_LAUNCH_UPDATE", status.HWERROR_UNSAFE, after=1)
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
