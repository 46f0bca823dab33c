"""Platform states, chip identity, contexts and ASIDs."""

from __future__ import annotations

import struct

import pytest

from sev import status
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_platform import INIT_CIPHERTEXT_HIDING, INIT_LIST, INIT_RAPL_DIS, INIT_RMP
from tests.support.simulated_firmware import POLICY, Open, refused, running, started


def field(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")


def test_status_before_and_after_init(open_firmware: Open) -> None:
    firmware = open_firmware()
    before = firmware.snp_platform_status()
    assert len(before) == 32
    assert before[:2] == bytes((1, 55))
    assert before[2] == 0
    assert before[3] & 1 == 0
    assert field(before, 4, 4) == 49
    firmware.snp_init()
    after = firmware.snp_platform_status()
    assert after[2] == 1
    assert after[3] & 3 == 3, "RMP initialised, alias check complete"
    assert after[0x10:0x18] == after[0x18:0x20] == bytes.fromhex("0a00000000001b58")


def test_init_twice(firmware: Firmware) -> None:
    with refused(status.INVALID_PLATFORM_STATE):
        firmware.snp_init()


def test_init_after_legacy_init(open_firmware: Open) -> None:
    firmware = open_firmware()
    with refused(status.INVALID_PLATFORM_STATE):
        firmware.init()  # SNP is enabled, and the RMP was never initialised
    firmware.snp_init()
    firmware.snp_df_flush()
    firmware.snp_shutdown()
    firmware.init()
    with refused(status.INVALID_PLATFORM_STATE):
        firmware.snp_init()
    firmware.shutdown()
    firmware.snp_init()


@pytest.mark.parametrize(
    ("product", "flags", "max_asid", "code"),
    [
        ("genoa", 1 << 5, 0, status.INVALID_PARAM),
        ("genoa", INIT_LIST, 0, status.INVALID_PARAM),
        ("genoa", 0, 0, status.RMP_INIT_REQUIRED),
        ("genoa", INIT_RMP | INIT_CIPHERTEXT_HIDING, 10, status.INVALID_PARAM),
        ("turin", INIT_RMP | INIT_CIPHERTEXT_HIDING, 0, status.INVALID_PARAM),
        ("turin", INIT_RMP | INIT_CIPHERTEXT_HIDING, 100, status.INVALID_PARAM),
        ("turin", INIT_RMP, 10, status.INVALID_PARAM),
    ],
)
def test_wrong_init_flags(open_firmware: Open, product: str, flags: int, max_asid: int, code: int) -> None:
    firmware = open_firmware(product)
    with refused(code):
        firmware.snp_init(flags, max_snp_asid=max_asid)
    assert firmware.snp_platform_status()[2] == 0


def test_init_features_show_in_status_and_reports(open_firmware: Open) -> None:
    firmware = open_firmware("turin")
    firmware.snp_init(INIT_RMP | INIT_RAPL_DIS | INIT_CIPHERTEXT_HIDING, max_snp_asid=10)
    firmware.snp_df_flush()
    assert field(firmware.snp_platform_status(), 8, 4) & 0x70 == 0x70
    report = firmware.guest_report(running(firmware), bytes(64))
    assert field(report, 0x40, 8) == 0x65 | 1 << 3 | 1 << 4
    other = firmware.snp_gctx_create()
    firmware.snp_launch_start(other, POLICY, bytes(16))
    with refused(status.INVALID_ASID):
        firmware.snp_activate(other, 11)


def test_shutdown_of_an_uninitialised_platform_succeeds(open_firmware: Open) -> None:
    open_firmware().snp_shutdown()


def test_shutdown_needs_clean_asids(firmware: Firmware) -> None:
    gctx = started(firmware)
    with refused(status.DF_FLUSH_REQUIRED):
        firmware.snp_shutdown()
    firmware.snp_decommission(gctx)
    with refused(status.DF_FLUSH_REQUIRED):
        firmware.snp_shutdown()
    firmware.snp_df_flush()
    firmware.snp_shutdown()
    assert firmware.snp_platform_status()[2] == 0


def test_shutdown_with_legacy_sev_initialised(firmware: Firmware) -> None:
    firmware.init()
    with refused(status.INVALID_PLATFORM_STATE):
        firmware.snp_shutdown()


def test_rmp_stays_initialised_over_a_shutdown(firmware: Firmware) -> None:
    firmware.snp_shutdown()
    firmware.snp_init(0)


def test_guest_commands_need_init(open_firmware: Open) -> None:
    firmware = open_firmware()
    memory = memoryview(bytearray(4096))
    for command in (
        firmware.snp_gctx_create,
        firmware.snp_df_flush,
        lambda: firmware.snp_launch_start(0x1000, POLICY, bytes(16)),
        lambda: firmware.snp_activate(0x1000, 1),
        lambda: firmware.snp_launch_update(0x1000, 1, 0, memory, memoryview(bytearray(b"\1"))),
        lambda: firmware.snp_launch_finish(0x1000, None, None),
        lambda: firmware.snp_guest_status(0x1000),
        lambda: firmware.snp_guest_request(0x1000, bytes(96)),
        lambda: firmware.snp_decommission(0x1000),
        lambda: firmware.snp_vlek_load(bytes(432)),
    ):
        with refused(status.INVALID_PLATFORM_STATE):
            command()


def test_legacy_status(firmware: Firmware) -> None:
    assert firmware.platform_status() == bytes.fromhex("013700000000003100000000")
    firmware.init()
    assert firmware.platform_status() == bytes.fromhex("013701000100003100000000")
    assert int.from_bytes(firmware.platform_status()[3:7], "little") == 0x100, "as Linux reads the flags"
    with refused(status.INVALID_PLATFORM_STATE):
        firmware.init()


def test_faults_come_before_the_command(firmware: Firmware) -> None:
    seen: list[str] = []

    def fault(command: str) -> None:
        from sevd.simulator.firmware_status import FirmwareStatus

        seen.append(command)
        if command == "SNP_GCTX_CREATE":
            raise FirmwareStatus(status.RESOURCE_LIMIT)

    firmware.faults = fault
    with refused(status.RESOURCE_LIMIT):
        firmware.snp_gctx_create()
    assert field(firmware.snp_platform_status(), 0x0C, 4) == 0
    assert seen == ["SNP_GCTX_CREATE", "SNP_PLATFORM_STATUS"]


def test_chip_ids(open_firmware: Open) -> None:
    ids = {name: open_firmware(name).get_id() for name in ("milan", "genoa", "turin")}
    assert {len(value) for value in ids.values()} == {64}
    assert len(set(ids.values())) == 3
    assert any(ids["genoa"][32:])
    assert ids["turin"][8:] == bytes(56)
    assert any(ids["turin"][:8])
    prime = 2**256 - 2**32 - 977
    x, y = int.from_bytes(ids["milan"][:32], "big"), int.from_bytes(ids["milan"][32:], "big")
    assert y * y % prime == (x**3 + 7) % prime, "a point of secp256k1, big-endian"


def test_asids_are_dirty_after_init(open_firmware: Open) -> None:
    firmware = open_firmware()
    firmware.snp_init()
    gctx = firmware.snp_gctx_create()
    firmware.snp_launch_start(gctx, POLICY, bytes(16))
    with refused(status.DF_FLUSH_REQUIRED):
        firmware.snp_activate(gctx, 1)
    with refused(status.WBINVD_REQUIRED):
        firmware.snp_df_flush(wbinvd=False)
    firmware.snp_df_flush()
    firmware.snp_activate(gctx, 1)


def test_activation_checks(firmware: Firmware) -> None:
    first, second = firmware.snp_gctx_create(), firmware.snp_gctx_create()
    with refused(status.INVALID_GUEST_STATE):
        firmware.snp_activate(first, 1)
    for gctx in (first, second):
        firmware.snp_launch_start(gctx, POLICY, bytes(16))
    for asid in (0, -1, 100, 1006, 1 << 32):
        with refused(status.INVALID_ASID):
            firmware.snp_activate(first, asid)
    firmware.snp_activate(first, 99)
    with refused(status.ACTIVE):
        firmware.snp_activate(first, 98)
    with refused(status.ASID_OWNED):
        firmware.snp_activate(second, 99)
    firmware.snp_decommission(first)
    with refused(status.DF_FLUSH_REQUIRED):
        firmware.snp_activate(second, 99)
    firmware.snp_df_flush()
    firmware.snp_activate(second, 99)
    with refused(status.INVALID_GUEST):
        firmware.snp_activate(first, 1)


def test_every_asid_once(firmware: Firmware) -> None:
    guests = []
    for asid in range(1, firmware.hardware.min_sev_asid):
        guests.append(started(firmware, asid=asid))
    assert len(set(guests)) == 99
    assert field(firmware.snp_platform_status(), 0x0C, 4) == 99
    for gctx in guests:
        firmware.snp_decommission(gctx)
    firmware.snp_df_flush()
    assert field(firmware.snp_platform_status(), 0x0C, 4) == 0
    started(firmware, asid=50)


def test_a_guest_on_a_core_cannot_be_ended(firmware: Firmware) -> None:
    gctx = running(firmware)
    firmware.set_on_core(gctx, True)
    for command in (firmware.snp_decommission, firmware.snp_deactivate):
        with refused(status.ACTIVE):
            command(gctx)
    firmware.set_on_core(gctx, False)
    firmware.snp_deactivate(gctx)
    with refused(status.INACTIVE):
        firmware.snp_deactivate(gctx)
    firmware.snp_decommission(gctx)


def test_commands_on_no_guest(firmware: Firmware) -> None:
    gctx = running(firmware)
    firmware.snp_decommission(gctx)
    for wrong in (gctx, 0, 1, -1, 1 << 64):
        for command in (
            firmware.snp_decommission,
            firmware.snp_guest_status,
            firmware.snp_deactivate,
            firmware.launch_digest,
        ):
            with refused(status.INVALID_GUEST):
                command(wrong)


def test_guest_status(firmware: Firmware) -> None:
    gctx = firmware.snp_gctx_create()
    assert firmware.snp_guest_status(gctx) == bytes(32)
    firmware.snp_launch_start(gctx, POLICY, bytes(16))
    firmware.snp_activate(gctx, 5)
    assert firmware.snp_guest_status(gctx) == struct.pack("<QIB3xI12x", POLICY, 5, 1, 0)
    firmware.snp_launch_finish(gctx, None, None, vcek_dis=True)
    assert firmware.snp_guest_status(gctx) == struct.pack("<QIB3xI12x", POLICY, 5, 2, 1)
