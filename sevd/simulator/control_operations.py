"""What can be asked over the control socket, one function for each operation: from a message to its answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sev import packets
from sev.errors import MalformedInput, NotPermitted, UsageError, WrongState
from sevd.simulator import control_memory, faults
from sevd.simulator.control_client import IOCTLS_MAX, LENT_MAX, LENT_RANGES
from sevd.simulator.errnos import fail
from sevd.simulator.process import Process
from sevd.simulator.simulator import Simulator
from sevd.simulator.vcpu import VcpuFile

Message = dict[str, object]

_U32, _U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


class Session:
    """Who asks, and of what.

    Args:
        simulator: The host.
        process: The process behind the connection.
        uid: Its user.
    """

    def __init__(self, simulator: Simulator, process: Process, uid: int) -> None:
        self.simulator = simulator
        self.process = process
        self.uid = uid

    def need_authority(self) -> None:
        """Raises NotPermitted for users who may not break the host."""
        if self.uid not in (0, os.geteuid()):
            raise NotPermitted(
                "faults are for root, and for the user that runs the simulator",
                remedy="Ask as that user.",
            )


class KeyQuestion(NamedTuple):
    """MSG_KEY_REQ as it was asked for (sevd.simulator.guest_player.GuestKeyRequest)."""

    root_key: int
    key_selection: int
    guest_field_select: int
    vmpl: int
    guest_svn: int
    tcb_version: int


def _number(message: Message, name: str, most: int = _U64) -> int:
    value = packets.whole(message, name)
    if value > most:
        raise MalformedInput(f"{name}: {value:#x}, expected at most {most:#x}", field=name)
    return value


def _open(session: Session, message: Message) -> Message:
    return {"fd": session.process.open(packets.text(message, "path"), _number(message, "flags", _U32))}


def _ioctl(session: Session, message: Message) -> Message:
    fd, request = _number(message, "fd", _U32), _number(message, "request", _U32)
    return {"result": session.process.ioctl(fd, request, _number(message, "argument"))}


def _ioctls(session: Session, message: Message) -> Message:
    fd, request = _number(message, "fd", _U32), _number(message, "request", _U32)
    arguments = message.get("arguments")
    if not isinstance(arguments, list) or len(arguments) > IOCTLS_MAX:
        raise MalformedInput(f"arguments: expected a list of at most {IOCTLS_MAX} numbers", field="arguments")
    numbers = [_number({"arguments": one}, "arguments") for one in arguments]
    moves = packets.runs(message, "moves", 3)
    lent = packets.runs(message, "lent", 2)
    if any(address < 0 or not 0 <= size <= LENT_MAX for address, size in lent) or len(lent) > LENT_RANGES:
        raise MalformedInput(f"lent: expected at most {LENT_RANGES} ranges of {LENT_MAX} bytes", field="lent")
    with session.process.memory.lent([(address, size) for address, size in lent]):
        if moves:
            control_memory.move_each(session.simulator, session.process, fd, packets.text(message, "change"), moves)
        done, failed = session.process.ioctls(fd, request, numbers)
    return {"done": done, "failed": failed}


def _close(session: Session, message: Message) -> Message:
    session.process.close(_number(message, "fd", _U32))
    return {}


def _discard(session: Session, message: Message) -> Message:
    fd = _number(message, "fd", _U32)
    session.process.discard(fd, _number(message, "offset", _U64 >> 1), _number(message, "size", _U64 >> 1))
    return {}


def _name(session: Session, message: Message) -> Message:
    session.simulator.name(session.process, _number(message, "fd", _U32), packets.text(message, "guest_id"))
    return {}


def _digest(session: Session, message: Message) -> Message:
    return {"digest": session.simulator.launch_digest(session.process, _number(message, "fd", _U32)).hex()}


def _asid(session: Session, message: Message) -> Message:
    return {"asid": session.simulator.asid(session.process, _number(message, "fd", _U32))}


def _report(session: Session, message: Message) -> Message:
    data, vmpl = packets.octets(message, "report_data"), _number(message, "vmpl", _U32)
    fd, selection = _number(message, "fd", _U32), _number(message, "key_selection", _U32)
    return {"report": session.simulator.guest_report(session.process, fd, data, vmpl, selection).hex()}


def _key(session: Session, message: Message) -> Message:
    question = KeyQuestion(**{name: _number(message, name) for name in KeyQuestion._fields})
    return {"key": session.simulator.guest_key(session.process, _number(message, "fd", _U32), question).hex()}


def _vmsa(session: Session, message: Message) -> Message:
    file = session.process.take(_number(message, "fd", _U32))
    try:
        if not isinstance(file, VcpuFile):
            raise UsageError("vmsa: the descriptor is no vCPU", field="fd")
        if file.vcpu.vm.owner is not session.process:
            fail(errno.EIO)
        page = file.vcpu.page
    finally:
        file.drop()
    if page is None:
        raise WrongState("this vCPU was not measured yet", metadata={"state": "created", "allowed": "finish"})
    return {"page": bytes(page).hex()}


def _memory(session: Session, message: Message) -> Message:
    control_memory.transfer(session.simulator, session.process, _number(message, "fd", _U32), message)
    return _ioctl(session, message) if "request" in message else {}


def _host(session: Session, message: Message) -> Message:
    del message
    facts = session.simulator.host_facts()
    return {
        "product": facts.product,
        "cpu_family": facts.cpu_family,
        "cpu_model": facts.cpu_model,
        "cpu_stepping": facts.cpu_stepping,
        "kernel": facts.kernel,
        "technologies": list(facts.technologies),
        "asids": {name: list(pair) for name, pair in session.simulator.asids().items()},
    }


def _committed(session: Session, message: Message) -> Message:
    del message
    return {"committed_tcb": session.simulator.committed_tcb()}


def _endorsements(session: Session, message: Message) -> Message:
    del message
    return {"endorsements": {kind: der.hex() for kind, der in session.simulator.endorsements().items()}}


def _sev_certificates(session: Session, message: Message) -> Message:
    del message
    return {"certificates": {kind: data.hex() for kind, data in session.simulator.sev_certificates().items()}}


def _fault(session: Session, message: Message) -> Message:
    session.need_authority()
    session.simulator.inject(faults.parse(packets.text(message, "spec")))
    return {}


def _faults(session: Session, message: Message) -> Message:
    del message
    session.need_authority()
    found = session.simulator.injected()
    return {
        "faults": [{"spec": str(fault), "happened": happened} for fault, happened in found],
        "dead": session.simulator.ccp.dead,
    }


def _firmware_update(session: Session, message: Message) -> Message:
    from sevd.simulator import firmware_update

    session.need_authority()
    commit = message.get("commit", False)
    if not isinstance(commit, bool):
        raise MalformedInput("commit: expected true or false", field="commit")
    tcb = packets.text(message, "tcb") if "tcb" in message else ""
    firmware_update.update(session.simulator, packets.text(message, "version"), tcb, commit=commit)
    return {}


def _power_loss(session: Session, message: Message) -> Message:
    del message
    session.need_authority()
    session.simulator.inject(faults.Fault("", faults.POWER_LOSS))
    return {}


OPERATIONS: Mapping[str, Callable[[Session, Message], Message]] = {
    "open": _open,
    "ioctl": _ioctl,
    "ioctls": _ioctls,
    "close": _close,
    "discard": _discard,
    "name": _name,
    "digest": _digest,
    "asid": _asid,
    "report": _report,
    "key": _key,
    "vmsa": _vmsa,
    "memory": _memory,
    "host": _host,
    "committed": _committed,
    "endorsements": _endorsements,
    "sev-certificates": _sev_certificates,
    "fault": _fault,
    "faults": _faults,
    "power-loss": _power_loss,
    "firmware-update": _firmware_update,
}
