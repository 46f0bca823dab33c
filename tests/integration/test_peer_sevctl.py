"""sevctl, unmodified, on the simulator's device file: the life of a platform, with chains that both sides verify."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sev.abi import sev_certificate
from sev.abi.amd_certificate import split
from sev.certs import sev_signatures
from tests.support.needs import need_kvm
from tests.support.peer_host import PeerHost, peer_host
from tests.support.peers import peer

pytestmark = [pytest.mark.peer, pytest.mark.root]


@dataclass(frozen=True)
class Sevctl:
    """The program on a host.

    Attributes:
        host: The host.
    """

    host: PeerHost

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.host.run("sevctl", *words)

    def said(self, *words: object) -> list[str]:
        """The lines of a command that succeeds."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]


@pytest.fixture(params=["milan", "rome", "naples"])
def sevctl(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sevctl]:
    peer("sevctl")
    with peer_host(tmp_path / "host", request.param) as host:
        yield Sevctl(host)


@pytest.fixture
def online(tmp_path: Path) -> Iterator[Sevctl]:
    peer("sevctl")
    with peer_host(tmp_path / "host", "milan") as host:
        yield Sevctl(host)


CHECKS = 19
_OF_SNP = ["Secure Nested Paging (SEV-SNP)", "VM Permission Levels", "Number of VMPLs"]
NOT_OF = {"rome": _OF_SNP, "naples": ["Encrypted State (SEV-ES)", *_OF_SNP, "SEV-ES enabled in KVM"]}
VERSIONS = {"milan": "1.55.35", "rome": "0.24.20", "naples": "0.17.48"}


def test_the_life_of_a_platform(sevctl: Sevctl, tmp_path: Path) -> None:
    assert sevctl.said("show", "version")[0] in VERSIONS.values()
    assert sevctl.said("show", "guests") == ["0"]
    assert sevctl.said("show", "flags") == ["es"]
    (identifier,) = sevctl.said("show", "identifier")
    assert len(identifier) == 128
    cert, key = tmp_path / "oca.cert", tmp_path / "oca.key"
    assert sevctl.said("generate", cert, key) == []
    oca = sev_certificate.SevCertificate.read(cert.read_bytes())
    assert sev_signatures.verify(oca, oca) == 1
    assert sevctl.said("provision", cert, key) == []
    assert sevctl.said("show", "flags") == ["owned", "es"]
    again = sevctl.run("provision", cert, key)
    assert again.returncode == 1
    assert "AlreadyOwned" in again.stderr
    assert sevctl.said("rotate") == []
    assert sevctl.said("show", "flags") == ["owned", "es"]
    assert sevctl.said("reset") == []
    assert sevctl.said("show", "flags") == []
    assert sevctl.said("provision", cert, key) == []
    assert sevctl.said("show", "flags") == ["owned"]
    assert sevctl.said("show", "identifier") == [identifier]


def test_chains_that_both_sides_verify(online: Sevctl, tmp_path: Path) -> None:
    authority = online.host.files.devices / "roots" / "legacy-ca.cert"
    first, second = tmp_path / "first", tmp_path / "second"
    assert online.said("export", first) == []
    assert online.said("rotate") == []
    assert online.said("export", second) == []
    ask, ark = split(authority.read_bytes())
    for path in (first, second):
        pdh, pek, oca, cek = sev_certificate.split(path.read_bytes())
        sev_signatures.verify_authority(ask, ark)
        assert sev_signatures.verify(cek, ask) == 1
        assert (sev_signatures.verify(pek, oca), sev_signatures.verify(pek, cek)) == (1, 2)
        assert sev_signatures.verify(pdh, pek) == 1
        tree = "\n".join(online.said("verify", "--sev", path, "--ca", authority))
        assert [name for name in ("PDH", "PEK", "OCA", "CEK", "ASK", "ARK") if name not in tree] == []
    assert first.read_bytes()[: sev_certificate.SIZE] != second.read_bytes()[: sev_certificate.SIZE]
    assert first.read_bytes()[sev_certificate.SIZE :] == second.read_bytes()[sev_certificate.SIZE :]
    assert online.said("verify", "--ca", authority)
    assert online.run("verify", "--sev", first).returncode == 1, "not under AMD's roots"
    assert online.said("session", "-n", tmp_path / "guest", second, "5") == []
    assert sorted(path.name for path in tmp_path.glob("guest_*")) == [
        "guest_godh.b64", "guest_session.b64", "guest_tek.bin", "guest_tik.bin",
    ]  # fmt: skip


@pytest.mark.parametrize("product", ["milan", "genoa", "turin", "rome", "naples"])
def test_ok_is_green(product: str, tmp_path: Path) -> None:
    need_kvm()
    peer("sevctl")
    with peer_host(tmp_path / "host", product) as host:
        shown = Sevctl(host).said("ok")
    assert len(shown) == CHECKS
    assert [line for line in shown if "FAIL" in line] == []
    skipped = [line.rpartition(" - ")[2].partition(":")[0] for line in shown if "SKIP" in line]
    assert skipped == NOT_OF.get(product, [])
