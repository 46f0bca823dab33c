"""/dev/sev: order of checks, errno, copy-back of the envelope and of data."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sev import status
from sev.abi import sev_device as abi
from sevd.simulator import Simulator
from sevd.simulator.errnos import Reply
from sevd.simulator.process import Process
from tests.support.caller import UNTOUCHED, Outcome, attempt, code, issue
from tests.support.simulated import refuse, simulated_host

MODES = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR, "accmode 3": os.O_ACCMODE}
UNMAPPED = 0x1000


@pytest.fixture(params=["A", "B", "C"])
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("request_number", [0, 0xC0105301, 0xAE00, 0xC0205300], ids=hex)
def test_other_ioctls_are_einval(process: Process, fd: int, request_number: int) -> None:
    assert code(process, fd, request_number, bytes(16)) == "EINVAL"


def test_an_unreadable_envelope_is_efault(process: Process, fd: int) -> None:
    short = process.memory.place(bytes(15))
    for address in (0, UNMAPPED, short):
        assert attempt(process, fd, abi.SEV_ISSUE_CMD, address)[0] == errno.EFAULT


@pytest.mark.parametrize("command", [13, 14, 255, (1 << 32) - 1])
def test_unknown_commands_are_einval_and_not_copied_back(process: Process, fd: int, command: int) -> None:
    assert issue(process, fd, command) == Outcome(errno.EINVAL, UNTOUCHED, b"", -1)


def test_an_absent_processor_is_enodev_before_all_else(host: Simulator, process: Process, fd: int) -> None:
    host._ccp.present = False
    assert code(process, fd, 0) == "ENODEV"
    assert issue(process, fd, abi.SNP_PLATFORM_STATUS).name == "ENODEV"
    host._ccp.present = True


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("command", [abi.PLATFORM_STATUS, abi.SNP_PLATFORM_STATUS, abi.GET_ID])
def test_reading_commands_work_in_any_mode(process: Process, mode: str, command: int) -> None:
    outcome = issue(process, process.open("/dev/sev", MODES[mode]), command, bytes(128))
    assert outcome[:2] == (0, 0)
    assert any(outcome.data)


def test_platform_status(process: Process, reader: int) -> None:
    outcome = issue(process, reader, abi.PLATFORM_STATUS, bytes(12))
    assert outcome[:2] == (0, 0)
    found = abi.PlatformStatus.decode(outcome.data)
    assert (found.api_major, found.api_minor, found.state) == (1, 55, abi.STATE_INIT)
    assert found.flags & abi.FLAG_CONFIG_ES


def test_snp_status(process: Process, reader: int) -> None:
    found = abi.SnpStatus.decode(issue(process, reader, abi.SNP_PLATFORM_STATUS, bytes(32)).data)
    assert (found.state, found.guest_count) == (abi.STATE_INIT, 0)
    assert found.flags & abi.SNP_FLAG_RMP_INITIALIZED
    assert found.current_tcb == found.reported_tcb != 0


@pytest.mark.parametrize("command", [abi.PLATFORM_STATUS, abi.GET_ID, abi.SNP_PLATFORM_STATUS])
def test_an_unwritable_answer_is_efault_after_the_firmware(process: Process, reader: int, command: int) -> None:
    assert issue(process, reader, command, UNMAPPED)[:2] == (errno.EFAULT, 0)


@pytest.mark.parametrize("command", [abi.SNP_PLATFORM_STATUS, abi.SNP_SET_CONFIG, abi.SNP_VLEK_LOAD])
def test_no_data_is_einval_even_without_write(process: Process, reader: int, command: int) -> None:
    assert issue(process, reader, command, 0)[:2] == (errno.EINVAL, UNTOUCHED)


@pytest.mark.parametrize("command", [abi.SNP_SET_CONFIG, abi.SNP_VLEK_LOAD])
def test_changing_commands_need_write_before_anything_is_read(process: Process, reader: int, command: int) -> None:
    assert issue(process, reader, command, UNMAPPED)[:2] == (errno.EPERM, UNTOUCHED)


@pytest.mark.parametrize("command", [abi.SNP_SET_CONFIG, abi.SNP_VLEK_LOAD])
def test_changing_commands_with_unreadable_data_are_efault(process: Process, fd: int, command: int) -> None:
    assert issue(process, fd, command, UNMAPPED)[:2] == (errno.EFAULT, UNTOUCHED)


def test_commit_needs_no_write(process: Process, reader: int) -> None:
    """As in the kernel, dangerous as it is."""
    assert issue(process, reader, abi.SNP_COMMIT, UNMAPPED)[:2] == (0, 0)


def test_set_config(process: Process, fd: int) -> None:
    def reported() -> int:
        return abi.SnpStatus.decode(issue(process, fd, abi.SNP_PLATFORM_STATUS, bytes(32)).data).reported_tcb

    before = reported()
    lower = before - 1
    assert issue(process, fd, abi.SNP_SET_CONFIG, abi.SnpConfig(lower).encode())[:2] == (0, 0)
    assert reported() == lower
    above = abi.SnpConfig(before + 1).encode()
    assert issue(process, fd, abi.SNP_SET_CONFIG, above)[:2] == (errno.EIO, status.INVALID_PARAM)
    assert reported() == lower
    reserved = abi.SnpConfig(0, masks=4).encode()
    assert issue(process, fd, abi.SNP_SET_CONFIG, reserved)[:2] == (errno.EIO, status.INVALID_PARAM)
    assert issue(process, fd, abi.SNP_SET_CONFIG, abi.SnpConfig(0, masks=3).encode())[:2] == (0, 0)
    bits = abi.SnpStatus.decode(issue(process, fd, abi.SNP_PLATFORM_STATUS, bytes(32)).data).bits
    assert bits & 3 == 3
    assert reported() == before


@pytest.mark.parametrize("era", ["C"], indirect=True)
@pytest.mark.parametrize("command", [abi.SNP_SET_CONFIG, abi.SNP_VLEK_LOAD])
def test_without_snp_changes_are_enodev(host: Simulator, process: Process, fd: int, command: int) -> None:
    host._ccp.shut_down()
    assert issue(process, fd, command, UNMAPPED)[:2] == (errno.ENODEV, UNTOUCHED)
    host._ccp.initialise(Reply())


@pytest.mark.parametrize("era", ["C"], indirect=True)
def test_without_snp_the_firmware_is_asked_for_status_and_commit(host: Simulator, process: Process, fd: int) -> None:
    host._ccp.shut_down()
    outcome = issue(process, fd, abi.SNP_PLATFORM_STATUS, bytes(32))
    assert outcome[:2] == (0, 0)
    assert abi.SnpStatus.decode(outcome.data).state == abi.STATE_UNINIT
    assert issue(process, fd, abi.SNP_COMMIT)[:2] == (0, 0)


def vlek(process: Process, blob: bytes, **changes: int) -> bytes:
    fields = {"len": 16, "vlek_wrapped_version": 0, "vlek_wrapped_address": process.memory.place(blob)} | changes
    return abi.SnpVlekLoad(**fields).encode()


def test_vlek_load(host: Simulator, process: Process, fd: int) -> None:
    blob = host.firmware.vlek_hashstick()
    assert issue(process, fd, abi.SNP_VLEK_LOAD, vlek(process, blob))[:2] == (0, 0)
    bits = abi.SnpStatus.decode(issue(process, fd, abi.SNP_PLATFORM_STATUS, bytes(32)).data).bits
    assert bits & abi.SNP_VLEK_EN
    assert {"asvk", "vlek"} <= host.endorsements().keys()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"len": 15}, ("EINVAL", UNTOUCHED)),
        ({"len": 17}, ("EINVAL", UNTOUCHED)),
        ({"vlek_wrapped_version": 1}, ("EINVAL", UNTOUCHED)),
        ({"vlek_wrapped_address": 0}, ("EINVAL", UNTOUCHED)),
        ({"vlek_wrapped_address": UNMAPPED}, ("EFAULT", UNTOUCHED)),
        ({"len": 15, "vlek_wrapped_address": 0}, ("EINVAL", UNTOUCHED)),
        ({}, ("EIO", status.BAD_MEASUREMENT)),
    ],
    ids=["short", "long", "version", "no address", "unreadable", "both", "not for this chip"],
)
def test_vlek_load_refused(
    host: Simulator, process: Process, fd: int, changes: dict[str, int], expected: tuple[str, int]
) -> None:
    blob = bytearray(host.firmware.vlek_hashstick())
    blob[0x20] ^= 1
    outcome = issue(process, fd, abi.SNP_VLEK_LOAD, vlek(process, bytes(blob), **changes))
    assert (outcome.name, outcome.error) == expected


def test_vlek_load_of_a_short_blob_is_efault(process: Process, fd: int) -> None:
    assert issue(process, fd, abi.SNP_VLEK_LOAD, vlek(process, bytes(431)))[:2] == (errno.EFAULT, UNTOUCHED)


@pytest.mark.parametrize(
    ("with_address", "length", "error", "number"),
    [
        (False, 0, status.INVALID_LENGTH, "EIO"),
        (True, 0, status.INVALID_LENGTH, "EIO"),
        (False, 64, status.INVALID_LENGTH, "EIO"),
        (True, 63, status.INVALID_LENGTH, "EIO"),
        (True, 64, 0, "ok"),
        (True, 4096, 0, "ok"),
    ],
    ids=["probe", "no length", "no address", "too short", "exact", "long"],
)
def test_get_id2_writes_the_length_back_always(
    process: Process, reader: int, with_address: bool, length: int, error: int, number: str
) -> None:
    buffer = bytearray(64)
    address = process.memory.place(buffer) if with_address else 0
    outcome = issue(process, reader, abi.GET_ID2, abi.GetId2(address, length).encode())
    assert (outcome.name, outcome.error) == (number, error)
    assert abi.GetId2.decode(outcome.data) == abi.GetId2(address, 64)
    assert any(buffer) == (number == "ok")


def test_get_id2_faults(process: Process, reader: int) -> None:
    assert issue(process, reader, abi.GET_ID2, UNMAPPED)[:2] == (errno.EFAULT, UNTOUCHED)
    assert issue(process, reader, abi.GET_ID2, abi.GetId2(UNMAPPED, 64).encode())[:2] == (errno.EFAULT, 0)
    huge = abi.GetId2(UNMAPPED, 0xFFFFFFFF).encode()
    assert issue(process, reader, abi.GET_ID2, huge)[:2] == (errno.ENOMEM, UNTOUCHED)


def test_get_id_on_old_firmware_is_an_errno_without_a_name(
    process: Process, reader: int, host: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(host.firmware), "version", (0, 15, 1))
    for command in (abi.GET_ID, abi.GET_ID2):
        assert issue(process, reader, command, bytes(128))[:2] == (524, UNTOUCHED)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (abi.PLATFORM_STATUS, "PLATFORM_STATUS"),
        (abi.GET_ID, "GET_ID"),
        (abi.SNP_PLATFORM_STATUS, "SNP_PLATFORM_STATUS"),
        (abi.SNP_COMMIT, "SNP_COMMIT"),
        (abi.SNP_SET_CONFIG, "SNP_CONFIG"),
    ],
    ids=str,
)
def test_a_status_of_the_firmware_is_eio(host: Simulator, process: Process, fd: int, number: int, name: str) -> None:
    refuse(host, name)
    outcome = issue(process, fd, number, bytes(128))
    assert outcome[:2] == (errno.EIO, status.HWERROR_UNSAFE)
    assert outcome.data == bytes(128)


def test_a_timeout_kills_the_processor(host: Simulator, process: Process, fd: int) -> None:
    def hang(_command: str) -> None:
        raise TimeoutError

    host.faults = hang
    assert issue(process, fd, abi.SNP_COMMIT)[:2] == (errno.ETIMEDOUT, 0)
    host.faults = lambda _command: None
    assert issue(process, fd, abi.SNP_COMMIT)[:2] == (errno.EBUSY, UNTOUCHED)
    assert issue(process, fd, abi.SNP_SET_CONFIG, 0)[:2] == (errno.EINVAL, UNTOUCHED)


def test_an_envelope_that_goes_away_turns_success_into_efault(host: Simulator, process: Process, fd: int) -> None:
    envelope = process.memory.place(bytearray(abi.IssueCmd(abi.SNP_COMMIT).encode()))
    host.faults = lambda _command: process.memory.release(envelope)
    assert attempt(process, fd, abi.SEV_ISSUE_CMD, envelope)[0] == errno.EFAULT


def test_state_survives_a_restart(tmp_path: Path) -> None:
    def identity(host: Simulator) -> tuple[bytes, bytes]:
        process = host.process()
        fd = process.open("/dev/sev", os.O_RDWR)
        return issue(process, fd, abi.SNP_PLATFORM_STATUS, bytes(32)).data, issue(
            process, fd, abi.GET_ID, bytes(64)
        ).data

    with simulated_host(tmp_path) as host:
        before = identity(host)
        process = host.process()
        fd = process.open("/dev/sev", os.O_RDWR)
        assert issue(process, fd, abi.SNP_SET_CONFIG, abi.SnpConfig(0, masks=1).encode())[:2] == (0, 0)
        assert identity(host) != before, "until the next start"
    again = Simulator.open(tmp_path, product="genoa")
    assert identity(again) == before
    again.close()
