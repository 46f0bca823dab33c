"""sevctl, unmodified, on the simulator's device file: the life of a platform, with chains that both sides verify."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sev.abi import sev_certificate
from sev.abi.amd_certificate import split
from sev.certs import sev_signatures
from tests.support.device_files import DeviceFiles, device_files
from tests.support.namespace import run_inside
from tests.support.needs import need_root
from tests.support.peers import peer

KDS = "127.0.0.1:443"
_WITH_KDS = 'mount --bind "$0" /etc/hosts && SSL_CERT_FILE=$1 && export SSL_CERT_FILE && shift && exec "$@"'

pytestmark = [pytest.mark.peer, pytest.mark.root]


class Sevctl:
    """The program with a simulator's file at /dev/sev, and the simulator's KDS in the place of AMD's."""

    def __init__(self, files: DeviceFiles, folder: Path) -> None:
        self.files = files
        self.folder = folder
        self._program = str(peer("sevctl"))
        self._hosts = folder / "hosts"
        self._hosts.write_text("127.0.0.1 localhost kdsintf.amd.com\n")
        (folder / "dev").mkdir()

    def run(self, *words: object, kds: bool = False) -> subprocess.CompletedProcess[str]:
        command = [self._program, *map(str, words)]
        if kds:
            trust = str(self.files.devices / "roots" / "kds-ca.pem")
            command = ["sh", "-c", _WITH_KDS, str(self._hosts), trust, *command]
        return run_inside(self.folder / "dev", {"/dev/sev": self.files.sev}, command)

    def said(self, *words: object, kds: bool = False) -> list[str]:
        """The lines of a command that succeeds."""
        done = self.run(*words, kds=kds)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]


def serve(tmp_path: Path, product: str, *options: str) -> Iterator[Sevctl]:
    need_root()
    peer("sevctl")
    with device_files(tmp_path / "host", *options, product=product) as files:
        folder = tmp_path / "sevctl"
        folder.mkdir()
        yield Sevctl(files, folder)


@pytest.fixture(params=["milan", "rome", "naples"])
def sevctl(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sevctl]:
    yield from serve(tmp_path, request.param, "--seed", "1")


@pytest.fixture
def online(tmp_path: Path) -> Iterator[Sevctl]:
    need_root()
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 443))
        except OSError as taken:
            pytest.skip(f"{KDS}, which sevctl asks, is taken: {taken.strerror}")
    yield from serve(tmp_path, "milan", "--kds", KDS)


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
    authority = online.files.devices / "roots" / "legacy-ca.cert"
    first, second = tmp_path / "first", tmp_path / "second"
    assert online.said("export", first, kds=True) == []
    assert online.said("rotate") == []
    assert online.said("export", second, kds=True) == []
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
    assert online.said("verify", "--ca", authority, kds=True)
    assert online.run("verify", "--sev", first).returncode == 1, "not under AMD's roots"
    assert online.said("session", "-n", tmp_path / "guest", second, "5") == []
    assert sorted(path.name for path in tmp_path.glob("guest_*")) == [
        "guest_godh.b64", "guest_session.b64", "guest_tek.bin", "guest_tik.bin",
    ]  # fmt: skip
