"""SEND and RECEIVE of SEV guests as KVM answers them (arch/x86/kvm/svm/sev.c).

There is no command for VMSAs: Linux does not migrate SEV-ES guests.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sev.abi import kvm_sev as ids
from sev.abi import kvm_sev_legacy as abi
from sev.abi.kvm_sev import SevCmd
from sevd.simulator.errnos import FirmwareRefused, Reply, fail
from sevd.simulator.kvm_sev_guest import Handler, ask, begin, simple
from sevd.simulator.kvm_sev_memory import PAGE, blob, pin_page
from sevd.simulator.legacy_migration import Receiver

if TYPE_CHECKING:
    from sevd.simulator.kvm_vm import Vm
    from sevd.simulator.process import Process

KMALLOC_MAX = 4 << 20
"""Bytes that the kernel gives out in one piece."""

_NOBODY = Receiver(b"", b"", b"")


def send_start(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 8: the launch blob for the receiver. Policy and length come back whatever the outcome, the blob on success."""
    memory, start = process.memory, vm.module.ccp.firmware.send_start
    request = abi.SendStart.decode(memory.read(command.data, abi.SendStart.size()))
    if not request.session_len:
        try:
            ask(vm, process, reply, lambda: start(vm.sev.handle, _NOBODY, 0))
        except FirmwareRefused as refused:
            length = refused.lengths[0] if refused.lengths else 0
            memory.write(command.data, replace(request, session_len=length).encode())
            raise
    if not request.pdh_cert_uaddr or not request.pdh_cert_len or not request.session_uaddr:
        fail(errno.EINVAL)
    if request.session_len > abi.BLOB_MAX:
        fail(errno.EINVAL)
    receiver = Receiver(
        blob(process, request.pdh_cert_uaddr, request.pdh_cert_len),
        blob(process, request.plat_certs_uaddr, request.plat_certs_len),
        blob(process, request.amd_certs_uaddr, request.amd_certs_len),
    )
    policy, length = 0, request.session_len
    try:
        policy, session = ask(vm, process, reply, lambda: start(vm.sev.handle, receiver, request.session_len))
        memory.write(request.session_uaddr, session.ljust(request.session_len, b"\0"))
        length = len(session)
    except FirmwareRefused as refused:
        length = refused.lengths[0] if refused.lengths else length
        memory.write(command.data, replace(request, policy=0, session_len=length).encode())
        raise
    memory.write(command.data, replace(request, policy=policy, session_len=length).encode())


def send_update_data(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 9: a packet of at most a page of guest memory."""
    memory, update = process.memory, vm.module.ccp.firmware.send_update_data
    request = abi.SendUpdateData.decode(memory.read(command.data, abi.SendUpdateData.size()))
    if not request.trans_len or not request.hdr_len:
        try:
            ask(vm, process, reply, lambda: update(vm.sev.handle, b"", 0, 0, 0))
        except FirmwareRefused as refused:
            header, packet = refused.lengths or (0, 0)
            memory.write(command.data, replace(request, hdr_len=header, trans_len=packet).encode())
            raise
    if not (request.trans_uaddr and request.guest_uaddr and request.guest_len and request.hdr_uaddr):
        fail(errno.EINVAL)
    if request.guest_uaddr % PAGE + request.guest_len > PAGE:
        fail(errno.EINVAL)
    sealed = pin_page(vm, process, request.guest_uaddr, request.guest_len)
    location = memory.location(request.guest_uaddr)
    if max(request.hdr_len, request.trans_len) > KMALLOC_MAX:
        fail(errno.ENOMEM)
    header_, packet_ = ask(
        vm, process, reply,
        lambda: update(vm.sev.handle, sealed, location, request.hdr_len, request.trans_len),
    )  # fmt: skip
    # As long as the caller's buffers are.
    memory.write(request.trans_uaddr, packet_.ljust(request.trans_len, b"\0"))
    memory.write(request.hdr_uaddr, header_.ljust(request.hdr_len, b"\0"))


def receive_start(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 12: a guest that is going to come, bound to the VM's ASID."""
    request = abi.ReceiveStart.decode(process.memory.read(command.data, abi.ReceiveStart.size()))
    if not (request.pdh_uaddr and request.pdh_len and request.session_uaddr and request.session_len):
        fail(errno.EINVAL)
    pdh = blob(process, request.pdh_uaddr, request.pdh_len)
    session = blob(process, request.session_uaddr, request.session_len)
    start = partial(vm.module.ccp.firmware.receive_start, request.handle, request.policy, pdh, session)
    begin(vm, process, command, reply, start, lambda handle: replace(request, handle=handle).encode())
    vm.sev.policy = request.policy


def receive_update_data(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """id 13: a packet into at most a page of guest memory."""
    memory = process.memory
    request = abi.ReceiveUpdateData.decode(memory.read(command.data, abi.ReceiveUpdateData.size()))
    if not all(getattr(request, name) for name in request.fields()):
        fail(errno.EINVAL)
    if request.guest_uaddr % PAGE + request.guest_len > PAGE:
        fail(errno.EINVAL)
    header = blob(process, request.hdr_uaddr, request.hdr_len)
    packet = blob(process, request.trans_uaddr, request.trans_len)
    pin_page(vm, process, request.guest_uaddr, request.guest_len)
    location = memory.location(request.guest_uaddr)
    update = vm.module.ccp.firmware.receive_update_data
    sealed = ask(vm, process, reply, lambda: update(vm.sev.handle, header, location, request.guest_len, packet))
    memory.write(request.guest_uaddr, sealed)


def end(vm: Vm, process: Process, command: SevCmd, reply: Reply) -> None:
    """ids 11, 15 and 21: the sending or receiving ends."""
    firmware = vm.module.ccp.firmware
    function = {
        ids.SEND_FINISH: firmware.send_finish,
        ids.SEND_CANCEL: firmware.send_cancel,
        ids.RECEIVE_FINISH: firmware.receive_finish,
    }[command.id]
    simple(vm, process, command, reply, function)
    vm.sev.finished = command.id != ids.SEND_FINISH


HANDLERS: dict[int, Handler] = {
    ids.SEND_START: send_start,
    ids.SEND_UPDATE_DATA: send_update_data,
    ids.SEND_FINISH: end,
    ids.SEND_CANCEL: end,
    ids.RECEIVE_START: receive_start,
    ids.RECEIVE_UPDATE_DATA: receive_update_data,
    ids.RECEIVE_FINISH: end,
}
