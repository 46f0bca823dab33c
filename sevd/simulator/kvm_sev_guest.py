"""The launch of SEV and SEV-ES guests as KVM answers it, their status, report and debugging (arch/x86/kvm/svm/sev.c).

KVM keeps no state of the launch: what comes in the wrong order reaches the firmware, which refuses it. Only the first
command of a guest takes its /dev/sev from the caller's envelope; all others look the remembered descriptor number up in
the process that asks, 0 before any start.

What a command encrypts lies encrypted in the caller's own memory afterwards, as on real hosts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sev.abi import kvm_sev as ids
from sev.abi import kvm_sev_legacy as abi
from sev.abi.kvm_sev import SevCmd
from sevd.simulator.errnos import FirmwareRefused, Reply, fail
from sevd.simulator.kvm_sev_memory import PAGE, blob, pin, pin_page, runs
from sevd.simulator.memory_cipher import BLOCK

if TYPE_CHECKING:
    from sevd.simulator.kvm_vm import Vm
    from sevd.simulator.process import Process

T = TypeVar("T")


def ask(vm: Vm, process: Process, reply: Reply, function: Callable[[], T]) -> T:
    """One firmware command by way of the remembered descriptor. Raises OSError: EBADF, or as `Ccp.call`."""
    ccp = vm.module.ccp
    ccp.resolve(process, vm.sev.fd)
    return ccp.call(reply, function)


def launch_start(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 2: a guest in the firmware, bound to the VM's ASID."""
    request = abi.LaunchStart.decode(process.memory.read(command.data, abi.LaunchStart.size()))
    certificate = blob(process, request.dh_uaddr, request.dh_len) if request.dh_uaddr else None
    session = blob(process, request.session_uaddr, request.session_len) if request.session_uaddr else None
    start = partial(vm.module.ccp.firmware.launch_start, request.handle, request.policy, certificate, session)
    begin(vm, process, command, reply, start, lambda handle: replace(request, handle=handle).encode())
    vm.sev.policy = request.policy


def begin(
    vm: Vm,
    process: Process,
    command: SevCmd,
    reply: Reply,
    start: Callable[[], int],
    answer: Callable[[int], bytes],
) -> None:
    """Has the firmware make a guest, and binds the ASID to it; what fails is undone.

    Args:
        vm: The VM.
        process: Its owner.
        command: The envelope, with the descriptor.
        reply: Takes the status.
        start: The firmware command, to a handle.
        answer: The caller's structure with that handle.
    """
    sev, ccp = vm.sev, vm.module.ccp
    firmware = ccp.firmware
    ccp.resolve(process, command.sev_fd)
    handle = ccp.call(reply, start)
    try:
        ccp.call(reply, partial(firmware.activate, handle, sev.asid))
    except OSError:
        _quietly(vm, partial(firmware.decommission, handle))
        raise
    try:
        process.memory.write(command.data, answer(handle))
    except OSError:
        unbind(vm, handle)
        raise
    if vm.dead:
        fail(errno.EIO)
    sev.handle, sev.fd = handle, command.sev_fd


def unbind(vm: Vm, handle: int) -> None:
    """DEACTIVATE and DECOMMISSION, whatever comes of them."""
    firmware = vm.module.ccp.firmware
    _quietly(vm, partial(firmware.deactivate, handle))
    _quietly(vm, partial(firmware.decommission, handle))


def _quietly(vm: Vm, function: Callable[[], None]) -> None:
    try:
        vm.module.ccp.call(Reply(), function)
    except OSError:
        return


def update_data(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 3: measures and encrypts memory; what was done before a refusal stays done."""
    request = abi.LaunchUpdateData.decode(process.memory.read(command.data, abi.LaunchUpdateData.size()))
    pin(vm, process, request.uaddr, request.len)
    memory, update = process.memory, vm.module.ccp.firmware.launch_update_data
    for address, size in runs(request.uaddr, request.len):
        with memory.changing(address, size) as piece:
            ask(vm, process, reply, partial(update, vm.sev.handle, piece, memory.location(address)))


def update_vmsa(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 4: measures and encrypts the state of every vCPU, in the order in which they were made."""
    del command
    update = vm.module.ccp.firmware.launch_update_vmsa
    for number, vcpu in enumerate(vm.vcpus, 1):
        page = vcpu.vmsa(vm.sev.vmsa_features)
        ask(vm, process, reply, partial(update, vm.sev.handle, bytes(page), number * PAGE))
        vcpu.page = page
        vcpu.protected = True


def secret(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 5: puts a secret of the guest's owner into its memory."""
    memory = process.memory
    request = abi.LaunchSecret.decode(memory.read(command.data, abi.LaunchSecret.size()))
    pin(vm, process, request.guest_uaddr, request.guest_len)
    packet = blob(process, request.trans_uaddr, request.trans_len)
    header = blob(process, request.hdr_uaddr, request.hdr_len)
    inject = vm.module.ccp.firmware.launch_secret
    location = memory.location(request.guest_uaddr)
    sealed = ask(vm, process, reply, partial(inject, vm.sev.handle, header, location, request.guest_len, packet))
    memory.write(request.guest_uaddr, sealed)


def measure(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 6: the measurement."""
    request = abi.LaunchMeasure.decode(process.memory.read(command.data, abi.LaunchMeasure.size()))
    firmware = vm.module.ccp.firmware
    length = _fetch(
        vm, process, reply, request.uaddr, request.len, lambda room: firmware.launch_measure(vm.sev.handle, room),
        lambda size: process.memory.write(command.data, replace(request, len=size).encode()),
    )  # fmt: skip
    process.memory.write(command.data, replace(request, len=length).encode())


def attestation(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 20: an attestation report, signed by the PEK."""
    request = abi.AttestationReport.decode(process.memory.read(command.data, abi.AttestationReport.size()))
    firmware = vm.module.ccp.firmware
    length = _fetch(
        vm, process, reply, request.uaddr, request.len,
        lambda room: firmware.attestation(vm.sev.handle, request.mnonce, room),
        lambda size: process.memory.write(command.data, replace(request, len=size).encode()),
    )  # fmt: skip
    process.memory.write(command.data, replace(request, len=length).encode())


def _fetch(
    vm: Vm,
    process: Process,
    reply: Reply,
    address: int,
    room: int,
    function: Callable[[int], bytes],
    probed: Callable[[int], None],
) -> int:
    """What the firmware answers into a buffer of the caller's; its length. A length is told by a probe alone."""
    if room and address and room > abi.BLOB_MAX:
        fail(errno.EINVAL)
    try:
        answer = ask(vm, process, reply, lambda: function(room if address else 0))
    except FirmwareRefused as refused:
        if not room:
            probed(refused.lengths[0] if refused.lengths else 0)
        raise
    process.memory.write(address, answer.ljust(room, b"\0")[:room])
    return len(answer)


def finish(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 7: the guest may run."""
    simple(vm, process, command, reply, vm.module.ccp.firmware.launch_finish)
    vm.sev.finished = True


def simple(vm: Vm, process: Process, command: SevCmd, reply: Reply, function: Callable[[int], None]) -> None:
    """A command that takes the handle alone."""
    del command
    ask(vm, process, reply, lambda: function(vm.sev.handle))


def guest_status(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 16: handle, policy and state."""
    answer = ask(vm, process, reply, lambda: vm.module.ccp.firmware.guest_status(vm.sev.handle))
    handle, policy = (int.from_bytes(answer[at : at + 4], "little") for at in (0, 4))
    process.memory.write(command.data, abi.GuestStatus(handle, policy, answer[12]).encode())


def debug(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 17 and 18: reads or writes guest memory where the policy allows, page by page, by the byte."""
    request = abi.Debug.decode(process.memory.read(command.data, abi.Debug.size()))
    source, target, left = request.src_uaddr, request.dst_uaddr, request.len
    if not left or source + left >= 1 << 64 or not source or not target:
        fail(errno.EINVAL)
    piece = _read_guest if command.id == ids.DBG_DECRYPT else _write_guest
    while left:
        size = min(PAGE - source % PAGE, left)
        if command.id == ids.DBG_ENCRYPT:
            size = min(size, PAGE - target % PAGE)
        piece(vm, process, reply, source, target, size)
        source, target, left = source + size, target + size, left - size


def _read_guest(vm: Vm, process: Process, reply: Reply, source: int, target: int, size: int) -> None:
    pin_page(vm, process, target, size, others=1)
    first = source - source % BLOCK
    process.memory.write(target, _clear(vm, process, reply, first, source + size)[source - first :][:size])


def _write_guest(vm: Vm, process: Process, reply: Reply, source: int, target: int, size: int) -> None:
    data = pin_page(vm, process, source, size)
    pin_page(vm, process, target, size, others=1)
    first, end = target - target % BLOCK, target + size
    end += -end % BLOCK
    if (first, end) != (target, target + size):
        before = bytearray(_clear(vm, process, reply, first, end))
        before[target - first : target - first + size] = data
        data = bytes(before)
    location = process.memory.location(first)
    encrypt = vm.module.ccp.firmware.dbg_encrypt
    process.memory.write(first, ask(vm, process, reply, lambda: encrypt(vm.sev.handle, data, 0, location)))


def _clear(vm: Vm, process: Process, reply: Reply, first: int, end: int) -> bytes:
    """Guest memory from `first` on, up to `end` and to a multiple of 16."""
    sealed = pin_page(vm, process, first, end - first + -(end - first) % BLOCK, others=1)
    location = process.memory.location(first)
    decrypt = vm.module.ccp.firmware.dbg_decrypt
    return ask(vm, process, reply, lambda: decrypt(vm.sev.handle, sealed, location, 0))


Handler = Callable[["Vm", "Process", SevCmd, Reply], None]

HANDLERS: dict[int, Handler] = {
    ids.LAUNCH_START: launch_start,
    ids.LAUNCH_UPDATE_DATA: update_data,
    ids.LAUNCH_UPDATE_VMSA: update_vmsa,
    ids.LAUNCH_SECRET: secret,
    ids.LAUNCH_MEASURE: measure,
    ids.LAUNCH_FINISH: finish,
    ids.GUEST_STATUS: guest_status,
    ids.DBG_DECRYPT: debug,
    ids.DBG_ENCRYPT: debug,
    ids.GET_ATTESTATION_REPORT: attestation,
}
