"""Faults: what their texts mean, and what the kernel makes of each of them."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sev import status
from sev.abi import kvm, kvm_sev, sev_device
from sev.errors import FirmwareError, KernelError, UsageError
from sevd.simulator import Simulator, faults
from sevd.simulator.faults import Fault, Faults, parse
from sevd.simulator.guest_host import HostRefused
from sevd.simulator.process import Process
from tests.support.caller import UNTOUCHED, Machine, issue, launching, ready
from tests.support.simulated import template

SOURCES = Path(faults.__file__).parent


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("SNP_LAUNCH_UPDATE:status=0x16", Fault("SNP_LAUNCH_UPDATE", "status", 0x16)),
        ("snp_commit:status=INVALID_PARAM:times=3:after=2", Fault("SNP_COMMIT", "status", 0x16, 2, 3)),
        ("SNP_SET_CONFIG:status=22", Fault("SNP_CONFIG", "status", 22)),
        ("PLATFORM_STATUS:delay=2", Fault("PLATFORM_STATUS", "delay", 2.0)),
        ("*:delay=0.25:times=1", Fault("*", "delay", 0.25, 0, 1)),
        ("SNP_LAUNCH_*:hang", Fault("SNP_LAUNCH_*", "hang")),
        ("SNP_COMMIT:timeout:after=1", Fault("SNP_COMMIT", "timeout", 0, 1)),
        ("GET_ID2:power-loss", Fault("GET_ID", "power-loss", 0, 0, 1)),
        ("EXT_GUEST_REQUEST:busy:times=2", Fault("EXT_GUEST_REQUEST", "busy", 0, 0, 2)),
        ("dead", Fault("", "dead")),
        ("power-loss", Fault("", "power-loss")),
        ("clear", Fault("", "clear")),
    ],
)
def test_a_text_is_a_fault(spec: str, fault: Fault) -> None:
    assert parse(spec) == fault
    assert parse(str(fault)) == fault


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "COMMAND:ACTION"),
        ("SNP_COMMIT", "COMMAND:ACTION"),
        ("hang", "COMMAND:ACTION"),
        ("SNP_COMMITT:hang", "no command"),
        ("X*:hang", "no command"),
        ("SNP_COMMIT:", "expected status=S"),
        ("SNP_COMMIT:status", "expected status=S"),
        ("SNP_COMMIT:status=", "status"),
        ("SNP_COMMIT:status=NO_SUCH", "NO_SUCH"),
        ("SNP_COMMIT:status=0", "expected 1 to 0xffff"),
        ("SNP_COMMIT:status=0x10000", "expected 1 to 0xffff"),
        ("SNP_COMMIT:status=-1", "expected 1 to 0xffff"),
        ("SNP_COMMIT:delay=nan", "0 to 100 seconds"),
        ("SNP_COMMIT:delay=-1", "0 to 100 seconds"),
        ("SNP_COMMIT:delay=101", "0 to 100 seconds"),
        ("SNP_COMMIT:hang=1", "expected status=S"),
        ("SNP_COMMIT:dead", "expected status=S"),
        ("SNP_COMMIT:busy", "expected status=S"),
        ("GUEST_REQUEST:power-loss", "expected status=S"),
        ("SNP_COMMIT:hang:times", "after=N or times=N"),
        ("SNP_COMMIT:hang:times=-1", "after=N or times=N"),
        ("SNP_COMMIT:hang:times=²", "after=N or times=N"),
        ("SNP_COMMIT:hang:often=1", "after=N or times=N"),
        ("SNP_COMMIT:hang:times=" + "9" * 5000, "at most 200"),
    ],
)
def test_what_is_no_fault_is_refused_with_what_was_expected(spec: str, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        parse(spec)


@settings(max_examples=200)
@given(
    st.text(max_size=40)
    | st.lists(st.sampled_from(["*", "SNP_COMMIT", ":", "=", "status", "delay", "1", "times"])).map("".join)
)
@example("[:hang")
def test_any_text_is_a_fault_or_a_usage_error(spec: str) -> None:
    try:
        fault = parse(spec)
    except UsageError:
        return
    assert parse(str(fault)) == fault


def test_every_command_of_the_firmware_can_be_named() -> None:
    names = {
        name
        for file in SOURCES.glob("*.py")
        for name in re.findall(r'self\._command\("([A-Z_0-9]+)"', file.read_text())
    }
    assert names == set(faults.COMMANDS)


def test_after_and_times_count_the_commands_that_match() -> None:
    hook = Faults((parse("SNP_*:status=0x16:after=1:times=2"), parse("SNP_COMMIT:status=0x3")))
    told = []
    for command in ("PLATFORM_STATUS", "SNP_COMMIT", "SNP_COMMIT", "SNP_CONFIG", "SNP_CONFIG", "SNP_COMMIT"):
        try:
            hook(command)
            told.append(0)
        except Exception as error:
            told.append(getattr(error, "code", -1))
    # The first SNP command passes the pattern, and meets the second fault.
    assert told == [0, 0x3, 0x16, 0x16, 0, 0x3]
    assert [(str(fault), count) for fault, count in hook.armed()] == [("SNP_COMMIT:status=0x03", 2)]


def test_patterns_leave_hypercalls_alone() -> None:
    hook = Faults((parse("*:status=0x16"), parse("GUEST_REQUEST:busy:times=1")))
    hook("EXT_GUEST_REQUEST")
    with pytest.raises(HostRefused):
        hook("GUEST_REQUEST")
    hook("GUEST_REQUEST")


def test_faults_that_happen_at_once_cannot_wait() -> None:
    with pytest.raises(UsageError, match="does not wait"):
        Faults((parse("dead"),))


@pytest.mark.parametrize("code", [status.INVALID_PARAM, status.HWERROR_PLATFORM, 0x1E, 0xFFFF])
@pytest.mark.parametrize(
    ("command", "number"),
    [("PLATFORM_STATUS", sev_device.PLATFORM_STATUS), ("SNP_COMMIT", sev_device.SNP_COMMIT)],
)
def test_any_status_becomes_eio_with_it(
    host: Simulator, process: Process, command: str, number: int, code: int
) -> None:
    sev = process.open("/dev/sev", os.O_RDWR)
    host.inject(parse(f"{command}:status={code}:times=1"))
    refused = issue(process, sev, number, bytes(64))
    assert (refused.name, refused.error) == ("EIO", code)
    good = issue(process, sev, number, bytes(64))
    assert (good.name, good.error) == ("ok", 0)


def test_an_update_that_is_refused_later_has_made_progress(host: Simulator, process: Process) -> None:
    machine = launching(process)
    host.inject(parse("SNP_LAUNCH_UPDATE:status=0x1f:after=1:times=1"))
    assert machine.update(0, 1).name == "ok"
    refused = machine.update(1, 1)
    assert (refused.name, refused.error) == ("EIO", 0x1F)
    assert machine.update(1, 1).name == "ok"


def test_a_timeout_kills_the_processor_until_the_power_is_off(host: Simulator, process: Process) -> None:
    sev = process.open("/dev/sev", os.O_RDWR)
    host.inject(parse("SNP_COMMIT:timeout:times=1"))
    late = issue(process, sev, sev_device.SNP_COMMIT)
    assert (late.name, late.error) == ("ETIMEDOUT", 0)
    dead = issue(process, sev, sev_device.PLATFORM_STATUS, bytes(12))
    assert (dead.name, dead.error) == ("EBUSY", UNTOUCHED)
    with pytest.raises(KernelError, match="busy"):
        host._ask("anything", host.firmware.platform_status)
    host.inject(parse("power-loss"))
    assert issue(process, sev, sev_device.PLATFORM_STATUS, bytes(12)).name == "ok"


def test_a_dead_processor_answers_nothing(host: Simulator, process: Process) -> None:
    sev = process.open("/dev/sev", os.O_RDWR)
    host.inject(parse("dead"))
    assert issue(process, sev, sev_device.SNP_PLATFORM_STATUS, bytes(32)).name == "EBUSY"
    host.inject(parse("power-loss"))


def test_a_delay_holds_the_command_and_the_driver(host: Simulator, process: Process) -> None:
    sev = process.open("/dev/sev", os.O_RDWR)
    host.inject(parse("PLATFORM_STATUS:delay=0.2:times=1"))
    started = time.monotonic()
    assert issue(process, sev, sev_device.PLATFORM_STATUS, bytes(12)).name == "ok"
    assert time.monotonic() - started >= 0.2


def test_a_hang_holds_the_driver_until_it_is_cleared(host: Simulator, process: Process) -> None:
    sev = launching(process).sev
    host.inject(parse("SNP_COMMIT:hang:times=1"))
    told: list[str] = []
    threads = [
        threading.Thread(target=lambda: told.append(issue(process, sev, sev_device.SNP_COMMIT).name)),
        threading.Thread(target=lambda: told.append(issue(process, sev, sev_device.PLATFORM_STATUS, bytes(12)).name)),
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    assert told == []
    # What does not ask the firmware answers.
    (guest,) = host.guests().values()
    assert len(guest.vmpck(0)) == 32
    assert (host.asids()["sev_es"][1], host.guest_count()) == (1, 1)
    assert host.committed_tcb() is not None
    host.inject(parse("clear"))
    for thread in threads:
        thread.join(10)
    assert told == ["ok", "ok"]


def test_the_end_of_the_simulator_ends_a_hang(host: Simulator, process: Process) -> None:
    sev = process.open("/dev/sev", os.O_RDWR)
    host.inject(parse("SNP_COMMIT:hang"))
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(issue(process, sev, sev_device.SNP_COMMIT).name))
    thread.start()
    time.sleep(0.1)
    assert isinstance(host.faults, Faults)
    host.faults.close()
    thread.join(10)
    assert told == ["ETIMEDOUT"]


def test_a_power_loss_takes_guests_and_configuration_and_leaves_the_chip(host: Simulator, process: Process) -> None:
    machine = launching(process)
    assert machine.update().name == "ok"
    assert machine.finish().name == "ok"
    guest = host.guests()["asid-1"]
    config = sev_device.SnpConfig(host.firmware.reported_tcb, sev_device.SNP_MASK_CHIP_ID).encode()
    writable = process.open("/dev/sev", os.O_RDWR)
    assert issue(process, writable, sev_device.SNP_SET_CONFIG, config).name == "ok"
    lost: list[str] = []
    host.on_power_loss(lambda: lost.append("told"))
    host.inject(parse("power-loss"))
    assert lost == ["told"]
    assert (host.guest_count(), host.asids()["sev_es"][1], host.guests()) == (0, 0, {})
    assert not guest.alive
    with pytest.raises(OSError, match="No such device or address"):
        guest.send(bytes(96))
    assert machine.ioctl(kvm.KVM_CREATE_VCPU, 5) == "EIO"
    raw = issue(process, writable, sev_device.SNP_PLATFORM_STATUS, bytes(32)).data
    status_now = sev_device.SnpStatus.decode(raw)
    assert status_now.state == 1
    assert not status_now.bits & sev_device.SNP_MASK_CHIP_ID
    # And the host goes on: another guest gets through.
    process.close(machine.memfd)
    after = launching(process)
    assert after.finish().name == "ok"


def test_the_power_can_fail_instead_of_a_command(host: Simulator, process: Process) -> None:
    machine = ready(process)
    host.inject(parse("SNP_ACTIVATE:power-loss"))
    assert machine.start().name == "ENODEV"
    assert host.guests() == {}
    assert launching(process).finish().name == "ok"


def test_power_that_keeps_failing_ends_somewhere(host: Simulator, process: Process) -> None:
    sev = process.open("/dev/sev", os.O_RDWR)
    host.inject(parse("*:power-loss:times=100"))
    assert issue(process, sev, sev_device.PLATFORM_STATUS, bytes(12)).name == "ENODEV"
    host.inject(parse("clear"))
    host.inject(parse("power-loss"))
    assert issue(process, sev, sev_device.SNP_PLATFORM_STATUS, bytes(32)).data[2] == 1


@pytest.mark.parametrize(
    "spec", ["SNP_INIT:status=0x19", "INIT:status=0x19", "SNP_PLATFORM_STATUS:status=0x19", "dead"]
)
def test_faults_are_there_when_the_kernel_starts(tmp_path: Path, spec: str) -> None:
    import shutil

    shutil.copytree(template("genoa"), tmp_path, dirs_exist_ok=True)
    host = Simulator.open(tmp_path, product="genoa", seed=1, injected=(parse(spec),))
    try:
        process = host.process()
        sev = process.open("/dev/sev", os.O_RDWR)
        told = issue(process, sev, sev_device.SNP_PLATFORM_STATUS, bytes(32))
        expected = {"SNP_INIT:status=0x19": 0, "dead": None}.get(spec, 1)
        if spec.startswith("SNP_PLATFORM"):
            assert (told.name, told.error) == ("EIO", 0x19)
        elif expected is None:
            assert told.name == "EBUSY"
        else:
            assert told.data[2] == expected
    finally:
        host.close()


def test_playing_the_guest_meets_faults_too(host: Simulator, process: Process) -> None:
    machine = launching(process)
    assert machine.finish().name == "ok"
    host.inject(parse("SNP_GUEST_REQUEST:status=AEAD_OFLOW:times=1"))
    with pytest.raises(FirmwareError) as refused:
        host.guest_report(process, machine.vm, bytes(64), 0, 0)
    assert refused.value.firmware_status == status.AEAD_OFLOW
    assert len(host.guest_report(process, machine.vm, bytes(64), 0, 0)) == 1184


def test_running_is_refused_as_kvm_refuses_it_until_the_launch_is_finished(process: Process) -> None:
    machine = Machine.make(process)
    machine.init2()
    vcpu = machine.vcpu()
    machine.add_memory()
    machine.start()
    with pytest.raises(OSError, match="Invalid argument"):
        process.ioctl(vcpu, kvm.KVM_RUN)
    assert machine.op(kvm_sev.SNP_LAUNCH_FINISH, kvm_sev.SnpLaunchFinish()).name == "ok"
    with pytest.raises(OSError, match="not supported"):
        process.ioctl(vcpu, kvm.KVM_RUN)
