"""KVM_MEMORY_ENCRYPT_OP: the envelope's rules, initialisation and teardown (arch/x86/kvm/svm/sev.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sev.abi import kvm
from sev.abi import kvm_sev as abi
from sevd.simulator import kvm_sev_guest, kvm_sev_migration, kvm_snp
from sevd.simulator.errnos import Reply, fail
from sevd.simulator.kvm_sev_guest import Handler

if TYPE_CHECKING:
    from sevd.simulator.asids import AsidPool
    from sevd.simulator.kvm_vm import Vm
    from sevd.simulator.process import Process

_MODERN = (kvm.VM_TYPE_SEV, kvm.VM_TYPE_SEV_ES, kvm.VM_TYPE_SNP)


class SevState:
    """SEV's part of a VM.

    Attributes:
        needs_init: A VM of a type that INIT2 must still initialise.
        active: It has an ASID.
        es: With encrypted state.
        snp: SNP.
        asid: Its ASID, 0 if none.
        pool: Where that came from, and goes back to, also if KVM was loaded anew meanwhile.
        fd: The descriptor number that the start of the launch left; 0 before.
        vmsa_features: SEV_FEATURES of its vCPUs.
        ghcb_version: GHCB protocol version offered to it.
        policy: Guest policy of the start.
        context: The firmware's context of an SNP guest, None before the start.
        handle: The firmware's handle of an SEV or SEV-ES guest, 0 before the start.
        finished: The launch is finished.
        certificates: The guest's certificate requests go to user space.
        regions: Registered ranges of user memory, (address, size).
    """

    def __init__(self, vm_type: int) -> None:
        self.needs_init = vm_type in _MODERN
        self.active = False
        self.es = False
        self.snp = False
        self.asid = 0
        self.pool: AsidPool | None = None
        self.fd = 0
        self.vmsa_features = 0
        self.ghcb_version = 0
        self.policy = 0
        self.context: int | None = None
        self.handle = 0
        self.finished = False
        self.certificates = False
        self.regions: list[tuple[int, int]] = []


def encrypt_op(vm: Vm, process: Process, argument: int) -> int:
    """The ioctl, from the VM's owner. Raises OSError with KVM's errno."""
    if not vm.module.sev:
        fail(errno.ENOTTY)
    if not argument:
        return 0
    memory = process.memory
    command = abi.SevCmd.decode(memory.read(argument, abi.SevCmd.size()))
    with vm.lock:
        if vm.sev.snp and command.id < abi.SNP_MIN_ID:
            fail(errno.EPERM)
        handler = _handler(vm, command.id)
        reply = Reply()
        try:
            handler(vm, process, command, reply)
        finally:
            error = command.error if reply.error is None else reply.error
            memory.write(argument, abi.SevCmd(command.id, command.data, error, command.sev_fd).encode())
    return 0


def destroy(vm: Vm) -> None:
    """The VM ends: context and ASID are given back. A context that cannot be decommissioned costs the ASID."""
    sev = vm.sev
    sev.regions.clear()
    if not sev.active:
        return
    sev.active = False
    pool = sev.pool
    assert pool is not None, "whoever is active has an ASID"
    context, sev.context = sev.context, None
    handle, sev.handle = sev.handle, 0
    if handle:
        kvm_sev_guest.unbind(vm, handle)
    if context is not None:
        firmware = vm.module.ccp.firmware
        try:
            vm.module.ccp.call(Reply(), lambda: firmware.snp_decommission(context))
        except OSError:
            pool.leak(sev.asid)
            return
    pool.give(sev.asid)


def _handler(vm: Vm, number: int) -> Handler:
    """What answers an id; for unknown ones EINVAL, without copying back."""
    if number == abi.SEV_ES_INIT and not vm.module.es:
        fail(errno.ENOTTY)
    handler = _of_guest if number in _OF_GUESTS else _HANDLERS.get(number)
    return fail(errno.EINVAL) if handler is None else handler


def _of_guest(vm: Vm, process: Process, command: abi.SevCmd, reply: Reply) -> None:
    """The commands of SEV and SEV-ES guests."""
    if not vm.sev.active:
        fail(errno.EINVAL if command.id == abi.RECEIVE_UPDATE_DATA else errno.ENOTTY)
    if command.id == abi.LAUNCH_UPDATE_VMSA and not vm.sev.es:
        fail(errno.ENOTTY)
    _OF_GUESTS[command.id](vm, process, command, reply)


def _init_legacy(vm: Vm, process: Process, command: abi.SevCmd, reply: Reply) -> None:
    del process
    if vm.type != kvm.VM_TYPE_DEFAULT:
        fail(errno.EINVAL)
    es = command.id == abi.SEV_ES_INIT
    _initialise(vm, abi.SevInit(ghcb_version=1 if es else 0), reply, es=es)


def _init2(vm: Vm, process: Process, command: abi.SevCmd, reply: Reply) -> None:
    if not vm.sev.needs_init or vm.type not in _MODERN:
        fail(errno.EINVAL)
    request = abi.SevInit.decode(process.memory.read(command.data, abi.SevInit.size()))
    _initialise(vm, request, reply, es=vm.type != kvm.VM_TYPE_SEV)


def _initialise(vm: Vm, request: abi.SevInit, reply: Reply, *, es: bool) -> None:
    """__sev_guest_init: the checks in their order, then ASID and platform."""
    sev, module = vm.sev, vm.module
    snp = vm.type == kvm.VM_TYPE_SNP
    version = request.ghcb_version
    wrong = (
        vm.vcpus
        or request.flags
        or request.vmsa_features & ~module.vmsa_features(vm.type)
        or version > abi.GHCB_VERSION_MAX
        or (version and not es)
        or (snp and version == 1)
        or sev.active
    )
    if wrong:
        fail(errno.EINVAL)
    if es and not version:
        version = abi.GHCB_VERSION_MAX
    pool = module.asids["sev_es" if es else "sev"]
    asid = pool.take()
    try:
        module.ccp.initialise(reply)
    except BaseException:
        reply.error = reply.error or 0
        pool.give(asid)
        raise
    if vm.dead:
        fail(errno.EIO)
    # A platform that was up already leaves the caller's `error` as it was.
    sev.active, sev.es, sev.snp, sev.asid, sev.pool = True, es, snp, asid, pool
    sev.vmsa_features = request.vmsa_features | (abi.VMSA_SNP_ACTIVE if snp else 0)
    sev.ghcb_version = version
    sev.needs_init = False


def _enable_certificates(vm: Vm, process: Process, command: abi.SevCmd, reply: Reply) -> None:
    del process, command, reply
    if not vm.sev.snp or vm.vcpus:
        fail(errno.EINVAL)
    vm.sev.certificates = True


_OF_GUESTS = {**kvm_sev_guest.HANDLERS, **kvm_sev_migration.HANDLERS}
_HANDLERS: dict[int, Handler] = {
    abi.SEV_INIT: _init_legacy,
    abi.SEV_ES_INIT: _init_legacy,
    abi.SEV_INIT2: _init2,
    abi.SNP_LAUNCH_START: kvm_snp.launch_start,
    abi.SNP_LAUNCH_UPDATE: kvm_snp.launch_update,
    abi.SNP_LAUNCH_FINISH: kvm_snp.launch_finish,
    abi.SNP_ENABLE_REQ_CERTS: _enable_certificates,
}
