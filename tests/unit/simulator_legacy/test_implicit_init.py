"""Commands that need legacy SEV while it is down: each kernel brings it up, and most take it down again, SNP with it."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from sev import status
from sev.abi import sev_device as abi
from sevd.simulator import Simulator, kernel_era
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.process import Process
from tests.support.caller import UNTOUCHED, Machine, issue
from tests.support.legacy_device import INITIALISING, UNMAPPED, legacy, requests, snp_state
from tests.support.simulated import refuse

EIO, EPERM, EFAULT = errno.EIO, errno.EPERM, errno.EFAULT
PROBED = (EIO, status.INVALID_LENGTH)
UP, DOWN = abi.STATE_INIT, abi.STATE_UNINIT
Calls = Callable[[], list[str]]

STAYS = ("A",)
"""Eras in which what was initialised for a command stays."""
AS_STATE = ("B", "B2")
"""Eras that tell a failure of it as status INVALID_PLATFORM_STATE."""


@pytest.fixture(params=list(kernel_era.ERAS))
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def states(host: Simulator, process: Process, fd: int) -> tuple[int, int]:
    """Of legacy SEV and SNP."""
    return legacy(process, fd).state, snp_state(host)


@pytest.mark.parametrize("number", INITIALISING, ids=abi.command_name)
def test_after_a_reset_a_command_brings_legacy_sev_up_and_everything_down(
    host: Simulator, process: Process, fd: int, calls: Calls, era: str, number: int
) -> None:
    """The hazard: SNP, which was up, is shut down behind the command."""
    issue(process, fd, abi.FACTORY_RESET)
    calls()
    outcome = issue(process, fd, number, requests(process)[number])
    code = status.INVALID_CERTIFICATE if number == abi.PEK_CERT_IMPORT else 0
    assert outcome[:2] == (EIO if code else 0, code)
    assert calls() == [
        "INIT", "DF_FLUSH", abi.command_name(number), *([] if era in STAYS else ["SHUTDOWN", "SNP_SHUTDOWN"]),
    ]  # fmt: skip
    assert states(host, process, fd) == ((UP, UP) if era in STAYS else (DOWN, DOWN))


def test_a_running_snp_guest_keeps_snp_up(host: Simulator, process: Process, fd: int, era: str) -> None:
    firmware = host.firmware
    gctx = firmware.snp_gctx_create()
    firmware.snp_launch_start(gctx, 0x30000, bytes(16))
    firmware.snp_activate(gctx, 1)
    issue(process, fd, abi.FACTORY_RESET)
    assert issue(process, fd, abi.PDH_GEN)[:2] == (0, 0)
    assert states(host, process, fd) == (UP if era in STAYS else DOWN, UP)
    firmware.snp_decommission(gctx)
    assert issue(process, fd, abi.PDH_GEN)[:2] == (0, 0)
    assert snp_state(host) == (UP if era in STAYS else DOWN)


def test_an_export_needs_write_only_to_initialise(
    process: Process, fd: int, reader: int, calls: Calls, era: str
) -> None:
    probe = abi.PdhCertExport(0, 0, 0, 0).encode()
    assert issue(process, reader, abi.PDH_CERT_EXPORT, probe)[:2] == PROBED
    issue(process, fd, abi.FACTORY_RESET)
    calls()
    assert issue(process, reader, abi.PDH_CERT_EXPORT, probe)[:2] == (EPERM, UNTOUCHED)
    unreadable = EPERM if kernel_era.ERAS[era].export_inits_first else EFAULT
    assert issue(process, reader, abi.PDH_CERT_EXPORT, UNMAPPED)[:2] == (unreadable, UNTOUCHED)
    assert calls() == []
    assert issue(process, fd, abi.PDH_CERT_EXPORT, probe)[:2] == PROBED


@pytest.mark.parametrize(("refused", "after"), [("INIT", DOWN), ("DF_FLUSH", UP)])
def test_an_implicit_init_that_fails(
    host: Simulator, process: Process, fd: int, era: str, refused: str, after: int
) -> None:
    issue(process, fd, abi.FACTORY_RESET)
    refuse(host, refused)
    error = status.INVALID_PLATFORM_STATE if era in AS_STATE else status.HWERROR_UNSAFE
    assert issue(process, fd, abi.PEK_GEN)[:2] == (EIO, error)
    host.faults = lambda _: None
    assert legacy(process, fd).state == after


def test_an_implicit_init_without_a_processor(host: Simulator, process: Process, fd: int, era: str) -> None:
    issue(process, fd, abi.FACTORY_RESET)
    host._ccp.dead = True
    error = status.INVALID_PLATFORM_STATE if era in AS_STATE else abi.NO_FW_CALL
    assert issue(process, fd, abi.PDH_GEN)[:2] == (errno.EBUSY, error)


def test_a_store_that_is_not_this_chips_is_tried_twice(host: Simulator, process: Process, fd: int, era: str) -> None:
    issue(process, fd, abi.FACTORY_RESET)
    seen: list[str] = []

    def once(name: str) -> None:
        seen.append(name)
        if seen.count("INIT") == 1 and name == "INIT":
            raise FirmwareStatus(status.SECURE_DATA_INVALID)

    host.faults = once
    assert issue(process, fd, abi.PDH_GEN)[:2] == (0, 0)
    assert seen[:3] == ["INIT", "INIT", "DF_FLUSH"]
    host.faults = lambda _: None
    issue(process, fd, abi.FACTORY_RESET)
    refuse(host, "INIT", code=status.SECURE_DATA_INVALID)
    error = status.INVALID_PLATFORM_STATE if era in AS_STATE else status.SECURE_DATA_INVALID
    assert issue(process, fd, abi.PDH_GEN)[:2] == (EIO, error)


def test_a_vm_brings_everything_up_again(host: Simulator, process: Process, fd: int, era: str) -> None:
    issue(process, fd, abi.FACTORY_RESET)
    issue(process, fd, abi.PDH_GEN)
    assert states(host, process, fd) == ((UP, UP) if era in STAYS else (DOWN, DOWN))
    machine = Machine.make(process)
    assert machine.init2().name == "ok"
    assert states(host, process, fd) == (UP, UP)
