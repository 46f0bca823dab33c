"""`sev attest` as a process, on the files of a simulated guest: real open, real ioctl, real directories."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sev.guest
from sev.abi import cert_table
from sev.abi import guest_device as abi
from sev.attestation import Report
from sev.errors import FirmwareError
from sev.guest import ChannelDisabled, KeyRequest, ReportRequest, Throttled
from sev.guest.device import SevGuestDevice
from sevd.simulator.guest_host import HostRefused
from sevd.simulator.svsm import VTPM_GUID
from tests.support.served_guest import ServedGuest, served_guest


@pytest.fixture
def it(tmp_path: Path) -> Iterator[ServedGuest]:
    with served_guest(tmp_path) as made:
        yield made


@pytest.fixture
def under_svsm(tmp_path: Path) -> Iterator[ServedGuest]:
    with served_guest(tmp_path, svsm=True) as made:
        yield made


SEV = (sys.executable, "-c", "from sev.cli.main import entry; entry()")


@dataclass(frozen=True)
class Done:
    """What a process did."""

    code: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        return self.data.decode()

    def json(self) -> Any:
        return json.loads(self.data)


def attest(*words: object, code: int = 0) -> Done:
    """Runs `sev attest` and checks its exit code."""
    command = [*SEV, "attest", *map(str, words)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr.decode()
    assert done.returncode == code, done.stderr.decode()
    return Done(done.returncode, done.stdout, done.stderr.decode())


@pytest.mark.parametrize("way", ["device", "tsm"])
def test_a_report_that_verifies(it: ServedGuest, tmp_path: Path, way: str) -> None:
    report, certs = tmp_path / "report.bin", tmp_path / "certs"
    done = attest(
        "report",
        f"--{way}",
        getattr(it, way),
        "--report-data",
        "c0ffee",
        "--out",
        report,
        "--certs-out",
        certs,
        "--json",
    )
    document = done.json()
    assert document["report_data"] == "c0ffee" + "00" * 61
    assert document["vmpl"] == 0
    assert document["source"] == {"device": "sev-guest", "tsm": "configfs-tsm"}[way]
    assert set(document["certificates"]) == {"vcek", "ask", "ark"}
    assert "padded with 61 zero bytes" in done.err
    assert Report.parse(report.read_bytes()).report_data == bytes.fromhex(document["report_data"])
    verified = subprocess.run(
        [
            sys.executable,
            "-c",
            "from sev.cli.main import entry; entry()",
            "report",
            "verify",
            report,
            "--certs",
            certs,
            "--roots",
            certs / "ark.pem",
        ],
        capture_output=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout
    assert os.listdir(it.tsm) == []


def test_both_ways_show_the_same_guest(it: ServedGuest) -> None:
    with sev.guest.open(device=str(it.device)) as device, sev.guest.open(tsm=str(it.tsm)) as tsm:
        one, other = (way.report(ReportRequest(bytes(64), certificates=True)) for way in (device, tsm))
    assert one.certificate_table == other.certificate_table
    assert one.report[:0x2A0] == other.report[:0x2A0]


def test_random_report_data(it: ServedGuest, tmp_path: Path) -> None:
    request, report = tmp_path / "request", tmp_path / "report"
    done = attest("report", "--device", it.device, "--random", "--request", request, "--out", report)
    data = request.read_bytes()
    assert f"report data: {data.hex()}" in done.out
    assert Report.parse(report.read_bytes()).report_data == data
    again = attest("report", "--tsm", it.tsm, "--request", request, "--out", "-")
    assert Report.parse(again.data).report_data == data
    (tmp_path / "short").write_bytes(bytes(63))
    attest("report", "--device", it.device, "--request", tmp_path / "short", "--out", report, code=2)
    attest("report", "--device", it.device, "--request", request, "--report-data", "00", "--out", report, code=2)
    assert "answers no challenge" in attest("report", "--device", it.device, "--out", report).err
    assert attest("-q", "report", "--device", it.device, "--out", report).err == ""


@pytest.mark.parametrize("vmpl", range(4))
def test_levels(it: ServedGuest, vmpl: int) -> None:
    for way in ("device", "tsm"):
        done = attest("report", f"--{way}", getattr(it, way), "--vmpl", vmpl, "--out", "-")
        assert Report.parse(done.data).vmpl == vmpl


def test_certificates(it: ServedGuest, tmp_path: Path) -> None:
    certs, table = tmp_path / "certs", tmp_path / "table"
    done = attest("certificates", "--device", it.device, "--out", certs, "--der", "--cert-table", table, "--json")
    assert set(done.json()["files"]) == {"vcek", "ask", "ark", "vcek.der", "ask.der", "ark.der"}
    assert {guid for guid, _ in cert_table.parse(table.read_bytes())} == {
        cert_table.VCEK,
        cert_table.ASK,
        cert_table.ARK,
    }
    endorsements = it.host.endorsements()
    assert (certs / "vcek.der").read_bytes() == endorsements["vcek"]
    assert base64.b64encode(endorsements["ark"])[:64] in (certs / "ark.pem").read_bytes()


def test_a_host_without_certificates(it: ServedGuest, tmp_path: Path) -> None:
    it.devices.certificates = False
    done = attest("certificates", "--tsm", it.tsm, "--out", tmp_path / "certs", "--json")
    assert done.json()["files"] == {}
    assert "hands out no certificates" in done.err
    done = attest("report", "--device", it.device, "--out", tmp_path / "r", "--certs-out", tmp_path / "certs", "--json")
    assert done.json()["certificates"] == {}


def test_pem_and_rubbish_in_the_hosts_table(it: ServedGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sev.cli.certificates import pem
    from sevd.simulator import guest_nodes

    found = it.host.endorsements()
    table = cert_table.build(
        [
            (cert_table.VCEK, pem("vcek", found["vcek"])),
            (cert_table.ASK, pem("ask", found["ask"]) + pem("ark", found["ark"])),
            (cert_table.CRL, found["crl"]),
            (bytes(range(16)), b"rubbish"),
        ]
    )
    monkeypatch.setattr(guest_nodes, "certificate_table", lambda _endorsements: table)
    done = attest("certificates", "--device", it.device, "--out", tmp_path / "certs", "--json")
    assert set(done.json()["files"]) == {"vcek", "ask", "ark", "crl"}
    assert "left out" in done.err
    monkeypatch.setattr(guest_nodes, "certificate_table", lambda _endorsements: b"\xff" * 500)
    attest("certificates", "--device", it.device, "--out", tmp_path / "more", code=9)
    attest("report", "--tsm", it.tsm, "--out", tmp_path / "r", "--certs-out", tmp_path / "more", code=9)
    assert len((tmp_path / "r").read_bytes()) == 1184


def test_keys(it: ServedGuest, tmp_path: Path) -> None:
    key = tmp_path / "key"
    done = attest("key", "--device", it.device, "--fields", "policy,measurement", "--out", key, "--json")
    assert done.json() == {
        "key": str(key), "root": "any", "fields": ["policy", "measurement"], "vmpl": 0, "source": "sev-guest",
    }  # fmt: skip
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    data = key.read_bytes()
    assert len(data) == 32
    assert data.hex() not in done.out + done.err

    def derived(*words: object) -> bytes:
        return attest("key", "--device", it.device, "--out", "-", *words).data

    assert derived("--fields", "0x9") == data
    assert derived("--fields", "0b1001") == data
    assert derived("--fields", "9", "--root", "vcek") == data
    others = [derived(), derived("--root", "vmrk"), derived("--vmpl", "1"), derived("--guest-svn", "0")]
    assert len({data, *others}) == 5
    assert derived("--guest-svn", "0") == derived("--fields", "guest-svn")


def test_keys_that_are_refused(it: ServedGuest) -> None:
    for words, code in (
        (["--guest-svn", "1"], 6),
        (["--root", "vlek"], 6),
        (["--tcb-version", "0xffffffffffffffff"], 6),
        (["--launch-mit-vector", "1"], 6),
        (["--fields", "launch_mit_vector"], 6),
        (["--fields", "colour"], 2),
        (["--fields", "0xx"], 2),
        (["--launch-mit-vector", "1", "--message-version", "1"], 2),
    ):
        done = attest("key", "--device", it.device, "--out", "-", *words, code=code)
        assert done.data == b""
        assert done.err.startswith("sev: ")
    assert len(attest("key", "--device", it.device, "--out", "-").data) == 32


def test_the_signing_key(it: ServedGuest) -> None:
    done = attest("report", "--device", it.device, "--signing-key", "vcek", "--out", "-")
    assert Report.parse(done.data).signing_key == "vcek"
    done = attest("report", "--device", it.device, "--signing-key", "vlek", "--out", "-", "--json", code=6)
    assert done.json()["error"]["firmware_status"]["name"] == "INVALID_KEY"
    done = attest("report", "--tsm", it.tsm, "--signing-key", "vcek", "--out", "-", code=6)
    assert "--device" in done.err


def test_under_an_svsm(under_svsm: ServedGuest, tmp_path: Path) -> None:
    it = under_svsm
    report, manifest = tmp_path / "report", tmp_path / "manifest"
    words = ["report", "--tsm", it.tsm, "--out", report, "--random"]
    attest(*words, "--service-provider", "svsm", "--manifest-out", manifest)
    assert Report.parse(report.read_bytes()).vmpl == 0
    everything = manifest.read_bytes()
    attest(*words, "--service-provider", "svsm", "--service-guid", VTPM_GUID, "--manifest-out", manifest, "--json")
    assert everything.endswith(manifest.read_bytes())
    assert Report.parse(attest("report", "--tsm", it.tsm, "--out", "-").data).vmpl == 2
    attest(*words, "--vmpl", "1", code=2)
    attest(*words, "--service-provider", "svsm", "--service-guid", "x", code=2)
    attest(*words, "--service-guid", VTPM_GUID, code=2)
    attest(*words, "--service-provider", "svsm", "--service-guid", "00000000-0000-0000-0000-000000000001", code=6)
    attest("report", "--device", it.device, "--service-provider", "svsm", "--out", report, code=6)
    assert os.listdir(it.tsm) == []


def test_there_is_no_svsm(it: ServedGuest, tmp_path: Path) -> None:
    done = attest("report", "--tsm", it.tsm, "--service-provider", "svsm", "--out", tmp_path / "r", code=6)
    assert "SVSM" in done.err
    assert os.listdir(it.tsm) == []


def test_a_host_that_throttles(it: ServedGuest) -> None:
    def busy(command: str) -> None:
        if command == "SNP_GUEST_REQUEST":
            raise HostRefused(abi.VMM_ERROR_BUSY)

    it.host.faults = busy
    done = attest("report", "--device", it.device, "--out", "-", "--wait", "0", "--json", code=11)
    assert done.json()["error"]["errno"] == errno.ETIMEDOUT
    it.host.faults = lambda _command: None
    done = attest("report", "--device", it.device, "--out", "-", code=6)
    assert "vmpck_id" in done.err
    done = attest("report", "--tsm", it.tsm, "--out", "-", code=6)
    assert "wiped" in done.err
    assert os.listdir(it.tsm) == []
    done = attest("check", "--device", it.device, "--tsm", it.tsm, "--msr", it.msr, "--try", code=4)
    assert "FAIL  request.report" in done.out


def test_the_library_on_real_files(it: ServedGuest) -> None:
    with SevGuestDevice(str(it.device)) as device:
        keys = {device.derived_key(KeyRequest(vmpl=level)) for level in range(4)}
        assert len(keys) == 4
        for _ in range(20):
            nonce = os.urandom(64)
            assert device.report(ReportRequest(nonce, certificates=True)).parse().report_data == nonce
        with pytest.raises(FirmwareError):
            device.derived_key(KeyRequest(fields=1 << 4, guest_svn=7))
        it.host.faults = lambda _command: (_ for _ in ()).throw(OSError(errno.EIO, "lost"))
        with pytest.raises(sev.guest.HostRefused):
            device.report(ReportRequest(bytes(64)))
        with pytest.raises((ChannelDisabled, Throttled)):
            device.report(ReportRequest(bytes(64)))


def test_check_on_a_simulated_guest(it: ServedGuest) -> None:
    done = attest("check", "--device", it.device, "--tsm", it.tsm, "--msr", it.msr, "--try", "--json")
    document = done.json()
    assert document["able"] is True
    results = {check["id"]: check["result"] for check in document["checks"]}
    for passed in (
        "status.sev",
        "status.sev-es",
        "status.sev-snp",
        "device.sev-guest",
        "configfs.tsm",
        "request.report",
    ):
        assert results[passed] == "passed"
    assert "can ask for reports" in attest("check", "--device", it.device, "--tsm", it.tsm).out
    assert os.listdir(it.tsm) == []


def test_check_on_this_machine() -> None:
    if os.path.exists("/dev/sev-guest") or os.path.exists("/sys/kernel/config/tsm/report"):
        pytest.skip("this is a confidential guest")
    done = attest("check", code=4)
    assert "FAIL  device.sev-guest" in done.out
    document = attest("check", "--json", code=4).json()
    assert document["able"] is False
    assert document["kind"] in ("virtual-machine", "bare-metal")
    done = attest("report", "--out", "-", "--json", code=6)
    error = done.json()["error"]
    assert error["kind"] == "refused"
    assert "modprobe sev-guest" in error["remedy"]


def test_other_users_are_kept_out(it: ServedGuest, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    code = f"import os; print(os.stat({str(it.device)!r}).st_size); open({str(it.device)!r}, 'rb')"
    done = subprocess.run(["python3", "-c", code], user=65534, group=65534, cwd="/", capture_output=True, check=False)
    assert done.stdout == b"0\n"
    assert b"PermissionError" in done.stderr


def test_inside_the_guest_everything_is_found_by_itself(it: ServedGuest, tmp_path: Path) -> None:
    def inside(*words: object, code: int = 0) -> bytes:
        done = subprocess.run(
            it.inside([*SEV, "attest", *map(str, words)]), capture_output=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr.decode()
        return done.stdout

    assert json.loads(inside("report", "--out", tmp_path / "r", "--json"))["source"] == "configfs-tsm"
    assert json.loads(inside("key", "--out", tmp_path / "k", "--json"))["source"] == "sev-guest"
    assert Report.parse(inside("report", "--signing-key", "vcek", "--out", "-")).signing_key == "vcek"
    checked = json.loads(inside("check", "--try", "--json"))
    assert checked["able"] is True
    assert checked["kind"] == "sev-snp"
    assert not os.path.exists("/dev/sev-guest")
