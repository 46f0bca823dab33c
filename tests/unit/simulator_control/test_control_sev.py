"""SEV guests of a process that is elsewhere: its memory is encrypted in place, over the control socket alone."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from hashlib import sha256

import pytest

from sev.abi import kvm, kvm_sev
from sev.abi import kvm_sev_legacy as abi
from sev.abi.record import Record
from sev.errors import MalformedInput, UsageError, WrongState
from sev.session import measurement, secret
from sevd.simulator.overlay import OverlayKernel
from tests.support.control import NO_KVM, Served
from tests.support.legacy_machine import expected, owners_start

PAGE = 4096


class Guest:
    """An SEV guest of this process, on the served host."""

    def __init__(self, served: Served, pages: int = 16) -> None:
        self.kernel = served.kernel()
        memory = self.kernel.memory
        self.sev = self.kernel.open(served.sev, os.O_RDONLY)
        device = self.kernel.open(NO_KVM, os.O_RDWR)
        self.vm = self.kernel.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SEV)
        self.ram = mmap.mmap(-1, pages * PAGE)
        self.view = memoryview(self.ram)
        self.address = memory.place(self.view)
        self.scratch = mmap.mmap(-1, PAGE)
        self.scratch_at = memory.place(memoryview(self.scratch))
        self.op(kvm_sev.SEV_INIT2, kvm_sev.SevInit())

    def op(self, number: int, data: Record | bytes | None = None) -> bytes:
        """A command; the structure as it came back."""
        memory = self.kernel.memory
        raw = bytearray((data.encode() if isinstance(data, Record) else data) or b"\0")
        place = memory.place(raw)
        envelope = memory.place(kvm_sev.SevCmd(number, place if data else 0, 0, self.sev).encode())
        try:
            self.kernel.ioctl(self.vm, kvm.KVM_MEMORY_ENCRYPT_OP, envelope)
            return bytes(raw)
        finally:
            memory.release(envelope)
            memory.release(place)

    def put(self, data: bytes) -> int:
        """An address for data."""
        return self.kernel.memory.place(data)


@pytest.fixture
def guest(served: Served) -> Iterator[Guest]:
    made = Guest(served)
    yield made
    made.kernel.exit()


def test_a_whole_launch(served: Served, guest: Guest) -> None:
    host = served.simulator
    content = os.urandom(8 * PAGE)
    guest.view[: len(content)] = content
    session, start = owners_start(host, 1)
    request = abi.LaunchStart(
        0, 1, guest.put(start.certificate), len(start.certificate), guest.put(start.session), len(start.session)
    )
    assert abi.LaunchStart.decode(guest.op(kvm_sev.LAUNCH_START, request)).handle == 1
    guest.op(kvm_sev.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(guest.address, len(content)))
    assert bytes(guest.view[: len(content)]) != content
    assert guest.kernel.launch_digest(guest.vm) == sha256(content).digest()
    assert guest.kernel.asid(guest.vm) == 100
    out = bytearray(48)
    guest.op(kvm_sev.LAUNCH_MEASURE, abi.LaunchMeasure(guest.kernel.memory.place(out), 48))
    launch = expected(host, 1, sha256(content).digest())
    packet = secret.seal(session.keys, b"for the guest", measurement.check(session.keys.tik, bytes(out), launch))
    request_ = abi.LaunchSecret(guest.put(packet.header), 52, guest.address + PAGE, 16, guest.put(packet.payload), 16)
    guest.op(kvm_sev.LAUNCH_SECRET, request_)
    guest.op(kvm_sev.LAUNCH_FINISH)
    assert abi.GuestStatus.decode(guest.op(kvm_sev.GUEST_STATUS, bytes(12))).state == abi.STATE_RUNNING
    assert b"for the guest" not in bytes(guest.view)
    guest.kernel.control.transfer(guest.vm, "open", guest.address, guest.scratch_at, PAGE)
    assert guest.scratch[:] == content[:PAGE]
    guest.kernel.control.transfer(guest.vm, "open", guest.address + PAGE, guest.scratch_at, PAGE)
    assert guest.scratch[:16] == b"for the guest\0\0\0"
    assert served.simulator.guest_count() == 1
    guest.kernel.exit()


def test_memory_that_cannot_be_written_cannot_be_encrypted(guest: Guest) -> None:
    guest.op(kvm_sev.LAUNCH_START, abi.LaunchStart())
    fixed = mmap.mmap(-1, PAGE)
    address = guest.kernel.memory.place(memoryview(fixed))
    from sevd.simulator.overlay_memory import _libc

    assert _libc.mprotect(_pointer(address), _size(PAGE), mmap.PROT_READ) == 0
    try:
        with pytest.raises(OSError, match="Cannot allocate memory"):
            guest.op(kvm_sev.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(address, PAGE))
        assert fixed[:] == bytes(PAGE)
        region = guest.put(kvm.EncRegion(address, PAGE).encode())
        with pytest.raises(OSError, match="Cannot allocate memory"):
            guest.kernel.ioctl(guest.vm, kvm.KVM_MEMORY_ENCRYPT_REG_REGION, region)
    finally:
        _libc.mprotect(_pointer(address), _size(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)
    guest.op(kvm_sev.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(address, PAGE))
    assert fixed[:] != bytes(PAGE)


def _pointer(address: int) -> object:
    import ctypes

    return ctypes.c_void_p(address)


def _size(size: int) -> object:
    import ctypes

    return ctypes.c_size_t(size)


def test_memory_is_sealed_and_opened_for_its_owner_alone(served: Served, guest: Guest) -> None:
    control = guest.kernel.control
    with pytest.raises(WrongState, match="not started"):
        control.transfer(guest.vm, "copy", guest.address, guest.scratch_at, PAGE)
    guest.op(kvm_sev.LAUNCH_START, abi.LaunchStart())
    guest.view[:5] = b"plain"
    control.transfer(guest.vm, "seal", guest.address, guest.address + PAGE, PAGE)
    assert bytes(guest.view[PAGE : PAGE + 5]) != b"plain"
    control.transfer(guest.vm, "open", guest.address + PAGE, guest.scratch_at, PAGE)
    assert guest.scratch[:5] == b"plain"
    control.transfer(guest.vm, "copy", guest.address + 1, guest.scratch_at, 4)
    assert guest.scratch[:5] == b"lainn"
    with pytest.raises(MalformedInput, match="expected copy, open or seal"):
        control.transfer(guest.vm, "melt", guest.address, guest.scratch_at, PAGE)
    with pytest.raises(UsageError, match="multiples of 16"):
        control.transfer(guest.vm, "open", guest.address + 8, guest.scratch_at, 16)
    with pytest.raises(OSError, match="Bad address"):
        control.transfer(guest.vm, "open", 0x1000, guest.scratch_at, 16)
    with pytest.raises(UsageError, match="not an SEV or SEV-ES guest"):
        control.transfer(guest.vm - 1, "copy", guest.address, guest.scratch_at, PAGE)
    with OverlayKernel(served.folder, NO_KVM).control as stranger, pytest.raises(OSError, match="Bad file descriptor"):
        stranger.transfer(guest.vm, "copy", guest.address, guest.scratch_at, PAGE)
