"""vCPUs of SEV-ES guests in KVM: their VMSAs, and what is left of their state."""

from __future__ import annotations

import errno
from hashlib import sha256

import pytest

from sev.abi import kvm, kvm_vcpu, vmsa
from sev.abi import kvm_sev as ids
from sev.measurement.legacy import SEV_ES_FEATURES
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.caller import PAGE, UNTOUCHED, attempt
from tests.support.legacy_machine import ES, ES_POLICY, LegacyMachine, short, vcpus

UNMAPPED = 0x1000
DEFAULT = kvm.VM_TYPE_DEFAULT
EINVAL, ENOTTY = errno.EINVAL, errno.ENOTTY


def vcpu_ioctl(guest: LegacyMachine, fd: int, request: int, size: int = 512) -> str:
    number, _ = attempt(guest.process, fd, request, guest.place(bytearray(size)))
    return errno.errorcode.get(number, "ok")


def test_every_vcpu_is_measured_in_order(host: Simulator, process: Process) -> None:
    guest = LegacyMachine(process, ES)
    fds = vcpus(guest, 3)
    regs = kvm_vcpu.Regs(rip=0x1234, rflags=2)
    attempt(process, fds[1], kvm.KVM_SET_REGS, guest.place(regs.encode()))
    models = [vcpu for vm in host.kvm.vms for vcpu in vm.vcpus]
    pages = [bytes(vcpu.vmsa(SEV_ES_FEATURES)) for vcpu in models]
    assert guest.start(ES_POLICY).name == "ok"
    guest.ram[:PAGE] = b"\1" * PAGE
    assert guest.update().name == "ok"
    assert short(guest.op(ids.LAUNCH_UPDATE_VMSA)) == (0, 0)
    assert host.launch_digest(process, guest.machine.vm) == sha256(b"\1" * PAGE + b"".join(pages)).digest()
    assert vmsa.parse(pages[1])["rip"] == 0x1234
    assert vmsa.parse(pages[0])["x87_fcw"] == 0x37F
    assert short(guest.op(ids.LAUNCH_UPDATE_VMSA)) == (EINVAL, UNTOUCHED), "they are encrypted"


def test_vmsas_are_not_for_sev(started: LegacyMachine) -> None:
    assert short(started.op(ids.LAUNCH_UPDATE_VMSA)) == (ENOTTY, UNTOUCHED)


def test_a_debug_register_stops_it(process: Process) -> None:
    guest = LegacyMachine(process, ES)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    debug = kvm_vcpu.DebugRegs(dr6=0xFFFF0FF0, dr7=0x401)
    assert attempt(process, fd, kvm.KVM_SET_DEBUGREGS, guest.place(debug.encode()))[0] == 0
    assert short(guest.op(ids.LAUNCH_UPDATE_VMSA)) == (EINVAL, UNTOUCHED)


ALL_STATE = {
    "GET_REGS": kvm.KVM_GET_REGS, "SET_REGS": kvm.KVM_SET_REGS, "GET_SREGS": kvm.KVM_GET_SREGS,
    "SET_SREGS": kvm.KVM_SET_SREGS, "GET_DEBUGREGS": kvm.KVM_GET_DEBUGREGS, "SET_DEBUGREGS": kvm.KVM_SET_DEBUGREGS,
    "GET_FPU": kvm.KVM_GET_FPU, "SET_FPU": kvm.KVM_SET_FPU, "GET_MSRS": kvm.KVM_GET_MSRS, "SET_MSRS": kvm.KVM_SET_MSRS,
}  # fmt: skip


@pytest.mark.parametrize("name", ALL_STATE)
def test_encrypted_state_is_refused_by_the_new_types(process: Process, name: str) -> None:
    guest = LegacyMachine(process, ES)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    assert vcpu_ioctl(guest, fd, ALL_STATE[name]) == "ok"
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    assert vcpu_ioctl(guest, fd, ALL_STATE[name]) == "EINVAL"


@pytest.mark.parametrize("name", ALL_STATE)
def test_encrypted_state_is_stale_or_silent_in_the_old_type(process: Process, name: str) -> None:
    guest = LegacyMachine(process, DEFAULT)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    assert vcpu_ioctl(guest, fd, ALL_STATE[name]) == "ok"


def test_silent_means_without_effect(process: Process) -> None:
    guest = LegacyMachine(process, DEFAULT)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    buffer = bytearray(b"\xaa" * 416)
    for request in (kvm.KVM_GET_FPU, kvm.KVM_GET_MSRS):
        assert attempt(process, fd, request, guest.place(buffer))[0] == 0
        assert buffer == b"\xaa" * 416
    assert attempt(process, fd, kvm.KVM_SET_FPU, UNMAPPED)[0] == 0
    regs = bytearray(144)
    attempt(process, fd, kvm.KVM_GET_REGS, guest.place(regs))
    assert kvm_vcpu.Regs.decode(regs).rip == 0xFFF0, "KVM's stale copy"


def test_the_old_type_has_no_x87_in_its_vmsa(host: Simulator, process: Process) -> None:
    guest = LegacyMachine(process, DEFAULT)
    vcpus(guest, 1)
    guest.start(ES_POLICY)
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    page = next(iter(host.kvm.vms)).vcpus[0].page
    assert page is not None
    registers = vmsa.parse(bytes(page))
    assert registers["rip"] == 0xFFF0
    assert not {"mxcsr", "x87_fcw", "x87_ftw"} & set(registers)
