"""The library's predictions and ID blocks against the simulated firmware, and hostile ID pages."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev import status
from sev.abi.id_block import AUTH_SIZE, BLOCK_SIZE, IdBlock
from sev.abi.page_info import VMSA_GPA
from sev.measurement import id_block as identities
from sev.measurement.plan import snp_plan
from sev.measurement.sample import sample_firmware
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_status import FirmwareStatus
from tests.support.simulated_firmware import (
    AUTHOR_KEY,
    ID_KEY,
    PAGE,
    PATTERN,
    POLICY,
    id_block,
    refused,
    started,
    update,
)


@pytest.mark.parametrize("with_author", [False, True])
def test_id_blocks_of_the_library_pass(firmware: Firmware, with_author: bool) -> None:
    gctx = started(firmware)
    update(firmware, gctx, 1, 0x1000, PATTERN)
    block = IdBlock.decode(id_block(firmware.launch_digest(gctx)))
    auth = identities.authenticate(block, ID_KEY, AUTHOR_KEY if with_author else None)
    firmware.snp_launch_finish(gctx, block.encode(), auth.encode(), auth_key_en=with_author)
    report = firmware.guest_report(gctx, bytes(64))
    assert report[0xE0:0x110] == identities.public_digest(ID_KEY.public_key())
    if with_author:
        assert report[0x110:0x140] == identities.public_digest(AUTHOR_KEY.public_key())


@pytest.mark.parametrize("vcpus", [1, 3])
def test_predicted_digest_is_the_measured_one(firmware: Firmware, vcpus: int) -> None:
    plan = snp_plan(sample_firmware(), vcpus, vcpu_signature=0xA10F10)
    gctx = started(firmware)
    for region in plan.regions:
        contents = bytes(region.size) if region.data is None else bytes(region.data)
        update(firmware, gctx, region.page_type, region.gpa, contents)
    for vmsa in plan.vmsas:
        update(firmware, gctx, 2, VMSA_GPA, vmsa)
    assert firmware.launch_digest(gctx) == plan.digest()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tail=st.binary(min_size=BLOCK_SIZE - 0x38, max_size=BLOCK_SIZE - 0x38),
    auth=st.one_of(st.binary(max_size=200), st.binary(min_size=0xC84, max_size=0xC84)),
    author=st.booleans(),
)
def test_hostile_id_pages_are_refused_with_a_status(firmware: Firmware, tail: bytes, auth: bytes, author: bool) -> None:
    firmware.snp_df_flush()
    gctx = started(firmware)
    block = bytes(48) + tail + POLICY.to_bytes(8, "little")
    page = (b"\1\0\0\0\1\0\0\0" + auth).ljust(AUTH_SIZE, b"\0")
    with pytest.raises(FirmwareStatus) as caught:
        firmware.snp_launch_finish(gctx, block, page, auth_key_en=author)
    assert caught.value.code == status.BAD_SIGNATURE
    assert firmware.snp_guest_status(gctx)[12] == 1
    firmware.snp_decommission(gctx)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block=st.binary(max_size=200), auth=st.one_of(st.none(), st.binary(max_size=PAGE + 8)))
def test_hostile_id_blocks_are_refused_with_a_status(firmware: Firmware, block: bytes, auth: bytes | None) -> None:
    firmware.snp_df_flush()
    gctx = started(firmware)
    with pytest.raises(FirmwareStatus) as caught:
        firmware.snp_launch_finish(gctx, block, auth)
    assert caught.value.code in (
        status.INVALID_PARAM,
        status.BAD_MEASUREMENT,
        status.POLICY_FAILURE,
        status.BAD_SIGNATURE,
    )
    firmware.snp_decommission(gctx)


def test_a_digest_that_is_not_the_prediction(firmware: Firmware) -> None:
    gctx = started(firmware)
    update(firmware, gctx, 1, 0x1000, PATTERN)
    block = IdBlock.decode(id_block(snp_plan(sample_firmware(), 1, vcpu_signature=0xA10F10).digest()))
    with refused(status.BAD_MEASUREMENT):
        firmware.snp_launch_finish(gctx, block.encode(), identities.authenticate(block, ID_KEY).encode())
