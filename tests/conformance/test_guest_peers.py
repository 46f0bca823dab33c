"""What programs of others make of the guests' files: snpguest, and go-sev-guest's attest and check, unmodified."""

from __future__ import annotations

import base64
import secrets
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sev.abi import cert_table
from sev.abi.guest_message import REPORT_SIZE
from sev.abi.id_block import IdAuth, IdBlock
from sev.attestation import Report
from sev.measurement import id_block as id_blocks
from sev.measurement import snp_launch_digest
from sev.measurement.sample import sample_firmware
from tests.support.guest_program import NONCE
from tests.support.peers import peer
from tests.support.served_guest import ServedGuest, served_guest

pytestmark = [pytest.mark.peer, pytest.mark.root]


@dataclass(frozen=True)
class Guest:
    """A simulated guest whose files are served.

    Attributes:
        it: The guest.
        folder: For what the programs write.
    """

    it: ServedGuest
    folder: Path

    def snpguest(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs snpguest as in the guest."""
        return run(self.it.inside([str(peer("snpguest")), *map(str, arguments)]))

    def attest(self, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs attest on the device."""
        return run([str(peer("attest")), f"-sev_guest_device_path={self.it.device}", *_attest(out), *arguments])

    def attest_by_configfs(self, out: Path) -> subprocess.CompletedProcess[str]:
        """Runs attest on the report folder."""
        return run(self.it.inside([str(peer("attest")), *_attest(out)]))

    def check(self, evidence: Path) -> subprocess.CompletedProcess[str]:
        """Runs check on evidence, with the simulator's roots."""
        product = self.it.host.host_facts().product.capitalize()
        chain = self.folder / "chain.pem"
        made = self.it.host.endorsements()
        chain.write_text(ssl.DER_cert_to_PEM_cert(made["ask"]) + ssl.DER_cert_to_PEM_cert(made["ark"]))
        options = ["-inform", "bin", "-network=false", "-guest_policy", "196608", "-product", product]
        options += ["-product_key_path", str(chain), "-report_data", NONCE.hex()]
        return run([str(peer("check")), "-in", str(evidence), *options])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _attest(out: Path) -> list[str]:
    return ["-self_throttle_duration=0", "-inform", "hex", "-in", NONCE.hex(), "-extended", "-out", str(out)]


@pytest.fixture(params=["milan", "genoa", "turin"])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    peer("snpguest")
    with served_guest(tmp_path / "host", request.param) as made:
        yield Guest(made, tmp_path)


@pytest.fixture(params=["milan", "genoa"])
def go_guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    """go-sev-guest cannot read a Turin's certificates."""
    peer("attest")
    with served_guest(tmp_path / "host", request.param) as made:
        yield Guest(made, tmp_path)


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
    assert keys[0].hex()[:8] in ok(guest.snpguest("display", "key", f"{folder}/k1")).replace(" ", "").lower()
    assert "FAIL" not in ok(guest.snpguest("ok"))


def test_snpguest_refuses_what_is_not_genuine(guest: Guest) -> None:
    folder, certs = guest.folder, guest.folder / "certs"
    certs.mkdir()
    ok(guest.snpguest("report", f"{folder}/r", f"{folder}/q", "--random"))
    ok(guest.snpguest("certificates", "pem", certs))
    report = bytearray((folder / "r").read_bytes())
    report[0x90] ^= 1
    (folder / "changed").write_bytes(report)
    done = guest.snpguest("verify", "attestation", certs, f"{folder}/changed")
    assert done.returncode == 1
    assert "VEK signed the Attestation Report" not in done.stdout
    right = Report.parse((folder / "r").read_bytes()).measurement.hex()
    for given, verdict, said in (
        (f"0x{right}", 0, "Measurement verified successfully"),
        (f"0x{secrets.token_hex(48)}", 1, "Measurement did not match"),
        (right, 1, "Expected 48 characters for Measurement, got 96"),  # contrary to its help
    ):
        done = guest.snpguest("verify", "attestation", certs, f"{folder}/r", "-m", given)
        assert done.returncode == verdict
        assert said in done.stdout + done.stderr


def test_snpguest_foretells_the_same(tmp_path: Path) -> None:
    """Launch digests, ID blocks and key digests of snpguest and of `sev` are the same."""
    snpguest = str(peer("snpguest"))
    image = tmp_path / "firmware"
    image.write_bytes(sample_firmware())
    for vcpus, name in ((1, "EPYC-v4"), (5, "EPYC-Genoa")):
        shown = ok(run([snpguest, "generate", "measurement", "-o", str(image), "-v", str(vcpus), "--vcpu-type", name]))
        assert shown.strip() == "0x" + snp_launch_digest(image.read_bytes(), vcpus, vcpu_type=name).hex()
    keys = []
    for name in ("id.pem", "author.pem"):
        key = ec.generate_private_key(ec.SECP384R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / name).write_bytes(pem)
        keys.append(key)
        shown = ok(run([snpguest, "generate", "key-digest", str(tmp_path / name)]))
        assert shown.strip() == "0x" + id_blocks.public_digest(key.public_key()).hex()
    files = [str(tmp_path / name) for name in ("id.pem", "author.pem")]
    outputs = ["-i", str(tmp_path / "block"), "-a", str(tmp_path / "auth")]
    fields = ["-f", "11" * 16, "-m", "22" * 16, "-s", "7", "-p", "0x30000"]
    digest = snp_launch_digest(image.read_bytes(), 1, vcpu_type="EPYC-v4")
    ok(run([snpguest, "generate", "id-block", *files, f"0x{digest.hex()}", *outputs, *fields]))
    block = IdBlock.decode(base64.b64decode((tmp_path / "block").read_bytes()))
    assert (block.launch_digest, block.family_id, block.image_id) == (digest, b"\x11" * 16, b"\x22" * 16)
    assert (block.guest_svn, block.policy) == (7, 0x30000)
    id_blocks.verify(block, IdAuth.decode(base64.b64decode((tmp_path / "auth").read_bytes())))


def test_snpguest_where_the_host_has_no_certificates(guest: Guest) -> None:
    guest.it.devices.certificates = False
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
        assert len(list(go_guest.it.tsm.iterdir())) == turn + 1
    evidence = out.read_bytes()
    assert Report.parse(evidence[:REPORT_SIZE]).report_data == NONCE
    table = dict(cert_table.parse(evidence[REPORT_SIZE:]))
    assert table[cert_table.VCEK] == go_guest.it.host.endorsements()["vcek"]
    ok(go_guest.check(out))
