"""What programs of others make of the guests' files: snpguest, and go-sev-guest's attest and check, unmodified."""

from __future__ import annotations

import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sev.abi import cert_table
from sev.abi.guest_message import REPORT_SIZE
from sev.attestation import Report
from sevd.simulator import Simulator, host_nodes
from sevd.simulator.fuse.nodes import StaticDirectory
from sevd.simulator.fuse.server import FileServer
from sevd.simulator.guest_nodes import GuestDevices, guest_tree, tsm_tree
from tests.support.guest_program import NONCE, running_guest
from tests.support.namespace import run_inside
from tests.support.needs import need_fuse, need_program
from tests.support.peers import peer
from tests.support.simulated import simulated_host

NAME = "guest-of-the-peers"
REPORT_FOLDER = "/sys/kernel/config/tsm/report"


@dataclass(frozen=True)
class Guest:
    """A simulated guest whose files are served.

    Attributes:
        host: Its host.
        files: The served files.
        folder: For what the programs write.
    """

    host: Simulator
    files: Path
    folder: Path

    @property
    def device(self) -> Path:
        return self.files / "sev-guest" / NAME

    @property
    def reports(self) -> Path:
        return self.files / "tsm" / NAME

    def snpguest(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs snpguest as in the guest."""
        inside = {"/dev/sev-guest": self.device, "/dev/cpu/0/msr": self.files / "msr"}
        return run_inside(inside, [str(peer("snpguest")), *arguments])

    def attest(self, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs attest on the device."""
        path = f"-sev_guest_device_path={self.device}"
        return subprocess.run(
            [str(peer("attest")), path, *_attest(out), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def attest_by_configfs(self, out: Path) -> subprocess.CompletedProcess[str]:
        """Runs attest on the report folder."""
        return run_inside({REPORT_FOLDER: self.reports}, [str(peer("attest")), *_attest(out)])

    def check(self, evidence: Path) -> subprocess.CompletedProcess[str]:
        """Runs check on evidence, with the simulator's roots."""
        product = self.host.host_facts().product.capitalize()
        chain = self.folder / "chain.pem"
        made = self.host.endorsements()
        chain.write_text(ssl.DER_cert_to_PEM_cert(made["ask"]) + ssl.DER_cert_to_PEM_cert(made["ark"]))
        options = ["-inform", "bin", "-network=false", "-guest_policy", "196608", "-product", product]
        options += ["-product_key_path", str(chain), "-report_data", NONCE.hex()]
        return subprocess.run(
            [str(peer("check")), "-in", str(evidence), *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def _attest(out: Path) -> list[str]:
    return ["-self_throttle_duration=0", "-inform", "hex", "-in", NONCE.hex(), "-extended", "-out", str(out)]


@contextmanager
def served(product: str, tmp_path: Path) -> Iterator[Guest]:
    need_fuse()
    need_program("unshare")
    files = Path(tempfile.mkdtemp(prefix="sevd-test-guest-peers-"))
    with simulated_host(tmp_path / "state", product) as host, running_guest(host, NAME):
        root = StaticDirectory()
        root.put("sev-guest", guest_tree(host))
        root.put("tsm", tsm_tree(host))
        root.put("msr", host_nodes.guest_msr())
        server = FileServer(files, root)
        server.start()
        try:
            yield Guest(host, files, tmp_path)
        finally:
            GuestDevices.of(host).close()
            server.close()
            files.rmdir()


@pytest.fixture(params=["milan", "genoa", "turin"])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    peer("snpguest")
    with served(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=["milan", "genoa"])
def go_guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    """go-sev-guest cannot read a Turin's certificates."""
    peer("attest")
    with served(request.param, tmp_path) as made:
        yield made


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def test_snpguest(guest: Guest) -> None:
    folder = guest.folder
    certs = folder / "certs"
    certs.mkdir()
    ok(guest.snpguest("report", f"{folder}/r", f"{folder}/q", "--random", "-v", "0"))
    report = Report.parse((folder / "r").read_bytes())
    assert report.raw == (folder / "r").read_bytes()
    assert report.report_data == (folder / "q").read_bytes()
    assert report.vmpl == 0
    ok(guest.snpguest("report", f"{folder}/r1", f"{folder}/q"))
    assert Report.parse((folder / "r1").read_bytes()).vmpl == 1
    ok(guest.snpguest("certificates", "pem", str(certs)))
    assert sorted(path.name for path in certs.iterdir()) == ["ark.pem", "ask.pem", "vcek.pem"]
    for name, root in (("k1", "vcek"), ("k2", "vcek"), ("k3", "vmrk")):
        ok(guest.snpguest("key", f"{folder}/{name}", root))
    keys = [(folder / name).read_bytes() for name in ("k1", "k2", "k3")]
    assert keys[0] == keys[1] != keys[2]
    assert len(keys[0]) == 32
    assert "VCEK was signed by the AMD ASK" in ok(guest.snpguest("verify", "certs", str(certs)))
    verified = ok(guest.snpguest("verify", "attestation", str(certs), f"{folder}/r"))
    assert "VEK signed the Attestation Report" in verified
    assert (
        report.measurement.hex()[:8] in ok(guest.snpguest("display", "report", f"{folder}/r")).replace(" ", "").lower()
    )
    assert "FAIL" not in ok(guest.snpguest("ok"))


def test_snpguest_where_the_host_has_no_certificates(guest: Guest) -> None:
    GuestDevices.of(guest.host).certificates = False
    certs = guest.folder / "none"
    certs.mkdir()
    done = guest.snpguest("certificates", "pem", str(certs))
    assert done.returncode == 0
    assert "No certificates were loaded by the host" in done.stderr
    assert list(certs.iterdir()) == []


def test_snpguest_asks_for_a_vector_that_linux_does_not_send_and_loses_the_key(guest: Guest) -> None:
    """It says version 2 and puts the vector behind the 32 bytes that the driver copies."""
    key = str(guest.folder / "k")
    assert guest.snpguest("key", key, "vcek", "--launch_mit_vector", "1").returncode == 1
    done = guest.snpguest("key", key, "vcek")
    assert done.returncode == 1
    assert "Unknown SEV FW Error Encountered: 0" in done.stderr + done.stdout


def test_attest_and_check_by_the_device(go_guest: Guest) -> None:
    for vmpl in range(4):
        out = go_guest.folder / f"r{vmpl}"
        ok(go_guest.attest(out, "-vmpl", str(vmpl)))
        report = Report.parse(out.read_bytes()[:REPORT_SIZE])
        assert (report.report_data, report.vmpl) == (NONCE, vmpl)
        ok(go_guest.check(out))


def test_attest_and_check_by_configfs(go_guest: Guest) -> None:
    out = go_guest.folder / "r"
    for turn in range(3):
        ok(go_guest.attest_by_configfs(out))
        # Each leaves the entry behind that it has made to see whether it can.
        assert len(list(go_guest.reports.iterdir())) == turn + 1
    evidence = out.read_bytes()
    assert Report.parse(evidence[:REPORT_SIZE]).report_data == NONCE
    table = dict(cert_table.parse(evidence[REPORT_SIZE:]))
    assert table[cert_table.VCEK] == go_guest.host.endorsements()["vcek"]
    ok(go_guest.check(out))
