"""What programs of others make of the simulator's KDS: snpguest and sevctl, unmodified, over HTTPS."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sev.abi.sev_certificate import SIZE, SevCertificate
from sev.certs import load
from sevd.simulator.serving import Options
from tests.support.guest_program import GuestProgram
from tests.support.namespace import Network, kds_network, run_inside
from tests.support.peers import peer
from tests.support.served_guest import GUEST, ServedGuest, served_guest

pytestmark = [pytest.mark.peer, pytest.mark.root]


@dataclass(frozen=True)
class Online:
    """A guest on a host that is served, and a network whose kdsintf.amd.com is the simulator's.

    Attributes:
        guest: The guest.
        network: The network.
        folder: For what the programs write.
    """

    guest: ServedGuest
    network: Network
    folder: Path

    @property
    def product(self) -> str:
        return self.guest.host.host_facts().product

    def run(self, name: str, *words: object) -> subprocess.CompletedProcess[str]:
        """Runs a program."""
        files = {"/dev/sev": self.guest.folder / "sev"}
        return run_inside(files, [str(peer(name)), *map(str, words)], network=self.network)


@pytest.fixture(params=["milan", "genoa", "turin"])
def online(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Online]:
    with served_guest(tmp_path / "host", request.param, options=Options(kds=("127.0.0.1", 0))) as guest:
        url = json.loads((guest.folder / "platform.json").read_text())["kds"]
        port = urlsplit(url).port
        assert port
        with kds_network(tmp_path, port, guest.folder / "roots" / "kds-ca.pem") as network:
            yield Online(guest, network, tmp_path)


def test_snpguest_fetches_and_verifies(online: Online) -> None:
    folder, product = online.folder, online.product
    certs, report = folder / "certs", folder / "report"
    certs.mkdir()
    report.write_bytes(GuestProgram(online.guest.devices.devices()[GUEST]).report().report)
    for words in (
        ("fetch", "ca", "pem", certs, product),
        ("fetch", "vcek", "pem", certs, report, "-p", product),
        ("fetch", "crl", "pem", certs, product),
        ("verify", "certs", certs),
        ("verify", "attestation", certs, report, "-p", product),
    ):
        done = online.run("snpguest", *words)
        assert done.returncode == 0, f"{words}: {done.stderr or done.stdout}"
    assert load((certs / "vcek.pem").read_bytes())[0].der == online.guest.host.endorsements()["vcek"]


def test_sevctl_exports_with_the_signed_cek(online: Online) -> None:
    chain = online.folder / "chain"
    done = online.run("sevctl", "export", chain)
    assert done.returncode == 0, done.stderr
    data = chain.read_bytes()
    assert len(data) == 4 * SIZE
    cek = data[3 * SIZE :]
    SevCertificate.decode(cek)
    assert cek == online.guest.host.firmware.ca.cek_certificate()
