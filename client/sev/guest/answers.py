"""Checks of what the platform answers: is it the answer to what was asked? (Is it genuine: sev.attestation.verify.)"""

from __future__ import annotations

from sev.abi.guest_message import REPORT_SIZE
from sev.guest.errors import AnswerMismatch

VMPL_AT = 0x30
REPORT_DATA_AT = 0x50


def reported_level(report: bytes) -> int:
    """The VMPL in a report."""
    return int.from_bytes(report[VMPL_AT : VMPL_AT + 4], "little")


def check_report(report: bytes, *, report_data: bytes, vmpl: int | None) -> None:
    """Compares a report with its request.

    Args:
        report: As it came.
        report_data: 64 bytes that must stand in it.
        vmpl: The level that must stand in it; None: any.

    Raises:
        AnswerMismatch: It is not 1184 bytes long, or has other report data or another VMPL.
    """
    if len(report) != REPORT_SIZE:
        raise AnswerMismatch(f"report: {len(report)} bytes where exactly {REPORT_SIZE} were expected", field="report")
    found = report[REPORT_DATA_AT : REPORT_DATA_AT + len(report_data)]
    if found != report_data:
        raise AnswerMismatch(
            f"report: report_data at offset 0x{REPORT_DATA_AT:x} begins {found[:8].hex()}, "
            f"asked for was {report_data[:8].hex()}…",
            field="report_data",
        )
    level = reported_level(report)
    if vmpl is not None and level != vmpl:
        raise AnswerMismatch(f"report: vmpl at offset 0x{VMPL_AT:x} is {level}, asked for was {vmpl}", field="vmpl")


def trimmed_table(table: bytes) -> bytes:
    """A certificate table without trailing zeros, which are the rest of its pages; empty if there is no entry.

    What is cut off is put back as far as the table needs it: its end entry is 24 zero bytes.
    """
    kept = table.rstrip(b"\0")
    if not kept:
        return b""
    end = 0
    at = 0
    while at + 24 <= len(table) and any(table[at : at + 16]):
        offset = int.from_bytes(table[at + 16 : at + 20], "little")
        length = int.from_bytes(table[at + 20 : at + 24], "little")
        end = max(end, offset + length)
        at += 24
    return table[: max(end, at + 24, len(kept))]
