"""A daemon that is killed while it changes the platform, or not there while others do: no table that does not fit stays."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from sev.abi import cert_table, sev_device
from sev.attestation import Roots
from sev.errors import SevError
from sev.launch.linux import LinuxKernel
from sev.launch.platform import SevDevice
from sev.measurement.sample import sample_firmware
from sevd.simulator.control_client import ControlClient
from tests.support.daemon import running
from tests.support.device_files import device_files
from tests.support.table_soak import Changes, chip_of, judged, locked

EMPTY = cert_table.build(())
NONCE = bytes(64)


def roots(devices: Path) -> Roots:
    return Roots.from_pem((devices / "roots" / "ark.pem").read_bytes())


def test_a_daemon_that_is_killed_in_the_middle_of_a_command_leaves_an_empty_table(tmp_path: Path) -> None:
    table = tmp_path / "daemon" / "state" / "certs.bin"
    with device_files(tmp_path / "simulator") as files:
        trusted, option = roots(files.devices), f"--simulator={files.devices}"
        with running(tmp_path / "daemon", option) as daemon, daemon.connect(timeout=30) as host:
            guest_id = host.launch_snp(sample_firmware(64 << 10), 1).guest.guest_id
            snp = host.snp_status().reported_tcb.snp
            assert snp
            assert judged(host.guest_report(guest_id, NONCE).report, table.read_bytes(), NONCE, trusted)[0] == "vcek"
            control = ControlClient.connect(files.devices / "control.sock")
            control.fault("SNP_CONFIG:delay=1.5:times=1")
            failed: list[SevError] = []

            def change() -> None:
                with daemon.connect(timeout=3) as own:
                    try:
                        own.snp_set_config(reported_tcb={"snp": snp - 1})
                    except SevError as error:
                        failed.append(error)

            changing = threading.Thread(target=change)
            changing.start()
            until = time.monotonic() + 10
            while control.call("faults")["faults"]:  # until the command is under way
                assert time.monotonic() < until
                time.sleep(0.01)
            assert table.read_bytes() == EMPTY
            control.close()
            daemon.process.kill()
            daemon.process.wait()
            # The firmware goes on with the command, and the lock went with the daemon: what a guest gets fits.
            with locked(table) as fd:
                assert fd is not None
                assert table.read_bytes() == EMPTY
            changing.join(60)
            assert failed
        with running(tmp_path / "daemon", option) as daemon, daemon.connect(timeout=30) as host:
            assert host.snp_status().reported_tcb.snp == snp - 1
            host.endorsements()
            outcome, report = judged(host.guest_report(guest_id, NONCE).report, table.read_bytes(), NONCE, trusted)
            assert report.reported_tcb is not None
            assert (outcome, report.reported_tcb.snp) == ("vcek", snp - 1)
            host.delete_guest(guest_id, confirm=True)


def test_what_others_change_while_no_daemon_runs_is_found_at_the_start(tmp_path: Path) -> None:
    table = tmp_path / "daemon" / "state" / "certs.bin"
    with device_files(tmp_path / "simulator") as files:
        trusted, option = roots(files.devices), f"--simulator={files.devices}"
        with running(tmp_path / "daemon", option) as daemon, daemon.connect(timeout=30) as host:
            guest_id = host.launch_snp(sample_firmware(64 << 10), 1).guest.guest_id
            changes = Changes(host, chip_of(files.folder / "state"))
            changes.load_vlek()
            loaded = host.snp_status()
            assert loaded.vlek is not None
            assert loaded.vlek.tcb == loaded.reported_tcb
            assert judged(host.guest_report(guest_id, NONCE).report, table.read_bytes(), NONCE, trusted)[0] == "vlek"
        with SevDevice(LinuxKernel(), str(files.sev)) as device:
            assert loaded.reported_tcb.snp
            lower = loaded.reported_tcb.replace(snp=loaded.reported_tcb.snp - 1)
            device.snp_set_config(sev_device.SnpConfig(lower.raw).encode())
        with running(tmp_path / "daemon", option) as daemon, daemon.connect(timeout=30) as host:
            # It remembers which VLEK it loaded: it is not that of the TCB that is reported now.
            missing = host.endorsements().missing
            assert "The loaded VLEK is for the TCB" in missing[0]
            assert host.snp_status().vlek == loaded.vlek
            assert judged(host.guest_report(guest_id, NONCE).report, table.read_bytes(), NONCE, trusted)[0] == "bare"
            Changes(host, chip_of(files.folder / "state")).load_vlek()
            assert judged(host.guest_report(guest_id, NONCE).report, table.read_bytes(), NONCE, trusted)[0] == "vlek"
            host.delete_guest(guest_id, confirm=True)
