"""How SEV and SEV-ES guests end in KVM, and what they give back."""

from __future__ import annotations

import errno

import pytest

from sev.abi import kvm
from sev.abi import kvm_sev as ids
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.caller import Machine, attempt
from tests.support.legacy_machine import ES, ES_POLICY, SEV, LegacyMachine, vcpus

EIO, EINVAL = errno.EIO, errno.EINVAL


@pytest.mark.parametrize("last", ["vm", "vcpu", "exit"])
def test_the_end(host: Simulator, last: str) -> None:
    process = host.process()
    guest = LegacyMachine(process).running(0)
    vcpu = guest.machine.vcpu()
    process.close(guest.machine.sev)
    calls: list[str] = []
    host.faults = calls.append
    if last == "vm":
        process.close(vcpu)
    process.close(guest.machine.vm) if last != "exit" else None
    if last == "vcpu":
        assert calls == []
        assert host.asids()["sev"][1] == host.guest_count() == 1
        calls.clear()
        process.close(vcpu)
    process.exit()
    assert [name for name in calls if name != "PLATFORM_STATUS"] == ["DEACTIVATE", "DECOMMISSION"]
    host.faults = lambda _name: None
    assert (host.asids()["sev"][1], host.guest_count()) == (0, 0)


def test_a_guest_that_was_never_started_ends_without_the_firmware(host: Simulator) -> None:
    process = host.process()
    LegacyMachine(process)
    calls: list[str] = []
    host.faults = calls.append
    process.exit()
    assert (calls, host.asids()["sev"][1]) == ([], 0)


def test_asids_come_back_after_a_flush(host: Simulator, process: Process) -> None:
    """Guests that ran leave dirty ASIDs; KVM flushes the machine once before they are used again."""
    total = host.asids()["sev"][0]
    for _ in range(3):
        held = [Machine.make(process, SEV) for _ in range(total - 1)]
        assert all(one.init2().name == "ok" for one in held)
        guest = LegacyMachine(process).running(0, bytes(16))
        process.close(guest.machine.vm)
        for one in held:
            process.close(one.vm)
    assert host.kvm.asids["sev"].flushes >= 2


def test_a_reset_waits_for_guests(host: Simulator, process: Process) -> None:
    guest = LegacyMachine(process).running(0)
    assert host.firmware.platform_status()[2] == 2
    process.close(guest.machine.vm)
    assert host.firmware.platform_status()[2] == 1


def test_a_power_loss_takes_guests_with_it(host: Simulator, process: Process) -> None:
    guest = LegacyMachine(process).running(0)
    host._cycle_power()
    assert host.guest_count() == 0
    assert guest.update().errno == EIO
    again = LegacyMachine(process)
    assert again.start(0).name == "ok"
    process.close(guest.machine.vm)
    assert host.guest_count() == 1


def test_nothing_runs_here(process: Process) -> None:
    guest = LegacyMachine(process, ES)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    assert attempt(process, fd, kvm.KVM_RUN)[0] == EINVAL
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    guest.measure()
    guest.finish()
    assert attempt(process, fd, kvm.KVM_RUN)[0] == errno.EOPNOTSUPP
