"""SNP_LAUNCH_UPDATE: order of checks, errno, status, partial progress, and what is measured."""

from __future__ import annotations

import errno
import hashlib

import pytest

from sev import status
from sev.abi import cpuid_page, kvm, kvm_sev, kvm_vcpu, page_info
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.caller import PAGE, RAM_PAGES, UNTOUCHED, Machine, launching, ready
from tests.support.simulated import EVERY_ERA, refuse

UNMAPPED = 0x1000


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
    refuse(host, "SNP_LAUNCH_UPDATE", code=status.INVALID_PAGE_STATE)
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
