"""SEV guests launched by commands of the firmware alone, and what spoils a packet."""

from __future__ import annotations

from collections.abc import Callable

from sev import status
from sev.session import Session
from sevd.simulator.firmware import Firmware
from tests.support.legacy_guest import AT, ES, ES_ASID, PAGE, SEV_ASID, pdh


def started(firmware: Firmware, policy: int = 0, asid: int = SEV_ASID) -> tuple[int, Session]:
    """A guest with an owner's session: its handle, and the session."""
    session = Session.create(policy)
    start = session.start_unverified(pdh(firmware))
    handle = firmware.launch_start(0, policy, start.certificate, start.session)
    firmware.activate(handle, asid)
    return handle, session


def updated(firmware: Firmware, handle: int, data: bytes, address: int) -> bytes:
    """LAUNCH_UPDATE_DATA of a copy; what it becomes."""
    memory = bytearray(data)
    firmware.launch_update_data(handle, memoryview(memory), address)
    return bytes(memory)


def running(firmware: Firmware, policy: int = 0, data: bytes = bytes(PAGE)) -> tuple[int, bytes]:
    """A guest that runs, and its memory at AT as the host sees it."""
    handle, _ = started(firmware, policy, ES_ASID if policy & ES else SEV_ASID)
    sealed = updated(firmware, handle, data, AT)
    firmware.launch_measure(handle, 48)
    firmware.launch_finish(handle)
    return handle, sealed


def changed(data: bytes, at: int) -> bytes:
    """The same bytes with a bit of one flipped."""
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


PACKETS: dict[str, tuple[Callable[[bytes, bytes], tuple[bytes, int, int, bytes]], int]] = {
    "unaligned address": (lambda header, data: (header, AT + 8, 32, data), status.INVALID_ADDRESS),
    "address before length": (lambda header, data: (header, AT + 8, 16, data), status.INVALID_ADDRESS),
    "short header": (lambda header, data: (header[:-1], AT, 32, data), status.INVALID_LENGTH),
    "long header": (lambda header, data: (header + b"\0", AT, 32, data), status.INVALID_LENGTH),
    "less memory than packet": (lambda header, data: (header, AT, 16, data), status.INVALID_LENGTH),
    "empty": (lambda header, data: (header, AT, 0, b""), status.INVALID_LENGTH),
    "15 bytes": (lambda header, data: (header, AT, 15, data[:15]), status.INVALID_LENGTH),
    "above 20 KiB": (lambda header, data: (header, AT, 0x5010, bytes(0x5010)), status.INVALID_LENGTH),
    "compressed": (lambda header, data: (changed(header, 0), AT, 32, data), status.UNSUPPORTED),
    "changed IV": (lambda header, data: (changed(header, 4), AT, 32, data), status.BAD_MEASUREMENT),
    "changed MAC": (lambda header, data: (changed(header, 20), AT, 32, data), status.BAD_MEASUREMENT),
    "changed data": (lambda header, data: (header, AT, 32, changed(data, 31)), status.BAD_MEASUREMENT),
    "20 KiB": (lambda header, data: (header, AT, 0x5000, bytes(0x5000)), status.BAD_MEASUREMENT),
}
