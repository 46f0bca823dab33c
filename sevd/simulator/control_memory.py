"""Memory of SEV and SEV-ES guests over the control socket, for kernels that run a guest which the model encrypted.

    memory {fd, change, source, target, size}      size bytes of the peer's memory, from source to target:
                                                   as they are ("copy"), as the guest reads them ("open"), or as they
                                                   lie in memory when the guest writes them ("seal")

With request and argument an ioctl of the same VM follows, and its result is the answer. Whoever owns a VM may do so
with its guest's memory: nothing of a simulated host protects anything.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sev import packets
from sev.errors import MalformedInput, UsageError, WrongState
from sevd.simulator.control_client import COPY, OPEN, SEAL
from sevd.simulator.errnos import fail
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.kvm_sev_memory import runs
from sevd.simulator.kvm_vm import VmFile
from sevd.simulator.memory_cipher import BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevd.simulator.memory_cipher import MemoryKey
    from sevd.simulator.process import Process
    from sevd.simulator.simulator import Simulator


def transfer(simulator: Simulator, process: Process, fd: int, message: dict[str, object]) -> None:
    """The operation.

    Raises:
        OSError: EFAULT; EIO: another process's VM.
        UsageError: The descriptor is no guest of this host, or numbers that are no multiples of 16.
        WrongState: Its launch was not started.
    """
    move = tuple(packets.whole(message, name) for name in ("source", "target", "size"))
    move_each(simulator, process, fd, packets.text(message, "change"), [move])


def move_each(simulator: Simulator, process: Process, fd: int, change: str, moves: Sequence[tuple[int, ...]]) -> None:
    """The operation for several ranges of memory: (source, target, size). Raises as `transfer`."""
    if change not in (COPY, OPEN, SEAL):
        raise MalformedInput(f"change: {change!r:.20}, expected {COPY}, {OPEN} or {SEAL}", field="change")
    for source, target, size in moves:
        if min(source, target, size) < 0 or (change != COPY and (source | target | size) % BLOCK):
            raise UsageError(f"memory: addresses and size must be multiples of {BLOCK}", field="size")
    key = _key(simulator, process, fd)
    memory = process.memory
    for source, target, size in moves:
        for address, length in runs(source, size):
            there = target + address - source
            data = memory.read(address, length)
            if change == OPEN:
                data = key.decrypt(memory.location(address), data)
            elif change == SEAL:
                data = key.encrypt(memory.location(there), data)
            memory.write(there, data)


def _key(simulator: Simulator, process: Process, fd: int) -> MemoryKey:
    file = process.take(fd)
    try:
        if not isinstance(file, VmFile) or not file.vm.sev.active or file.vm.sev.snp:
            raise UsageError(f"descriptor {fd} is not an SEV or SEV-ES guest", field="fd")
        file.vm.check_owner(process)
        handle = file.vm.sev.handle
    finally:
        file.drop()
    if not handle:
        raise WrongState("the launch of this guest was not started", metadata={"state": "created", "allowed": "start"})
    try:
        return simulator.firmware.legacy_memory(handle)
    except FirmwareStatus:
        return fail(errno.ENXIO)
