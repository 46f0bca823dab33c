"""TCB rules: configuration, commitment, firmware versions, VLEK, and what outlives a restart."""

from __future__ import annotations

import errno
import os

import pytest

from sev import products, status
from sev.abi.tcb import TcbVersion
from sev.errors import FirmwareError
from sevd import durable
from sevd.simulator import store
from sevd.simulator.firmware import Firmware
from tests.support.simulated_firmware import Open, config, initialised, refused, running, started


def field(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")


def lower(tcb: int, product: str = "genoa", **components: int) -> int:
    return TcbVersion.from_int(tcb, products.by_name(product)).replace(**components).raw


def test_reported_tcb_can_be_lowered_and_follows_committed_again(firmware: Firmware) -> None:
    older = lower(firmware.committed_tcb, microcode=0x50)
    firmware.snp_config(config(older))
    assert (firmware.reported_tcb, firmware.committed_tcb) == (older, firmware.current_tcb)
    assert firmware.snp_platform_status()[0x18:] == older.to_bytes(8, "little")
    firmware.snp_config(config(0))
    assert firmware.reported_tcb == firmware.committed_tcb


@pytest.mark.parametrize(
    ("product", "component"),
    [
        ("genoa", "bootloader"),
        ("genoa", "tee"),
        ("genoa", "snp"),
        ("genoa", "microcode"),
        ("turin", "fmc"),
        ("milan", "snp"),
    ],
)
def test_no_component_may_exceed_committed(open_firmware: Open, product: str, component: str) -> None:
    firmware = initialised(open_firmware(product))
    committed = TcbVersion.from_int(firmware.committed_tcb, firmware.product)
    too_high = committed.replace(**{"microcode": 0, component: committed.components()[component] + 1})
    with refused(status.INVALID_PARAM):
        firmware.snp_config(config(too_high.raw))
    assert firmware.reported_tcb == firmware.committed_tcb


def test_unused_bytes_of_the_reported_tcb_must_be_zero(firmware: Firmware) -> None:
    with refused(status.INVALID_PARAM):
        firmware.snp_config(config(firmware.committed_tcb | 1 << 24))


@pytest.mark.parametrize("flags", [4, 1 << 31, 0xFFFFFFFC])
def test_reserved_config_flags(firmware: Firmware, flags: int) -> None:
    with refused(status.INVALID_PARAM):
        firmware.snp_config(config(0, flags))


@pytest.mark.parametrize("at", [0, 51])
def test_reserved_config_bytes(firmware: Firmware, at: int) -> None:
    tail = bytearray(52)
    tail[at] = 1
    with refused(status.INVALID_PARAM):
        firmware.snp_config(config(0, 0, bytes(tail)))


@pytest.mark.parametrize("size", [0, 63, 65])
def test_config_of_another_size(firmware: Firmware, size: int) -> None:
    with refused(status.INVALID_LENGTH):
        firmware.snp_config(bytes(size))


def test_a_refused_config_changes_nothing(firmware: Firmware) -> None:
    older = lower(firmware.committed_tcb, snp=1)
    firmware.snp_config(config(older, 1))
    with refused(status.INVALID_PARAM):
        firmware.snp_config(config(0, 8))
    assert firmware.reported_tcb == older
    assert field(firmware.snp_platform_status(), 8, 4) & 3 == 1


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_masks_show_in_status(firmware: Firmware, flags: int) -> None:
    firmware.snp_config(config(0, flags))
    assert field(firmware.snp_platform_status(), 8, 4) & 3 == flags


def test_newer_firmware_raises_current_until_it_is_committed(open_firmware: Open) -> None:
    old = open_firmware("milan", (1, 55, 20))
    old.snp_commit()
    assert old.current_tcb.to_bytes(8, "little").hex() == "03000000000016d1"
    older = lower(old.committed_tcb, "milan", microcode=1)
    old.snp_config(config(older))

    new = initialised(open_firmware("milan", (1, 55, 35)))
    assert new.version == (1, 55, 35)
    assert new.committed_version == (1, 55, 20)
    assert new.current_tcb.to_bytes(8, "little").hex() == "0400000000001bde"
    assert new.committed_tcb == old.committed_tcb
    assert new.reported_tcb == new.committed_tcb != older, "a reset ends what was configured"
    with refused(status.INVALID_PARAM):
        new.snp_config(config(new.current_tcb))
    report = new.guest_report(running(new), bytes(64))
    assert report[0x1E8:0x1F0] == bytes((35, 55, 1, 0, 20, 55, 1, 0))
    assert report[0x1F0:0x1F8] == report[0x1E0:0x1E8], "launch TCB is the committed one"

    new.snp_commit()
    assert new.committed_tcb == new.current_tcb == new.reported_tcb
    assert new.committed_version == new.version


def test_rolling_back_before_the_commit_and_not_after(open_firmware: Open) -> None:
    open_firmware("milan", (1, 55, 20)).snp_commit()
    open_firmware("milan", (1, 55, 29))
    assert open_firmware("milan", (1, 55, 20)).version == (1, 55, 20)
    open_firmware("milan", (1, 55, 29)).snp_commit()
    with pytest.raises(FirmwareError, match=r"1\.55\.20 is older than the committed one, 1\.55\.29") as caught:
        open_firmware("milan", (1, 55, 20))
    assert caught.value.firmware_status == status.BAD_SVN
    assert open_firmware("milan", (1, 55, 29)).version == (1, 55, 29)


def test_without_a_version_the_last_one_runs(open_firmware: Open) -> None:
    open_firmware("genoa", (1, 55, 40)).snp_commit()
    assert open_firmware("genoa").version == (1, 55, 40)


def test_identity_outlives_a_restart_and_configuration_vlek_and_state_do_not(open_firmware: Open) -> None:
    first = initialised(open_firmware())
    first.snp_config(config(0, 3))
    first.snp_vlek_load(first.vlek_hashstick())
    started(first)
    second = open_firmware()
    assert second.get_id() == first.get_id()
    word = field(second.snp_platform_status(), 8, 4)
    assert word & 7 == 0
    assert second.snp_platform_status()[2] == 0
    assert second.vlek_tcb is None
    assert field(initialised(second).snp_platform_status(), 0x0C, 4) == 0


def test_seeds_decide_the_chip_and_its_reports(open_firmware: Open) -> None:
    reports = [open_firmware() for _ in range(2)]
    made = [each.guest_report(running(initialised(each)), bytes(64)) for each in reports]
    assert made[0] == made[1], "report id and RFC 6979 signature repeat"
    other = initialised(open_firmware(seed=None))
    assert other.guest_report(running(other), bytes(64))[0x140:0x160] != made[0][0x140:0x160]


def test_vlek_load(firmware: Firmware) -> None:
    firmware.snp_vlek_load(firmware.vlek_hashstick())
    assert firmware.vlek_tcb == firmware.reported_tcb
    assert field(firmware.snp_platform_status(), 8, 4) & 4
    firmware.snp_config(config(lower(firmware.committed_tcb, snp=1)))
    assert firmware.vlek_tcb == firmware.committed_tcb, "a configuration does not drop the VLEK"
    firmware.snp_shutdown()
    assert not field(firmware.snp_platform_status(), 8, 4) & 4


def test_vlek_for_another_tcb(firmware: Firmware) -> None:
    with refused(status.BAD_SVN):
        firmware.snp_vlek_load(firmware.vlek_hashstick(lower(firmware.reported_tcb, snp=1)))
    firmware.snp_config(config(lower(firmware.committed_tcb, snp=1)))
    firmware.snp_vlek_load(firmware.vlek_hashstick())


def test_vlek_for_another_chip(firmware: Firmware, open_firmware: Open) -> None:
    milan = open_firmware("milan")
    blob = milan.vlek_hashstick(firmware.reported_tcb)
    with refused(status.BAD_MEASUREMENT):
        firmware.snp_vlek_load(blob)
    assert firmware.vlek_tcb is None


@pytest.mark.parametrize("at", [0, 0x10, 0x100, 0x1A0, 0x1AF])
def test_damaged_vlek(firmware: Firmware, at: int) -> None:
    blob = bytearray(firmware.vlek_hashstick())
    blob[at] ^= 0x40
    with refused(status.BAD_MEASUREMENT):
        firmware.snp_vlek_load(bytes(blob))


@pytest.mark.parametrize("at", [0x0C, 0x0F, 0x198, 0x19F])
def test_reserved_bytes_of_a_vlek(firmware: Firmware, at: int) -> None:
    blob = bytearray(firmware.vlek_hashstick())
    blob[at] = 1
    with refused(status.INVALID_PARAM):
        firmware.snp_vlek_load(bytes(blob))


@pytest.mark.parametrize("size", [0, 431, 433, 4096])
def test_vlek_of_another_size(firmware: Firmware, size: int) -> None:
    with refused(status.INVALID_PARAM):
        firmware.snp_vlek_load(bytes(size))


def test_vlek_of_another_version(firmware: Firmware) -> None:
    with refused(status.INVALID_PARAM):
        firmware.snp_vlek_load(firmware.vlek_hashstick(), wrapped_version=1)


def test_vlek_on_firmware_that_has_none(open_firmware: Open) -> None:
    firmware = initialised(open_firmware("milan", (1, 52, 4)))
    with refused(status.INVALID_COMMAND):
        firmware.snp_vlek_load(firmware.vlek_hashstick())


# A disk that is full


def test_nothing_is_committed_that_cannot_be_stored(open_firmware: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    open_firmware("milan", (1, 55, 20)).snp_commit()
    firmware = initialised(open_firmware("milan", (1, 55, 29)))
    committed = firmware.committed_tcb

    def full(_path: object, _data: object, _mode: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", full)
        for command in (firmware.snp_commit, lambda: firmware.snp_config(config(0, 3))):
            with refused(status.HWERROR_PLATFORM):
                command()
        assert (firmware.committed_tcb, firmware.committed_version) == (committed, (1, 55, 20))
        assert firmware.snp_platform_status()[8] & 3 == 0
        with pytest.raises(store.NotStored, match="No space left"):
            firmware.ca.vcek_der(5)
        with pytest.raises(store.NotStored):
            firmware.ca.crl_der()
    firmware.ca.vcek_der(5)
    firmware.ca.crl_der()
    firmware.snp_commit()
    assert open_firmware("milan").committed_version == (1, 55, 29)
