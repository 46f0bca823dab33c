"""Values and messages say the same: numbers of enums, and every field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum
from typing import Any

import pytest

from sev import products
from sev.abi.tcb import TcbVersion
from sev.errors import UsageError
from sev.host.facts import KernelFacts
from sev.v1 import (
    endorsement_pb2,
    guest_pb2,
    host_pb2,
    options_pb2,
    sev_platform_pb2,
    simulator_pb2,
    snp_platform_pb2,
    types_pb2,
)
from sevd.access.roles import Role
from sevd.api import messages
from sevd.endorsements.model import (
    Endorsement,
    EndorsementKind,
    EndorsementSet,
    Refreshed,
    RefreshResult,
    RefreshState,
)
from sevd.events import Event
from sevd.guests.model import Guest, GuestState, GuestType, PageType
from sevd.platform.views import (
    AsidUse,
    DesiredView,
    DeviceHealth,
    FirmwareVersion,
    HostView,
    SevState,
    SnpState,
    SnpStatusView,
    VlekView,
)

NOW = datetime(2026, 5, 4, 3, 2, 1, 500000, tzinfo=UTC)
GENOA_TCB = TcbVersion.of(products.GENOA, bootloader=9, tee=0, snp=23, microcode=72)
TURIN_TCB = TcbVersion.of(products.TURIN, fmc=1, bootloader=2, tee=3, snp=4, microcode=5)


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (Role, options_pb2.Role, "ROLE_"),
        (GuestState, guest_pb2.GuestState, "GUEST_STATE_"),
        (GuestType, guest_pb2.GuestType, "GUEST_TYPE_"),
        (PageType, guest_pb2.PageType, "PAGE_TYPE_"),
        (DeviceHealth, host_pb2.DeviceHealth, "DEVICE_HEALTH_"),
        (SnpState, snp_platform_pb2.SnpState, "SNP_STATE_"),
        (SevState, sev_platform_pb2.SevState, "SEV_STATE_"),
        (EndorsementKind, endorsement_pb2.EndorsementKind, "ENDORSEMENT_KIND_"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_enums_have_the_same_numbers(ours: type[IntEnum], theirs: Any, prefix: str) -> None:
    mine = {f"{prefix}{member.name}": int(member) for member in ours}
    api = dict(theirs.items())
    if f"{prefix}UNSPECIFIED" not in mine:
        api.pop(f"{prefix}UNSPECIFIED")
    assert mine == api


def test_key_choices_are_the_firmware_s_numbers() -> None:
    assert dict(simulator_pb2.KeySelection.items()) == {
        "KEY_SELECTION_UNSPECIFIED": 0,
        "KEY_SELECTION_VCEK": 1,
        "KEY_SELECTION_VLEK": 2,
    }
    assert dict(simulator_pb2.KeyRoot.items()) == {"KEY_ROOT_UNSPECIFIED": 0, "KEY_ROOT_VMRK": 1}


@pytest.mark.parametrize("version", [GENOA_TCB, TURIN_TCB], ids=["genoa", "turin"])
def test_a_tcb_goes_there_and_back(version: TcbVersion) -> None:
    message = messages.tcb(version)
    assert message.raw == version.raw
    assert message.HasField("fmc") == (version is TURIN_TCB)
    message.ClearField("raw")
    assert messages.wanted_tcb(message) == version.components()


def test_a_wanted_tcb_is_components_or_raw() -> None:
    assert messages.wanted_tcb(types_pb2.TcbVersion(snp=0)) == {"snp": 0}
    assert messages.wanted_tcb(types_pb2.TcbVersion(raw=5)) == 5
    for bad in (types_pb2.TcbVersion(), types_pb2.TcbVersion(snp=1, raw=5)):
        with pytest.raises(UsageError) as caught:
            messages.wanted_tcb(bad)
        assert caught.value.field == "reported_tcb"


def test_times_keep_their_moment() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    assert messages.timestamp(elsewhere).ToDatetime(UTC) == NOW


def unset(message: Any) -> set[str]:
    return {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}


STATUS = SnpStatusView(
    state=SnpState.INIT,
    firmware_version=FirmwareVersion(1, 55, 40),
    guest_count=1,
    current_tcb=GENOA_TCB,
    reported_tcb=GENOA_TCB,
    committed_tcb=GENOA_TCB,
    mask_chip_id=True,
    mask_chip_key=True,
    vlek_loaded=True,
    rmp_initialized=True,
    alias_check_complete=True,
    feature_info=True,
    rapl_dis=True,
    ciphertext_hiding_cap=True,
    ciphertext_hiding_en=True,
    raw=b"r" * 32,
    vlek=VlekView(GENOA_TCB, "ab" * 32, NOW),
)


def test_a_full_host_fills_every_field() -> None:
    view = HostView(
        product="genoa",
        simulated=True,
        firmware_version=FirmwareVersion(1, 55, 40),
        kernel="7.0",
        sev_asids=AsidUse(5, 1),
        sev_es_asids=AsidUse(6, 2),
        chip_id=b"c" * 64,
        technologies=("sev-snp",),
        missing=("x",),
        device_health=DeviceHealth.READY,
        daemon_version="1",
        guest_count=3,
        cpu_family=25,
        cpu_model=17,
        cpu_stepping=1,
        offers=KernelFacts(("default", "sev-snp"), (("kvm_amd.sev_snp", "Y"),), "7.1", "C"),
        desired=DesiredView("snp=23", False, True, "/etc/sevd/vlek.bin", STATUS, ("it deviates",), NOW),
    )
    message = messages.host(view)
    assert unset(message) == set()
    assert (message.firmware, message.sev_es_asids.in_use) == ("1.55.40", 2)


def test_a_full_status_fills_every_field() -> None:
    assert unset(messages.snp_status(STATUS)) == set()
    assert unset(messages.snp_status(STATUS).vlek) == set()


def test_what_is_wanted_of_the_platform_fills_every_field() -> None:
    view = DesiredView("snp=23", False, True, "/etc/sevd/vlek.bin", STATUS, ("it deviates",), NOW)
    message = messages.desired_platform(view)
    assert unset(message) == set()
    assert (message.HasField("mask_chip_id"), message.mask_chip_id) == (True, False)
    nothing = messages.desired_platform(DesiredView("committed", None, None, "", None, (), None))
    assert unset(nothing) == {field.name for field in nothing.DESCRIPTOR.fields} - {"reported_tcb"}


def test_a_full_guest_fills_every_field() -> None:
    guest = Guest(
        guest_id="guest-0001",
        type=GuestType.SNP,
        state=GuestState.FAILED,
        owner="uid:1",
        vcpu_count=2,
        memory_bytes=4096,
        create_time=NOW,
        policy=0x30000,
        launch_digest=b"d" * 48,
        asid=3,
        failure="why",
        simulated=True,
        label="l",
        updated_pages=9,
        protected=True,
        measurement=b"m" * 48,
    )
    assert unset(messages.guest(guest)) == set()


def test_a_full_event_and_endorsement_fill_every_field() -> None:
    event = Event(1, NOW, "guest.created", "m", "guest-0001", "uid:1", {"a": "b"}, True)
    assert unset(messages.event(event)) == set()
    one = Endorsement(EndorsementKind.VCEK, b"der", "import", GENOA_TCB, NOW, NOW)
    assert unset(messages.endorsement(one)) == set()
    item = Refreshed("vcek", RefreshResult.FAILED, "why", NOW)
    state = RefreshState("https://kds", NOW, NOW, (item,))
    answer = messages.endorsement_set(EndorsementSet((one,), b"t", ("m",), True), state)
    assert unset(answer) == set()
    assert unset(answer.refresh) == set()
    assert unset(answer.refresh.items[0]) == set()
