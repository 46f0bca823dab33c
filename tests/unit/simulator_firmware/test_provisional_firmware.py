"""SNP_DOWNLOAD_FIRMWARE_EX: firmware that runs provisionally, is taken back or committed, and what reports show then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sev import products, status
from sev.abi import cert_table
from sev.abi.tcb import TcbVersion
from sev.errors import FirmwareError, KernelError, NotOffered, SevError, UsageError
from sevd.simulator import Simulator, versions
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_update import update
from sevd.simulator.guest_device import certificate_table
from tests.support.simulated import simulated_host
from tests.support.simulated_firmware import Open, refused

RAISED = TcbVersion.of(products.GENOA, bootloader=10, tee=0, snp=28, microcode=88)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Simulator]:
    with simulated_host(tmp_path) as simulator:
        yield simulator


def tcbs(firmware: Firmware) -> tuple[int, int, int]:
    return firmware.current_tcb, firmware.committed_tcb, firmware.reported_tcb


def test_until_a_commit_only_the_current_tcb_changes(host: Simulator) -> None:
    firmware = host.firmware
    before = tcbs(firmware)
    stick = firmware.vlek_hashstick()
    firmware.snp_vlek_load(stick)
    update(host, "1.55.50", "snp=28")
    assert firmware.version == (1, 55, 50)
    assert firmware.committed_version == (1, 55, 49)
    assert tcbs(firmware) == (RAISED.raw, before[1], before[2])
    assert firmware.vlek_tcb is not None
    firmware.snp_commit()
    assert firmware.committed_version == (1, 55, 50)
    assert tcbs(firmware) == (RAISED.raw,) * 3


def test_a_vlek_of_another_tcb_is_no_certificate_of_what_guests_get(host: Simulator) -> None:
    host.firmware.snp_vlek_load(host.firmware.vlek_hashstick())
    assert {"asvk", "vlek"} <= host.endorsements().keys()
    update(host, "1.55.50", "snp=28", commit=True)
    assert {"asvk", "vlek"} & host.endorsements().keys() == {"asvk"}
    table = cert_table.parse(certificate_table(host.endorsements()))
    assert [guid for guid, _ in table] == [cert_table.ASK, cert_table.ARK]


def test_until_a_commit_it_can_be_taken_back(host: Simulator) -> None:
    firmware = host.firmware
    before = tcbs(firmware)
    update(host, "1.55.60", "snp=30,microcode=90")
    update(host, "1.55.50", "snp=28")
    update(host, "1.55.49")
    assert (firmware.version, tcbs(firmware)) == ((1, 55, 49), before)


def test_after_a_commit_nothing_older_runs(host: Simulator) -> None:
    update(host, "1.55.50", "snp=28", commit=True)
    after = tcbs(host.firmware)
    assert after == (RAISED.raw,) * 3
    for version, tcb in (("1.55.49", ""), ("1.55.51", ""), ("1.55.49", "snp=28"), ("1.55.51", "snp=29,microcode=87")):
        with pytest.raises(FirmwareError) as error:
            update(host, version, tcb)
        assert error.value.firmware_status == status.BAD_SVN
        assert tcbs(host.firmware) == after
    update(host, "1.55.51", "snp=28")


def test_it_outlives_the_power(host: Simulator) -> None:
    update(host, "1.55.50", "snp=28")
    before = tcbs(host.firmware)
    host.ccp.power_cycle()
    assert tcbs(host.firmware) == before
    update(host, "1.55.49")
    host.ccp.power_cycle()
    assert tcbs(host.firmware)[0] == tcbs(host.firmware)[1]


def test_a_state_of_before_is_read(open_firmware: Open) -> None:
    firmware = open_firmware("genoa")
    firmware.snp_commit()  # writes the state anew: without a TCB of its own, as earlier versions did
    firmware.power_cycle()
    assert firmware.current_tcb == int.from_bytes(versions.release(products.GENOA, firmware.version).tcb, "little")


WRONG: list[tuple[str, str, str, type[SevError]]] = [
    ("no version", "newest", "", UsageError),
    ("an unknown version", "1.50.1", "", UsageError),
    ("a component of another line", "1.55.50", "fmc=1", UsageError),
    ("no TCB", "1.55.50", "high", UsageError),
    ("256", "1.55.50", "snp=256", UsageError),
]


@pytest.mark.parametrize(("version", "tcb", "kind"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG])
def test_what_cannot_be_installed(host: Simulator, version: str, tcb: str, kind: type[SevError]) -> None:
    before = host.firmware.version, tcbs(host.firmware)
    with pytest.raises(kind):
        update(host, version, tcb)
    assert (host.firmware.version, tcbs(host.firmware)) == before


def test_the_command_itself(open_firmware: Open) -> None:
    firmware = open_firmware("genoa")
    image = versions.image((1, 55, 50), RAISED.encode())
    for wrong in (b"", b"AMD's own", image[:-2], image + b"0", image.replace(b"1.55.50", b"1.55"), image[:-1] + b"g"):
        with refused(status.BAD_SIGNATURE):
            firmware.snp_download_firmware_ex(wrong)
    with refused(status.INVALID_PARAM):
        firmware.snp_download_firmware_ex(image, 2)
    with refused(status.BAD_VERSION):
        firmware.snp_download_firmware_ex(versions.image((1, 51, 1)))
    firmware.snp_init()
    firmware.snp_df_flush()
    firmware.init()
    with refused(status.INVALID_PLATFORM_STATE):
        firmware.snp_download_firmware_ex(image)
    firmware.shutdown()
    firmware.snp_download_firmware_ex(image, 1)
    assert firmware.committed_tcb == RAISED.raw


def test_snp_stays_up_and_sev_comes_back(host: Simulator) -> None:
    host.firmware.ca.ark_der()
    ccp = host.ccp
    assert (ccp.initialised, ccp.snp_initialised) == (True, True)
    update(host, "1.55.50")
    assert (ccp.initialised, ccp.snp_initialised) == (True, True)
    assert host.firmware.platform_status()[2] == 1
    ccp.dead = True
    with pytest.raises(KernelError) as error:
        update(host, "1.55.51")
    assert error.value.errno == 16


def test_a_line_without_snp_has_none(tmp_path: Path) -> None:
    with simulated_host(tmp_path, "rome") as rome, pytest.raises(NotOffered):
        update(rome, "0.24.20")
