"""The daemon on a running sevd-simulator: real open and ioctl, guests in workers, and a simulator that goes and comes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sev.attestation import Collateral, Report, Roots, verify
from sev.client import Host
from sev.errors import DeviceMissing, NotOffered, SevError
from sev.measurement.sample import sample_firmware
from tests.integration.test_workers_survive import Service
from tests.support.device_files import DeviceFiles, command, device_files, wait_for
from tests.support.running import fails
from tests.support.workers import status

FIRMWARE = sample_firmware()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[DeviceFiles]:
    folder = tmp_path / "sim"
    folder.mkdir()
    with device_files(folder) as served:
        yield served


@pytest.fixture
def service(tmp_path: Path, files: DeviceFiles) -> Iterator[Service]:
    folder = tmp_path / "sevd"
    folder.mkdir()
    made = Service(folder, "--simulator", str(files.devices))
    made.start()
    try:
        yield made
    except BaseException:
        for pid in made.workers():
            os.kill(pid, signal.SIGKILL)
        raise
    made.end()


def until(what: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def genuine(host: Host, files: DeviceFiles, guest_id: str, nonce: bytes) -> Report:
    """The guest's report, verified against the simulator's root."""
    answer = host.guest_report(guest_id, nonce)
    report = Report.parse(answer.report)
    roots = Roots.from_pem((files.devices / "roots" / "ark.pem").read_bytes())
    collateral = Collateral(certificate_table=answer.certificate_table)
    return verify(report, collateral, at=datetime.now(UTC), roots=roots).report


def test_a_guest_is_launched_measured_and_attested(service: Service, files: DeviceFiles) -> None:
    with service.connect() as host:
        view = host.host()
        assert (view.simulated, view.product) == (True, "genoa")
        assert host.snp_status().state == "init"
        launched = host.launch_snp(FIRMWARE, 2)
        guest = launched.guest
        assert launched.as_expected
        assert (guest.simulated, guest.protected, guest.state) == (True, False, "ready")
        assert guest.asid > 0
        assert host.host().sev_es_asids.in_use == 1
        assert os.path.exists(files.devices / "sev-guest" / guest.guest_id)
        report = genuine(host, files, guest.guest_id, b"n" * 64)
        assert report.measurement == launched.expected_digest
        assert report.report_data == b"n" * 64
        assert len(host.guest_key(guest.guest_id)) == 32
        (pid,) = service.workers()
        seen = status(pid)
        assert (seen["Seccomp"], seen["CapEff"]) == ("2", "0" * 16)
        host.delete_guest(guest.guest_id, confirm=True)
        assert host.host().sev_es_asids.in_use == 0
        assert not os.path.exists(files.devices / "sev-guest" / guest.guest_id)


def test_a_simulator_s_device_does_not_pass_for_a_real_one(tmp_path: Path, files: DeviceFiles) -> None:
    folder = tmp_path / "by-device"
    folder.mkdir()
    service = Service(folder, "--device", str(files.sev))
    service.start()
    try:
        with service.connect() as host:
            assert host.host().simulated
            launched = host.launch_snp(FIRMWARE, 1)
            assert launched.guest.simulated
            assert launched.as_expected
    finally:
        service.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_guests_outlive_the_daemon_in_the_middle_of_a_launch(service: Service, files: DeviceFiles, number: int) -> None:
    with service.connect() as host:
        ready = host.launch_snp(FIRMWARE, 1).guest
        half = host.create_guest(
            memory_bytes=16 << 20, firmware_bytes=65536, vcpu_count=1, cpuid_signature=0xA00F11, guest_id="half-way-1"
        )
        host.load_memory(half.guest_id, [((4 << 30) - 65536, b"f" * 65536)])
        host.start_launch(half.guest_id, policy=0x30000)
        host.update_launch(half.guest_id, [((4 << 30) - 65536, 32768, 1)])
    service.kill(number)
    service.start()
    with service.connect() as host:
        assert host.guest(ready.guest_id) == ready
        found = host.guest(half.guest_id)
        assert (found.state, found.policy, found.updated_pages) == ("launching", 0x30000, 8)
        with pytest.raises(SevError, match="part of the launch already"):
            host.update_launch(half.guest_id, [((4 << 30) - 65536, 65536, 1)])
        host.update_launch(half.guest_id, [((4 << 30) - 32768, 32768, 1)])
        assert len(host.finish_launch(half.guest_id).launch_digest) == 48
        assert genuine(host, files, ready.guest_id, bytes(64)).measurement == ready.launch_digest


def test_errors_of_the_firmware_arrive_through_the_worker(service: Service) -> None:
    with service.connect() as host:
        guest = host.create_guest(memory_bytes=1 << 20, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0xA00F11)
        with pytest.raises(SevError) as refused:
            host.start_launch(guest.guest_id, policy=0x3FF00)
        assert refused.value.firmware_status == 0x7
        assert refused.value.command == "SNP_LAUNCH_START"
        assert refused.value.remedy
        assert host.guest(guest.guest_id).state == "created"
        host.start_launch(guest.guest_id, policy=0x30000)
        with pytest.raises(SevError) as refused:
            host.finish_launch(guest.guest_id, id_block=bytes(96), id_auth=bytes(4096))
        assert refused.value.firmware_status
        assert host.guest(guest.guest_id).state == "failed"
        service.kill()
        service.start()
    with service.connect() as host:
        failed = host.guest(guest.guest_id)
        assert failed.state == "failed"
        assert failed.failure


def test_a_simulator_that_ends_takes_its_guests_and_one_that_comes_back_is_used(
    service: Service, files: DeviceFiles
) -> None:
    with service.connect() as host:
        guest = host.launch_snp(FIRMWARE, 1).guest
        files.process.kill()
        files.process.wait()
        until(lambda: host.guest(guest.guest_id).state == "lost")
        assert "the simulator ended" in host.guest(guest.guest_id).failure
        assert service.workers() == []
        for refused in (host.snp_status, lambda: host.launch_snp(FIRMWARE, 1)):
            with pytest.raises(DeviceMissing, match="does not run") as error:
                refused()
            assert "sevd-simulator" in error.value.remedy
        until(lambda: any("does not run" in one for one in host.host().missing))
        assert host.host().simulated
        with (files.folder / "log").open("ab") as log:
            again = subprocess.Popen(command(files.folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(DeviceFiles(files.devices, again, files.folder))
            assert host.snp_status().state == "init"
            second = host.launch_snp(FIRMWARE, 1)
            assert second.as_expected
            until(lambda: not host.host().missing)
            assert host.guest(guest.guest_id).state == "lost"
            host.delete_guest(second.guest.guest_id, confirm=True)
        finally:
            again.terminate()
            assert again.wait(20) == 0


def test_playing_a_plain_guest_is_not_offered(service: Service) -> None:
    with service.connect() as host:
        guest = host.create_guest(
            guest_type="plain",
            memory_bytes=1 << 20,
            firmware_bytes=4096,
            vcpu_count=1,
            cpuid_signature=0,
            vmsa_features=0,
        )
        host.start_launch(guest.guest_id, policy=0)
        assert host.finish_launch(guest.guest_id).state == "ready"
        with pytest.raises(NotOffered):
            host.guest_report(guest.guest_id, bytes(64))


def test_what_is_no_simulator_s_directory_is_said_precisely(tmp_path: Path, files: DeviceFiles) -> None:
    state = ["--simulator"]
    cases = [
        (str(tmp_path / "nothing"), "No such file or directory"),
        (str(tmp_path), "it holds no platform.json: no sevd-simulator serves it"),
    ]
    stale = tmp_path / "stale"
    stale.mkdir()
    (stale / "platform.json").write_text("{}")
    (stale / "control.sock").touch()
    cases.append((str(stale), "it holds no sev: the simulator is not ready, or has ended"))
    (stale / "sev").touch()
    cases.append((str(stale), "its platform.json is not that of a simulator"))
    (tmp_path / "run").mkdir()
    for directory, why in cases[:2] + cases[3:]:
        code, said = fails(tmp_path / "run", *state, directory)
        assert code == 2
        assert why in said
        assert "sevd-simulator --state-dir" in said
    (stale / "platform.json").write_bytes((files.devices / "platform.json").read_bytes())
    code, said = fails(tmp_path / "run", *state, str(stale))
    assert (code, "nobody answers at its control.sock" in said) == (2, True)
    for options in (("--simulate", "--simulator", str(files.devices)), ("--device", "/x", *state, str(files.devices))):
        code, said = fails(tmp_path / "run", *options)
        assert code == 2
        assert "--simulator" in said
