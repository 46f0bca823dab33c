"""No guest ever gets a certificate that does not fit its report, whatever is done to the platform meanwhile.

Fifty readers take the table's read lock as VMMs do, each with a fresh report made under it, and verify one with the
other, while commits over provisional firmware, configurations and VLEKs run in a loop.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sev.attestation import Roots
from sev.client import Host
from sev.errors import SevError
from sev.measurement.sample import sample_firmware
from tests.support.daemon import Daemon
from tests.support.daemon import running as daemon_running
from tests.support.device_files import device_files, prepare
from tests.support.table_soak import Changes, Readers, chip_of, churn, judged, locked

FIRMWARE = sample_firmware(64 << 10)


@contextmanager
def guest(daemon: Daemon) -> Iterator[tuple[Host, str, Roots]]:
    """A launched guest, and whom to trust for its reports."""
    with daemon.connect(timeout=60) as host:
        launched = host.launch_snp(FIRMWARE, 1).guest
        ark = next(one.der for one in host.endorsements().endorsements if one.kind == "ark")
        try:
            yield host, launched.guest_id, Roots.from_pem(ark)
        finally:
            host.delete_guest(launched.guest_id, confirm=True)


def soak(
    daemon: Daemon,
    state: Path,
    seconds: float,
    capsys: pytest.CaptureFixture[str],
    *,
    number: int = 50,
    rest: float = 0.15,
) -> None:
    """The test itself: half of the time with VCEKs, half with VLEKs."""
    table = daemon.folder / "state" / "certs.bin"
    with guest(daemon) as (host, guest_id, roots):
        changes = Changes(host, chip_of(state))
        with Readers(lambda: daemon.connect(timeout=60), guest_id, table, roots, number=number, pause=0.5) as readers:
            churn(changes, seconds / 2, vlek=False, rest=rest)
            churn(changes, seconds / 2, vlek=True, rest=rest)
            last = host.snp_status()
            until = time.monotonic() + 20
            while host.endorsements().missing:
                assert time.monotonic() < until
                time.sleep(0.1)
        with locked(table) as fd:
            assert fd is not None
            nonce = bytes(64)
            assert judged(host.guest_report(guest_id, nonce).report, table.read_bytes(), nonce, roots)[0] == "vlek"
    with capsys.disabled():
        told = ", ".join(f"{count} {what}" for what, count in sorted(changes.counted.items()))
        seen = ", ".join(f"{count} {what}" for what, count in sorted(readers.counted.items()))
        print(f"\n{number} readers in {seconds:g} s: {len(readers.mismatches)} mismatches; {seen};")
        print(f"{len(readers.tcbs)} different keys and TCBs verified; {told}; at the end {last.firmware}")
    assert readers.mismatches == []
    assert changes.counted["commits"] >= 4
    assert changes.counted["configurations"] >= 8
    assert changes.counted["VLEKs"] >= 6
    assert readers.counted["vcek"] > 10
    assert readers.counted["vlek"] > 10
    assert len(readers.tcbs) > 4


def test_what_does_not_fit_is_seen(tmp_path: Path) -> None:
    """The readers' own judgement: an old table with a new report, and a VCEK's with one that a VLEK signed."""
    prepare(tmp_path)
    with daemon_running(tmp_path, "--simulate=genoa") as daemon, guest(daemon) as (host, guest_id, roots):
        table, nonce = daemon.folder / "state" / "certs.bin", bytes(64)
        changes = Changes(host, chip_of(tmp_path / "state"))
        before = table.read_bytes()
        assert judged(host.guest_report(guest_id, nonce).report, before, nonce, roots)[0] == "vcek"
        changes.commit()
        with pytest.raises(SevError):
            judged(host.guest_report(guest_id, nonce).report, before, nonce, roots)
        middle = table.read_bytes()
        changes.load_vlek()
        with pytest.raises(SevError, match="signed by the vlek"):
            judged(host.guest_report(guest_id, nonce).report, middle, nonce, roots)


def test_a_sample_of_no_mismatches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path)
    with daemon_running(tmp_path, "--simulate=genoa") as daemon:
        soak(daemon, tmp_path / "state", 5, capsys)


@pytest.mark.long
def test_no_mismatch_in_two_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path)
    with daemon_running(tmp_path, "--simulate=genoa") as daemon:
        soak(daemon, tmp_path / "state", 120, capsys)


@pytest.mark.long
def test_no_mismatch_over_device_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same with the simulator and the guest in processes of their own."""
    with (
        device_files(tmp_path / "simulator") as files,
        daemon_running(tmp_path / "daemon", f"--simulator={files.devices}") as daemon,
    ):
        soak(daemon, files.folder / "state", 60, capsys)


@pytest.mark.long
def test_no_mismatch_where_certificates_come_from_the_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table waits for each new certificate, without a leaf: it comes when the platform may report another TCB."""
    with device_files(tmp_path / "simulator", "--kds", "127.0.0.1:0") as files:
        provider = files.folder / "state" / "simulator" / "genoa" / "kds" / "provider.pem"
        config = tmp_path / "sevd.toml"
        config.write_text(f'[endorsements]\nkds_client = "{provider}"\nkds_retry_seconds = 1\n')
        url = json.loads((files.devices / "platform.json").read_text())["kds"]
        options = (f"--simulator={files.devices}", "--kds", url, "--config", str(config))
        with daemon_running(tmp_path / "daemon", *options) as daemon:
            with daemon.connect() as host:
                until = time.monotonic() + 30
                while host.endorsements().missing:
                    assert time.monotonic() < until
                    time.sleep(0.1)
            soak(daemon, files.folder / "state", 40, capsys, rest=1.5)
