"""Handles, ASIDs and the ends of SEV and SEV-ES guests in the firmware."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sev import status
from sev.session import Session
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_legacy import GUESTS_MAX
from sevd.simulator.legacy_guest import LUPDATE, RUNNING, RUPDATE, UNINIT
from tests.support.legacy_guest import ES, ES_ASID, SEV_ASID, STATES, brought, pdh
from tests.support.legacy_machine import some_guest
from tests.support.simulated_firmware import refused


@pytest.fixture
def firmware(chip: Firmware) -> Iterator[Firmware]:
    """The chip without guests, in INIT, all ASIDs clean."""
    chip.shutdown()
    chip.init()
    chip.df_flush()
    yield chip
    chip.shutdown()
    chip.init()
    chip.df_flush()


def test_the_commands_that_begin(firmware: Firmware) -> None:
    start = Session.create(0).start_unverified(pdh(firmware))
    begins: tuple[Callable[[], int], ...] = (
        lambda: firmware.launch_start(0, 0, start.certificate, start.session),
        lambda: firmware.receive_start(0, 0, start.certificate, start.session),
        lambda: firmware.launch_start(0, 0, None, None),
    )
    assert [begin() for begin in begins] == [1, 2, 3]
    assert [firmware.guest_status(handle)[12] for handle in (1, 2, 3, 4)] == [LUPDATE, RUPDATE, LUPDATE, UNINIT]
    assert firmware.platform_status()[2] == 2
    firmware.shutdown()
    for begin in begins:
        with refused(status.INVALID_PLATFORM_STATE):
            begin()
    with refused(status.INVALID_PLATFORM_STATE):
        firmware.guest_status(1)


def test_status_of_handles(firmware: Firmware) -> None:
    handle = firmware.launch_start(0, 0x23, None, None)
    firmware.activate(handle, SEV_ASID + 5)
    assert firmware.guest_status(handle) == bytes.fromhex("01000000 23000000 69000000 01")
    assert firmware.guest_status(7) == bytes.fromhex("07000000 00000000 00000000 00")
    for outside in (0, GUESTS_MAX + 1, 0xFFFFFFFF):
        with refused(status.INVALID_GUEST):
            firmware.guest_status(outside)


@pytest.mark.parametrize(
    ("policy", "asid", "code"),
    [
        (0, 0, status.INVALID_ASID),
        (0, 1, status.INVALID_ASID),
        (0, 99, status.INVALID_ASID),
        (0, 100, None),
        (0, 1006, None),
        (0, 1007, status.INVALID_ASID),
        (ES, 0, status.INVALID_ASID),
        (ES, 1, None),
        (ES, 99, None),
        (ES, 100, status.INVALID_ASID),
    ],
)
def test_which_asids_are_whose(firmware: Firmware, policy: int, asid: int, code: int | None) -> None:
    handle = firmware.launch_start(0, policy, None, None)
    if code is None:
        firmware.activate(handle, asid)
        assert int.from_bytes(firmware.guest_status(handle)[8:12], "little") == asid
    else:
        with refused(code):
            firmware.activate(handle, asid)


def test_an_asid_has_one_guest(firmware: Firmware) -> None:
    first, second = (firmware.launch_start(0, 0, None, None) for _ in range(2))
    firmware.activate(first, SEV_ASID)
    with refused(status.ASID_OWNED):
        firmware.activate(second, SEV_ASID)
    for asid in (SEV_ASID, SEV_ASID + 1):
        with refused(status.ACTIVE):
            firmware.activate(first, asid)
    firmware.activate(second, SEV_ASID + 1)
    with refused(status.ASID_OWNED):
        firmware.activate(first, SEV_ASID + 1)
    for handle in (first, second):
        firmware.deactivate(handle)
        with refused(status.INACTIVE):
            firmware.deactivate(handle)


def test_an_asid_is_shared_with_no_snp_guest(firmware: Firmware) -> None:
    gctx = firmware.snp_gctx_create()
    firmware.snp_launch_start(gctx, 0x30000, bytes(16))
    firmware.snp_activate(gctx, ES_ASID)
    handle = firmware.launch_start(0, ES, None, None)
    with refused(status.ASID_OWNED):
        firmware.activate(handle, ES_ASID)
    firmware.snp_decommission(gctx)
    with refused(status.DF_FLUSH_REQUIRED):
        firmware.activate(handle, ES_ASID)
    firmware.df_flush()
    firmware.activate(handle, ES_ASID)


@pytest.mark.parametrize("state", ["LUPDATE", "LSECRET", "RUPDATE", "RUNNING", "SENT"])
def test_only_a_guest_that_ran_leaves_its_asid_dirty(firmware: Firmware, state: str) -> None:
    guest = brought(firmware, STATES[state])
    firmware.deactivate(guest.handle)
    other = firmware.launch_start(0, 0, None, None)
    if state in ("RUNNING", "SENT"):
        with refused(status.DF_FLUSH_REQUIRED):
            firmware.activate(other, SEV_ASID)
        with refused(status.WBINVD_REQUIRED):
            firmware.df_flush(wbinvd=False)
        firmware.df_flush()
    firmware.activate(other, SEV_ASID)


def test_after_init_every_asid_is_dirty(firmware: Firmware) -> None:
    firmware.shutdown()
    firmware.init()
    handle = firmware.launch_start(0, 0, None, None)
    with refused(status.DF_FLUSH_REQUIRED):
        firmware.activate(handle, SEV_ASID)
    firmware.df_flush()
    firmware.activate(handle, SEV_ASID)


def test_shutdown_deletes_guests_and_frees_their_asids(firmware: Firmware) -> None:
    brought(firmware, RUNNING)
    firmware.shutdown()
    firmware.init()
    firmware.df_flush()
    assert firmware.platform_status()[8:12] == bytes(4)
    assert brought(firmware, RUNNING).state == RUNNING


def test_as_many_guests_as_there_are_handles(firmware: Firmware) -> None:
    legacy = firmware._platform.legacy
    for _ in range(GUESTS_MAX):
        legacy.admit(some_guest())
    with refused(status.RESOURCE_LIMIT):
        firmware.launch_start(0, 0, None, None)
    with refused(status.RESOURCE_LIMIT):  # before SEV-ES is looked at
        legacy.es = False
        firmware.launch_start(0, ES, None, None)
