"""SNP_LAUNCH_START: every check with its status."""

from __future__ import annotations

import pytest

from sev import status
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_platform import INIT_RAPL_DIS, INIT_RMP
from tests.support.simulated_firmware import (
    POLICY,
    Open,
    initialised,
    refused,
    running,
    started,
    update,
)


@pytest.mark.parametrize(
    ("product", "version", "policy", "code"),
    [
        ("genoa", None, 0x30000, None),
        ("genoa", None, 0x3001F, None),
        ("genoa", None, 0x30137, None),
        ("genoa", None, 0xB0000, None),
        ("genoa", None, 0x130000, None),
        ("genoa", None, 0x230000, None),
        ("genoa", None, 0x430000, None),
        ("genoa", None, 0x30138, status.POLICY_FAILURE),
        ("genoa", None, 0x30200, status.POLICY_FAILURE),
        ("genoa", None, 0x3FFFF, status.POLICY_FAILURE),
        ("genoa", None, 0x10000, status.POLICY_FAILURE),
        ("genoa", None, 0x20000, status.POLICY_FAILURE),
        ("genoa", None, 0x830000, status.POLICY_FAILURE),
        ("genoa", None, 0x1030000, status.POLICY_FAILURE),
        ("genoa", None, 0x2030000, status.POLICY_FAILURE),
        ("genoa", None, 0x4030000, status.POLICY_FAILURE),
        ("genoa", None, 1 << 63 | 0x30000, status.POLICY_FAILURE),
        ("genoa", (1, 58, 0), 0x2030000, None),
        ("genoa", (1, 58, 0), 0x3013A, None),
        ("genoa", (1, 55, 21), 0x230000, status.POLICY_FAILURE),
        ("genoa", (1, 55, 40), 0x230000, None),
        ("milan", None, 0x430000, status.POLICY_FAILURE),
        ("milan", (1, 52, 4), 0x30134, None),
        ("milan", (1, 52, 4), 0x30135, status.POLICY_FAILURE),
        ("milan", (1, 52, 4), 0x1F0000, None),
        ("milan", (1, 52, 4), 0x230000, status.POLICY_FAILURE),
        ("genoa", None, -1, status.INVALID_PARAM),
        ("genoa", None, 1 << 64, status.INVALID_PARAM),
    ],
)
def test_policies(
    open_firmware: Open, product: str, version: tuple[int, int, int] | None, policy: int, code: int | None
) -> None:
    firmware = initialised(open_firmware(product, version))
    gctx = firmware.snp_gctx_create()
    if code is None:
        firmware.snp_launch_start(gctx, policy, bytes(16))
        assert firmware.snp_guest_status(gctx)[:8] == policy.to_bytes(8, "little")
        return
    with refused(code):
        firmware.snp_launch_start(gctx, policy, bytes(16))
    assert firmware.snp_guest_status(gctx) == bytes(32), "nothing changed"
    firmware.snp_launch_start(gctx, POLICY, bytes(16))


def test_rapl_policy_where_rapl_is_off(open_firmware: Open) -> None:
    firmware = open_firmware()
    firmware.snp_init(INIT_RMP | INIT_RAPL_DIS)
    firmware.snp_launch_start(firmware.snp_gctx_create(), 0x830000, bytes(16))


def test_second_start(firmware: Firmware) -> None:
    with refused(status.INVALID_GUEST_STATE):
        firmware.snp_launch_start(started(firmware), POLICY, bytes(16))
    with refused(status.INVALID_GUEST_STATE):
        firmware.snp_launch_start(running(firmware, asid=2), POLICY, bytes(16))


@pytest.mark.parametrize("flags", [4, 1 << 31])
def test_reserved_start_flags(firmware: Firmware, flags: int) -> None:
    with refused(status.INVALID_PARAM):
        firmware.snp_launch_start(firmware.snp_gctx_create(), POLICY, bytes(16), flags=flags)


@pytest.mark.parametrize("size", [0, 15, 17])
def test_gosvw_of_another_size(firmware: Firmware, size: int) -> None:
    with refused(status.INVALID_PARAM):
        firmware.snp_launch_start(firmware.snp_gctx_create(), POLICY, bytes(size))


def test_start_of_no_guest(firmware: Firmware) -> None:
    with refused(status.INVALID_GUEST):
        firmware.snp_launch_start(0xDEAD000, POLICY, bytes(16))


def test_migration_agents(firmware: Firmware) -> None:
    with_agent = 0x70000
    agent = started(firmware, asid=1)

    def start(policy: int, ma_gctx: int) -> int:
        gctx = firmware.snp_gctx_create()
        firmware.snp_launch_start(gctx, policy, bytes(16), flags=1, ma_gctx=ma_gctx)
        return gctx

    with refused(status.POLICY_FAILURE):
        start(POLICY, agent)
    with refused(status.INVALID_GUEST):
        start(with_agent, 0xDEAD000)
    with refused(status.POLICY_FAILURE):
        start(with_agent | 1 << 20, agent)
    guest = start(with_agent, agent)
    with refused(status.POLICY_FAILURE):
        start(with_agent, guest)
    single = firmware.snp_gctx_create()
    firmware.snp_launch_start(single, POLICY | 1 << 20, bytes(16))
    start(with_agent | 1 << 20, single)

    update(firmware, agent, 1, 0x1000)
    firmware.snp_launch_finish(agent, None, None)
    firmware.snp_activate(guest, 2)
    firmware.snp_launch_finish(guest, None, None)
    agent_report, guest_report = firmware.guest_report(agent, bytes(64)), firmware.guest_report(guest, bytes(64))
    assert guest_report[0x160:0x180] == agent_report[0x140:0x160]
    assert agent_report[0x160:0x180] == b"\xff" * 32


def test_secrets_are_random_and_different(firmware: Firmware) -> None:
    first, second = started(firmware, asid=1), started(firmware, asid=2)
    keys = [firmware.vmpck(gctx, number) for gctx in (first, second) for number in range(4)]
    assert len(set(keys)) == 8
    assert {len(key) for key in keys} == {32}
    with refused(status.INVALID_PARAM):
        firmware.vmpck(first, 4)
    with refused(status.INVALID_PARAM):
        firmware.vmpck(firmware.snp_gctx_create(), 0)
