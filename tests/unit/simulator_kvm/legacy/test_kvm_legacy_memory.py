"""Memory of SEV and SEV-ES guests in KVM: what is encrypted, pinned and registered, and debugging."""

from __future__ import annotations

import errno
import os
from hashlib import sha256
from pathlib import Path

import pytest

from sev import status
from sev.abi import kvm
from sev.abi import kvm_sev as ids
from sev.abi import kvm_sev_legacy as abi
from sevd.simulator import Simulator
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.process import Process
from tests.support.caller import PAGE, UNTOUCHED
from tests.support.legacy_machine import LegacyMachine, guest_view, short
from tests.support.simulated import simulated_host

UNMAPPED = 0x1000
EIO, EINVAL, ENOMEM = errno.EIO, errno.EINVAL, errno.ENOMEM


# Memory.


def test_update_encrypts_the_callers_memory_in_place(host: Simulator, started: LegacyMachine) -> None:
    content = os.urandom(4 * PAGE)
    started.ram[: 4 * PAGE] = content
    assert short(started.update(PAGE, 2 * PAGE)) == (0, 0)
    assert started.ram[:PAGE] == content[:PAGE]
    assert started.ram[3 * PAGE : 4 * PAGE] == content[3 * PAGE :]
    assert started.ram[PAGE : 3 * PAGE] != content[PAGE : 3 * PAGE]
    assert guest_view(host, started, PAGE, 2 * PAGE) == content[PAGE : 3 * PAGE]
    assert started.decrypted(PAGE, 2 * PAGE) == content[PAGE : 3 * PAGE]
    digest = sha256(content[PAGE : 3 * PAGE]).digest()
    assert host.launch_digest(started.process, started.machine.vm) == digest


def test_memory_may_be_placed_twice(started: LegacyMachine) -> None:
    """Two addresses of the same pages are the same memory, physically."""
    started.ram[PAGE : 2 * PAGE] = b"\7" * PAGE
    again = started.process.memory.place(memoryview(started.ram)[PAGE:])
    assert started.op(ids.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(again, PAGE)).name == "ok"
    assert started.decrypted(PAGE, PAGE) == b"\7" * PAGE


PINS: dict[str, tuple[int, int, int, int]] = {
    # byte of the memory (-1: unmapped), size, errno, error
    "empty": (0, 0, EINVAL, UNTOUCHED),
    "past its end": (63 * PAGE, PAGE + 16, ENOMEM, UNTOUCHED),
    "unmapped": (-1, 16, ENOMEM, UNTOUCHED),
    "unaligned": (8, 16, EIO, status.INVALID_ADDRESS),
    "of 8 bytes": (0, 8, EIO, status.INVALID_LENGTH),
}


@pytest.mark.parametrize("case", PINS)
def test_memory_that_cannot_be_updated(started: LegacyMachine, case: str) -> None:
    first, size, number, error = PINS[case]
    before = bytes(started.ram)
    address = UNMAPPED if first < 0 else started.address + first
    assert short(started.op(ids.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(address, size))) == (number, error)
    assert started.ram == before


def test_an_update_stops_at_the_first_refusal(host: Simulator, process: Process) -> None:
    """What was done before is encrypted and measured."""
    guest = LegacyMachine(process, pages=2048)
    guest.start(0)
    seen: list[str] = []

    def third(name: str) -> None:
        seen.append(name)
        if len(seen) == 3:
            raise FirmwareStatus(status.HWERROR_UNSAFE)

    host.faults = third
    assert short(guest.update(0, len(guest.ram))) == (EIO, status.HWERROR_UNSAFE)
    host.faults = lambda _name: None
    assert seen == ["LAUNCH_UPDATE_DATA"] * 3
    assert not any(guest.ram[-PAGE:])
    assert any(guest.ram[:PAGE])
    done = len(guest.ram) - len(bytes(guest.ram).rstrip(b"\0"))
    assert host.launch_digest(process, guest.machine.vm) == sha256(bytes(len(guest.ram) - done)).digest()


def test_regions_are_pinned_by_the_same_rule(guest: LegacyMachine) -> None:
    def register(address: int, size: int) -> str:
        return guest.machine.ioctl(kvm.KVM_MEMORY_ENCRYPT_REG_REGION, kvm.EncRegion(address, size))

    assert register(guest.address, 64 * PAGE) == "ok"
    assert register(guest.address + 3, 5) == "ok", "no alignment is asked for"
    assert register(guest.address, 65 * PAGE) == "ENOMEM"
    assert register(guest.address, 0) == "EINVAL"
    assert register((1 << 64) - PAGE, PAGE) == "EINVAL"
    assert register(guest.address, 1 << 41) == "EINVAL", "more than the machine has"
    assert register(guest.address, (1 << 43) - 1) == "EINVAL", "more pages than can be counted"


def test_older_kernels_do_not_look_at_the_machines_memory(tmp_path: Path) -> None:
    with simulated_host(tmp_path, "rome", era="B") as host:
        guest = LegacyMachine(host.process())
        region = kvm.EncRegion(guest.address, 1 << 41)
        assert guest.machine.ioctl(kvm.KVM_MEMORY_ENCRYPT_REG_REGION, region) == "ENOMEM"


# Debugging.


DEBUGS: dict[str, tuple[int, int, int, int]] = {
    # source, target (0: none, 1: memory, 2: unmapped), size, errno
    "no length": (1, 1, 0, EINVAL),
    "no source": (0, 1, 16, EINVAL),
    "no target": (1, 0, 16, EINVAL),
    "source unmapped": (2, 1, 16, ENOMEM),
    "target unmapped": (1, 2, 16, ENOMEM),
}


@pytest.mark.parametrize("case", DEBUGS)
@pytest.mark.parametrize("number", [ids.DBG_DECRYPT, ids.DBG_ENCRYPT])
def test_debugging_that_does_not_reach_the_firmware(started: LegacyMachine, number: int, case: str) -> None:
    source, target, size, wanted = DEBUGS[case]
    places = (0, started.address, UNMAPPED)
    assert short(started.debug(number, places[source], places[target], size)) == (wanted, UNTOUCHED)
    wraps = started.debug(number, (1 << 64) - 8, started.address, 16)
    assert short(wraps) == (EINVAL, UNTOUCHED)


@pytest.mark.parametrize(("first", "size"), [(0, 16), (5, 3), (15, 2), (PAGE - 3, 6), (7, 2 * PAGE), (16, 40)])
def test_debugging_goes_by_the_byte(host: Simulator, process: Process, first: int, size: int) -> None:
    content = os.urandom(4 * PAGE)
    guest = LegacyMachine(process).running(0, content)
    assert guest.decrypted(first, size) == content[first : first + size]
    new = os.urandom(size)
    assert guest.debug(ids.DBG_ENCRYPT, guest.place(b"\0" + new) + 1, guest.address + first, size).name == "ok"
    wanted = content[:first] + new + content[first + size :]
    assert guest_view(host, guest, 0, 4 * PAGE) == wanted
    assert guest.decrypted(0, 4 * PAGE) == wanted


def test_a_policy_forbids_debugging(process: Process) -> None:
    guest = LegacyMachine(process).running(1, bytes(PAGE))
    there = guest.place(bytearray(PAGE))
    for number, source, target in ((17, guest.address, there), (18, there, guest.address)):
        assert short(guest.debug(number, source, target, 16)) == (EIO, status.POLICY_FAILURE)
