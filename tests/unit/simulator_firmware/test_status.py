"""Firmware statuses: every assigned number, by name and by number, and what is said about each."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sev import status
from sev.errors import FirmwareError, UsageError

NAMES = {
    0x00: "SUCCESS", 0x01: "INVALID_PLATFORM_STATE", 0x02: "INVALID_GUEST_STATE", 0x03: "INVALID_CONFIG",
    0x04: "INVALID_LENGTH", 0x05: "ALREADY_OWNED", 0x06: "INVALID_CERTIFICATE", 0x07: "POLICY_FAILURE",
    0x08: "INACTIVE", 0x09: "INVALID_ADDRESS", 0x0A: "BAD_SIGNATURE", 0x0B: "BAD_MEASUREMENT", 0x0C: "ASID_OWNED",
    0x0D: "INVALID_ASID", 0x0E: "WBINVD_REQUIRED", 0x0F: "DF_FLUSH_REQUIRED", 0x10: "INVALID_GUEST",
    0x11: "INVALID_COMMAND", 0x12: "ACTIVE", 0x13: "HWERROR_PLATFORM", 0x14: "HWERROR_UNSAFE", 0x15: "UNSUPPORTED",
    0x16: "INVALID_PARAM", 0x17: "RESOURCE_LIMIT", 0x18: "SECURE_DATA_INVALID", 0x19: "INVALID_PAGE_SIZE",
    0x1A: "INVALID_PAGE_STATE", 0x1B: "INVALID_MDATA_ENTRY", 0x1C: "INVALID_PAGE_OWNER", 0x1D: "AEAD_OFLOW",
    0x1F: "EXIT_RING_BUFFER", 0x20: "RMP_INIT_REQUIRED", 0x21: "BAD_SVN", 0x22: "BAD_VERSION",
    0x23: "SHUTDOWN_REQUIRED", 0x24: "UPDATE_FAILED", 0x25: "RESTORE_REQUIRED", 0x26: "RMP_INITIALIZATION_FAILED",
    0x27: "INVALID_KEY", 0x28: "SHUTDOWN_INCOMPLETE", 0x30: "INCORRECT_BUFFER_LENGTH",
    0x31: "EXPAND_BUFFER_LENGTH_REQUEST", 0x32: "SPDM_REQUEST", 0x33: "SPDM_ERROR", 0x35: "ERR_IN_DEV_CONN",
    0x36: "INVALID_DEV_CTX", 0x37: "INVALID_TDI_CTX", 0x38: "INVALID_TDI", 0x39: "RECLAIM_REQUIRED", 0x3A: "IN_USE",
    0x3B: "INVALID_DEV_STATE", 0x3C: "INVALID_TDI_STATE", 0x3D: "DEV_CERT_CHANGED", 0x3E: "RESYNC_REQ",
    0x3F: "RESPONSE_TOO_LARGE", 0xFFFFFFFF: "NO_FW_CALL",
}  # fmt: skip


def test_every_assigned_status_is_there_and_no_other() -> None:
    assert {entry.code: entry.name for entry in status.ALL} == NAMES
    assert [entry.code for entry in status.ALL] == sorted(NAMES)


@pytest.mark.parametrize("code", NAMES)
def test_status_explains_itself(code: int) -> None:
    entry = status.lookup(code)
    assert getattr(status, entry.name) == code
    assert entry.meaning.endswith(".")
    assert entry.remedy.endswith(".")
    assert bool(entry.causes) == (code != 0)
    assert status.find(entry.name.lower()) is entry
    assert status.find(f"SEV_RET_{entry.name}") is entry
    assert status.find(hex(code)) is entry
    assert status.find(str(code)) is entry


def test_texts_are_not_shared_by_accident() -> None:
    assert len({entry.meaning for entry in status.ALL}) == len(status.ALL)


def test_unassigned_numbers_get_a_stand_in() -> None:
    assert status.name(0x1E) == "UNKNOWN_0x1E"
    assert status.lookup(0x4242).code == 0x4242
    assert status.find("UNKNOWN_0x1E").code == 0x1E


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("-1", 0xFFFFFFFF),
        ("invalid-len", 0x04),
        ("DFFLUSH_REQUIRED", 0x0F),
        (" 0x16 ", 0x16),
        ("HWSEV_RET_UNSAFE", 0x14),
    ],
)
def test_other_spellings(text: str, code: int) -> None:
    assert status.find(text).code == code


@pytest.mark.parametrize("text", ["", "NOT_A_STATUS", "0x1FFFFFFFF", "-2", "UNKNOWN_0xZZ", "1.5", "SUCCESS extra"])
def test_what_is_no_status_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no firmware status"):
        status.find(text)


def test_firmware_error_carries_name_and_remedy() -> None:
    error = FirmwareError(status.BAD_SVN, command="SNP_VLEK_LOAD", errno=5)
    assert error.document()["firmware_status"] == {"code": 0x21, "name": "BAD_SVN"}
    assert error.remedy == status.lookup(0x21).remedy


def test_module_costs_nothing_at_start() -> None:
    heavy = "import sys, sev.status; print([m for m in ('enum', 'dataclasses', 'typing', 're') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {heavy}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
