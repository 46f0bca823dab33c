"""SEV and SEV-ES guests that run on a real VM below the model.

What the model encrypts lies encrypted in the caller's memory, where the host sees it; the real processor cannot decrypt
it. So once the guest may run the pages that were encrypted are private: the real VM has them in memory of its own, in
plain, at the same guest addresses, and all others are the caller's memory. What the guest writes there stays there.
DBG_DECRYPT and SEND_UPDATE_DATA see the pages as the guest left them, encrypted for the purpose, so that the firmware's
refusals hold.

A guest that asks for a change of pages between private and shared (KVM_HC_MAP_GPA_RANGE) gets it: its C-bit is that
hypercall, for the real VM has none.
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import replace
from functools import partial

from sev.abi import kvm, kvm_sev
from sev.abi import kvm_sev_legacy as abi
from sev.errors import SevError
from sevd.simulator.control_client import COPY, LENT_MAX, OPEN, SEAL
from sevd.simulator.errnos import until_refused
from sevd.simulator.guest_memory import PAGE
from sevd.simulator.overlay_memory import OverlayMemory, OwnWindow, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeVar

    from sev.abi.record import Record
    from sevd.simulator.overlay import OverlayKernel

    T = TypeVar("T", bound=Record)

BLOCK = 16
"""What the firmware encrypts is a multiple of it."""

FINISHES = frozenset({kvm_sev.LAUNCH_FINISH, kvm_sev.RECEIVE_FINISH})
_FILLS: dict[int, type[abi.LaunchUpdateData | abi.LaunchSecret | abi.ReceiveUpdateData | abi.Debug]] = {
    kvm_sev.LAUNCH_UPDATE_DATA: abi.LaunchUpdateData,
    kvm_sev.LAUNCH_SECRET: abi.LaunchSecret,
    kvm_sev.RECEIVE_UPDATE_DATA: abi.ReceiveUpdateData,
    kvm_sev.DBG_ENCRYPT: abi.Debug,
}
COMMANDS = frozenset({*_FILLS, *FINISHES, kvm_sev.DBG_DECRYPT, kvm_sev.SEND_UPDATE_DATA})
"""Ids that mean something to the real VM."""


class SevOverlay:
    """The memory of one guest, for the model and for the real VM.

    Args:
        kernel: The process.
        fd: The model's VM.
        memory: The real one's slots.
    """

    def __init__(self, kernel: OverlayKernel, fd: int, memory: OverlayMemory) -> None:
        self._kernel = kernel
        self._fd = fd
        self._memory = memory
        self._scratch = 0
        self._page: mmap.mmap | None = None
        self._ranges: list[tuple[int, int]] = []
        self._finished = False

    def command(self, number: int, argument: int) -> int:
        """One of COMMANDS. Raises OSError, the model's, or the real kernel's where the pages cannot be mapped."""
        memory = self._kernel.memory
        data = kvm_sev.SevCmd.decode(memory.read(argument, kvm_sev.SevCmd.size())).data
        if number in FINISHES:
            return self._finish(argument)
        try:
            if self._finished and number == kvm_sev.DBG_DECRYPT:
                return self._decrypt(self._read(abi.Debug, data), argument)
            if self._finished and number == kvm_sev.SEND_UPDATE_DATA:
                return self._send(self._read(abi.SendUpdateData, data), argument)
            if number not in _FILLS:
                return self._model(argument)  # looks at what the caller's memory holds, encrypted, until the finish
            address, size = self._filled(number, data)
            if self._finished:
                self._renew(address, size)
        except (_Unknown, SevError):
            return self._model(argument)  # which says what is wrong
        result = self._model(argument)
        if self._finished:
            self._take(address, size)
        else:
            self._ranges.append((address, size))
        return result

    def each(self, number: int, arguments: Sequence[int]) -> tuple[int, int]:
        """The same command with one envelope after the other, until one fails: (how many succeeded, errno or 0).

        Pages of a guest that leaves or comes go to the model together. Raises OSError as `command` where none began.
        """
        try:
            if number == kvm_sev.RECEIVE_UPDATE_DATA and not self._finished:
                return self._receive_each(arguments)
            if number == kvm_sev.SEND_UPDATE_DATA and self._finished:
                return self._send_each(arguments)
        except (_Unknown, SevError):
            pass  # something is wrong with one of them: the model says it when its turn comes
        follow = partial(self.command, number) if number in COMMANDS else self._model
        return until_refused(follow, arguments)

    def adopt(self, number: int) -> None:
        """A slot was made: memory in it that was encrypted before is private. Raises OSError."""
        for slot in self._memory.slots() if self._finished else ():
            if slot.region.slot == number and slot.window is None:
                for address, size in self._ranges:
                    self._take(address, size, slot)

    def convert(self, gpa: int, pages: int, *, private: bool) -> None:
        """The guest's pages become private or shared, and keep their contents. Raises OSError."""
        first, end = gpa // PAGE, gpa // PAGE + pages
        for slot in self._memory.slots():
            low, high = max(first, slot.gfn), min(end, slot.end)
            while low < high:
                run = self._memory.private_run(low, high - low)
                count = run or self._gap(low, high)
                if bool(run) != private:
                    self._turn(slot, low, count, private=private)
                low += count

    def close(self) -> None:
        """Gives the memory back."""
        page, self._page = self._page, None
        if page is not None:
            self._kernel.memory.release(self._scratch)
            page.close()

    # Commands that put something into the guest.

    def _finish(self, argument: int) -> int:
        """The guest may run: what was encrypted for it so far, in the caller's memory alone, is private from now on."""
        result = self._model(argument)
        merged: list[tuple[int, int]] = []
        for address, size in sorted(self._ranges):
            if merged and address <= sum(merged[-1]):
                start, length = merged.pop()
                address, size = start, max(start + length, address + size) - start  # noqa: PLW2901 - one range of two
            merged.append((address, size))
        self._ranges = merged
        for address, size in merged:
            self._take(address, size)
        for slot in self._memory.slots():
            with contextlib.suppress(OSError):  # memory that is no shared mapping, and holds nothing private
                self._memory.give_window(slot)
        self._finished = True
        return result

    def _filled(self, number: int, data: int) -> tuple[int, int]:
        """(address, bytes) of guest memory that a command fills, to multiples of 16."""
        request = self._read(_FILLS[number], data)
        if isinstance(request, abi.LaunchUpdateData):
            address, size = request.uaddr, request.len
        elif isinstance(request, abi.Debug):
            address, size = request.dst_uaddr, request.len
        else:
            address, size = request.guest_uaddr, request.guest_len
        first = address - address % BLOCK
        return first, address + size - first + -(address + size) % BLOCK

    def _take(self, address: int, size: int, only: Slot | None = None) -> None:
        """What lies encrypted in the caller's memory is the guest's private memory from now on, in all slots or one."""
        for slot, start, length in self._parts(address, size):
            if only not in (None, slot):
                continue
            window = self._memory.give_window(slot)
            base = slot.region.userspace_addr
            first, end = (start - base) // PAGE, (start - base + length - 1) // PAGE + 1
            for edge in {first, end - 1}:
                whole = start <= base + edge * PAGE and base + (edge + 1) * PAGE <= start + length
                if not whole and not self._memory.private_run(slot.gfn + edge, 1):
                    self._move(COPY, base + edge * PAGE, window.private + edge * PAGE, PAGE)
            self._move(OPEN, start, window.private + start - base, length)
            self._memory.change(slot, slot.gfn + first, slot.gfn + end, private=True)

    def _renew(self, address: int, size: int) -> None:
        """Has the caller's memory show, encrypted, what the guest has in pages that are private."""
        for slot, start, length in self._parts(address, size):
            base = slot.region.userspace_addr
            for page in range((start - base) // PAGE, (start - base + length - 1) // PAGE + 1):
                if isinstance(slot.window, OwnWindow) and self._memory.private_run(slot.gfn + page, 1):
                    self._move(SEAL, slot.window.private + page * PAGE, base + page * PAGE, PAGE)

    def _receive_each(self, arguments: Sequence[int]) -> tuple[int, int]:
        memory, parts, lent = self._kernel.memory, list[tuple[int, int]](), list[tuple[int, int]]()
        for argument in arguments:
            data = kvm_sev.SevCmd.decode(memory.read(argument, kvm_sev.SevCmd.size())).data
            parts.append(self._filled(kvm_sev.RECEIVE_UPDATE_DATA, data))
            _append(lent, *parts[-1])
        lent.append(memory.extent(arguments[0]))
        done, failed = self._ask_each(arguments, lent)
        for address, size in parts[:done]:
            _append(self._ranges, address, size)
        return done, failed

    def _ask_each(
        self, arguments: Sequence[int], lent: list[tuple[int, int]], moves: Sequence[tuple[int, int, int]] = ()
    ) -> tuple[int, int]:
        """The commands, with the memory that is theirs meanwhile; pages of `moves` are encrypted before."""
        small = [one for one in lent if one[1] <= LENT_MAX]
        return self._kernel.control.ioctls(
            self._fd, kvm.KVM_MEMORY_ENCRYPT_OP, arguments, change=SEAL, moves=moves, lent=small
        )

    # Commands that look at the guest.

    def _decrypt(self, request: abi.Debug, argument: int) -> int:
        if not request.src_uaddr or not request.dst_uaddr or request.src_uaddr + request.len >= 1 << 64:
            raise _Unknown
        source, target, left = request.src_uaddr, request.dst_uaddr, request.len
        result = 0
        if not left:
            raise _Unknown
        while left:
            size = min(PAGE - source % PAGE, left)
            page, place = self._sealed(source)
            result = self._issue(argument, abi.Debug(place, target, size), page)
            source, target, left = source + size, target + size, left - size
        return result

    def _send(self, request: abi.SendUpdateData, argument: int) -> int:
        whole = request.hdr_len and request.trans_len and request.guest_uaddr
        if not whole or request.guest_uaddr % PAGE + request.guest_len > PAGE:
            raise _Unknown
        page, place = self._sealed(request.guest_uaddr)
        return self._issue(argument, replace(request, guest_uaddr=place), page)

    def _send_each(self, arguments: Sequence[int]) -> tuple[int, int]:
        """Each page is encrypted to where its packet will be, and sent from there."""
        memory = self._kernel.memory
        asked, moves = list[tuple[int, abi.SendUpdateData]](), list[tuple[int, int, int]]()
        for argument in arguments:
            data = kvm_sev.SevCmd.decode(memory.read(argument, kvm_sev.SevCmd.size())).data
            request = self._read(abi.SendUpdateData, data)
            plain, there = self._plain(request.guest_uaddr), request.trans_uaddr
            whole = request.guest_uaddr % PAGE == 0 and request.guest_len == request.trans_len == PAGE
            if not (whole and plain and request.hdr_len) or there % BLOCK:
                raise _Unknown
            asked.append((data, request))
            source, target, length = moves[-1] if moves else (0, 0, 0)
            if (source + length, target + length) == (plain, there):
                moves[-1] = (source, target, length + PAGE)
            else:
                moves.append((plain, there, PAGE))
        if len({request.trans_uaddr // PAGE for _, request in asked}) < len(asked):
            raise _Unknown  # they overlap
        try:
            for data, request in asked:
                memory.write(data, replace(request, guest_uaddr=request.trans_uaddr).encode())
            return self._ask_each(arguments, [memory.extent(arguments[0])], moves)
        finally:
            for data, request in asked:
                memory.write(data, request.encode())

    def _sealed(self, address: int) -> tuple[int, int]:
        """Where the page of a byte lies as the guest has it now (0: it is in no slot), and where that byte will be once
        the page is encrypted: in memory of its own."""
        plain = self._plain(address)
        if not plain:
            return 0, address
        if self._page is None:
            self._page = mmap.mmap(-1, PAGE)
            self._scratch = self._kernel.memory.place(memoryview(self._page))
        return plain, self._scratch + address % PAGE

    def _plain(self, address: int) -> int:
        """Where the page of a byte lies as the guest has it now; 0: it is in no slot."""
        for slot, start, _ in self._parts(address, 1):
            base = slot.region.userspace_addr
            page = (start - base) // PAGE
            private = isinstance(slot.window, OwnWindow) and self._memory.private_run(slot.gfn + page, 1)
            return (slot.window.private if private and isinstance(slot.window, OwnWindow) else base) + page * PAGE
        return 0

    def _read(self, form: type[T], address: int) -> T:
        try:
            return form.decode(self._kernel.memory.read(address, form.size()))
        except OSError:
            raise _Unknown from None

    def _issue(self, argument: int, request: Record, page: int) -> int:
        """The caller's command with another structure, on a page that is encrypted for it if there is one; the status
        goes to the caller's envelope."""
        memory = self._kernel.memory
        command = kvm_sev.SevCmd.decode(memory.read(argument, kvm_sev.SevCmd.size()))
        data = memory.place(request.encode())
        envelope = memory.place(replace(command, data=data).encode())
        try:
            if not page:
                return self._model(envelope)
            then = (kvm.KVM_MEMORY_ENCRYPT_OP, envelope)
            return self._kernel.control.transfer(self._fd, SEAL, page, self._scratch, PAGE, then=then)
        finally:
            after = kvm_sev.SevCmd.decode(memory.read(envelope, kvm_sev.SevCmd.size()))
            memory.write(argument, replace(command, error=after.error).encode())
            memory.release(envelope)
            memory.release(data)

    # Small things.

    def _turn(self, slot: Slot, gfn: int, count: int, *, private: bool) -> None:
        window = self._memory.give_window(slot)
        here = slot.region.userspace_addr + (gfn - slot.gfn) * PAGE
        own = window.private + (gfn - slot.gfn) * PAGE
        if private:
            self._move(COPY, here, own, count * PAGE)
            self._memory.change(slot, gfn, gfn + count, private=True)
            self._move(SEAL, own, here, count * PAGE)
        else:
            self._move(COPY, own, here, count * PAGE)
            self._memory.change(slot, gfn, gfn + count, private=False)

    def _gap(self, gfn: int, end: int) -> int:
        count = 1
        while gfn + count < end and not self._memory.private_run(gfn + count, 1):
            count += 1
        return count

    def _parts(self, address: int, size: int) -> Iterator[tuple[Slot, int, int]]:
        """(slot, address, bytes) of what a range of the caller's memory has in slots."""
        for slot in self._memory.slots():
            start = max(address, slot.region.userspace_addr)
            end = min(address + size, slot.region.userspace_addr + slot.region.memory_size)
            if start < end:
                yield slot, start, end - start

    def _move(self, change: str, source: int, target: int, size: int) -> None:
        self._kernel.control.transfer(self._fd, change, source, target, size)

    def _model(self, argument: int) -> int:
        return self._kernel.model(self._fd, kvm.KVM_MEMORY_ENCRYPT_OP, argument)


def _append(ranges: list[tuple[int, int]], address: int, size: int) -> None:
    """One more range, or a longer last one."""
    last, length = ranges[-1] if ranges else (0, 0)
    if length and last + length == address:
        ranges[-1] = (last, length + size)
    else:
        ranges.append((address, size))


class _Unknown(Exception):
    """The command is not one that goes through: the model refuses it."""
