"""SEV and SEV-ES guests launched by the driver on the simulated host, with the guest owner's own code on the other side."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

from sev import status
from sev.abi import kvm_sev_legacy as abi
from sev.abi.legacy_report import LegacyReport
from sev.abi.sev_certificate import SevCertificate
from sev.abi.sev_device import PlatformStatus
from sev.abi.sev_policy import SevPolicy
from sev.errors import KernelError, LimitReached, SevError, UsageError, WrongState
from sev.launch import Sev, SevDevice, SevEs
from sev.measurement.legacy import sev_es_plan, sev_plan
from sev.measurement.sample import sample_firmware
from sev.measurement.vcpu_types import signature
from sev.session import Session, TransportKeys, measurement, secret
from sev.session.measurement import BadMeasurement, Launch
from sevd.simulator import Simulator

FIRMWARE = sample_firmware(64 * 1024)
TOP = (1 << 32) - len(FIRMWARE)
CPU = signature("EPYC-v4")
NONCE = bytes(range(16))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator.open(tmp_path_factory.mktemp("rome"), product="rome", seed=7)
    yield simulator
    simulator.close()


@pytest.fixture
def process(host: Simulator) -> Iterator[Any]:
    process = host.process()
    before = host.asids()
    yield process
    process.exit()
    assert host.asids() == before


def pdh(process: Any) -> SevCertificate:
    with SevDevice(process, "/dev/sev") as device:
        return SevCertificate.read(device.pdh_export()[0])


def firmware(process: Any) -> tuple[int, int, int]:
    with SevDevice(process, "/dev/sev") as device:
        now = PlatformStatus.decode(device.platform_status())
    return now.api_major, now.api_minor, now.build


def created(process: Any, kind: type[Sev] = Sev, vcpus: int = 2) -> Sev:
    guest = kind(process)
    guest.create(1 << 20, len(FIRMWARE), vcpus, CPU, ap_reset_address=0x80B004)
    guest.memory(TOP, len(FIRMWARE))[:] = FIRMWARE
    return guest


@pytest.mark.parametrize("kind", [Sev, SevEs])
def test_the_whole_story(process: Any, kind: type[Sev]) -> None:
    policy = SevPolicy(5 if kind is SevEs else 1)
    session = Session.create(policy)
    start = session.start_unverified(pdh(process))
    guest = created(process, kind)
    assert guest.start(start.policy, start.certificate, start.session) > 0
    guest.update(TOP, len(FIRMWARE))
    assert bytes(guest.memory(TOP, len(FIRMWARE))) != FIRMWARE
    expected = sev_plan(FIRMWARE).digest()
    if kind is SevEs:
        guest.update_vmsa()
        expected = sev_es_plan(FIRMWARE, 2, vcpu_signature=CPU).digest()
    blob = guest.measure()
    launch = Launch(expected, policy.raw, *firmware(process))
    measure = measurement.check(session.keys.tik, blob, launch)
    with pytest.raises(BadMeasurement):
        measurement.check(session.keys.tik, blob, Launch(bytes(32), policy.raw, *firmware(process)))
    packet = secret.seal(session.keys, secret.table([(secret.DISK_PASSPHRASE, b"open sesame")]), measure)
    guest.secret(0x1000, packet.header, packet.payload)
    seen = bytes(guest.memory(0x1000, len(packet.payload)))
    assert b"sesame" not in seen
    guest.finish()
    assert abi.STATE_NAMES[guest.status().state] == "RUNNING"
    report = LegacyReport.parse(guest.attestation(NONCE))
    assert (report.mnonce, report.launch_digest, report.policy) == (NONCE, expected, policy)
    guest.close()
    guest.close()


def test_without_a_session_and_with_debugging(process: Any) -> None:
    with created(process) as guest:
        guest.start(0)
        guest.update(TOP, len(FIRMWARE))
        blob = guest.measure()
        measurement.check(bytes(16), blob, Launch(sha256(FIRMWARE).digest(), 0, *firmware(process)))
        guest.finish()
        assert guest.debug_read(TOP + 16, 4096) == FIRMWARE[16:4112]
        guest.debug_write(TOP, b"changed by debug")
        assert guest.debug_read(TOP, 16) == b"changed by debug"
        with pytest.raises(UsageError):
            guest.debug_read(TOP, 0)


def refused(action: Any) -> int | None:
    with pytest.raises(SevError) as caught:
        action()
    return caught.value.firmware_status


def test_a_policy_without_debugging(process: Any) -> None:
    with created(process) as guest:
        guest.start(1)
        guest.update(TOP, 4096)
        assert refused(lambda: guest.debug_read(TOP, 16)) == status.POLICY_FAILURE


def test_steps_out_of_order_are_the_firmwares_to_refuse(process: Any) -> None:
    with created(process) as guest:
        with pytest.raises(SevError):
            guest.update(TOP, 4096)  # before the start KVM knows no device
        guest.start(1)
        assert refused(guest.finish) == status.INVALID_GUEST_STATE
        guest.update(TOP, 4096)
        guest.measure()
        assert refused(lambda: guest.update(TOP, 4096)) == status.INVALID_GUEST_STATE
        guest.finish()
        assert refused(guest.measure) == status.INVALID_GUEST_STATE


def test_a_session_for_another_policy_or_platform(process: Any) -> None:
    session = Session(SevPolicy(1), TransportKeys.generate())
    start = session.start_unverified(pdh(process))
    with created(process) as guest:
        changed = start.session[:-1] + bytes([start.session[-1] ^ 1])
        assert refused(lambda: guest.start(3, start.certificate, start.session)) == status.BAD_MEASUREMENT
        assert refused(lambda: guest.start(1, start.certificate, changed)) == status.BAD_MEASUREMENT
        with pytest.raises(UsageError, match="both or neither"):
            guest.start(1, start.certificate)
        guest.start(1, start.certificate, start.session)  # a refusal leaves room for another try


def test_a_secret_for_another_launch(process: Any) -> None:
    session = Session.create(1)
    start = session.start_unverified(pdh(process))
    with created(process) as guest:
        guest.start(1, start.certificate, start.session)
        guest.update(TOP, 4096)
        measure = guest.measure()[:32]
        packet = secret.seal(session.keys, b"x" * 32, bytes(32))
        assert refused(lambda: guest.secret(0x1000, packet.header, packet.payload)) == status.BAD_MEASUREMENT
        good = secret.seal(session.keys, b"x" * 32, measure)
        guest.secret(0x1000, good.header, good.payload)


def test_asids_run_out(host: Simulator, process: Any) -> None:
    total = host.asids()["sev_es"][0]
    guests = []
    try:
        for _ in range(total):
            guest = SevEs(process)
            guest.create(4096, 0, 1, CPU)
            guests.append(guest)
        with pytest.raises(LimitReached, match="ASID"):
            SevEs(process).create(4096, 0, 1, CPU)
    finally:
        for guest in guests:
            guest.close()


def test_what_no_guest_can_have(process: Any) -> None:
    with pytest.raises(UsageError, match="VMSA"):
        Sev(process).create(4096, 0, 1, CPU, vmsa_features=0x20)
    with pytest.raises(SevError, match="VMSA features"):
        SevEs(process).create(4096, 0, 1, CPU, vmsa_features=1 << 40)
    guest = Sev(process)
    with pytest.raises(WrongState):
        guest.update(0, 4096)
    guest.create(1 << 20, 0, 1, CPU)
    with pytest.raises(WrongState):
        guest.create(1 << 20, 0, 1, CPU)
    with pytest.raises(UsageError):
        guest.update(8, 4096)
    with pytest.raises(UsageError):
        guest.attestation(b"short")
    guest.close()
    with pytest.raises(WrongState):
        guest.start(1)


def test_es_is_a_matter_of_policy_and_type(process: Any) -> None:
    with created(process) as guest, pytest.raises(KernelError) as caught:
        guest.update_vmsa()
    assert caught.value.errno == errno.ENOTTY
