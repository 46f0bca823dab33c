"""sevctl and the daemon on one platform: what one owns, exports and makes, the other takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_chain
from sev.certs.sev_roots import SevRoots
from tests.support.cli import Done, sev
from tests.support.daemon import running
from tests.support.peer_host import PeerHost, peer_host
from tests.support.peers import peer

pytestmark = [pytest.mark.peer, pytest.mark.root]


@pytest.fixture(params=["milan", "naples"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PeerHost]:
    peer("sevctl")
    with peer_host(tmp_path / "host", request.param) as found:
        yield found


@pytest.fixture
def ours(host: PeerHost, tmp_path: Path) -> Iterator[Callable[..., Done]]:
    """`sev` on the daemon of this host."""
    with running(tmp_path / "daemon", "--simulator", str(host.files.devices)) as daemon:
        yield lambda *words: sev(*words, "--socket", daemon.socket)


def theirs(host: PeerHost, *words: object, code: int = 0) -> str:
    done = host.run("sevctl", *words)
    assert done.returncode == code, (words, done.stderr)
    return done.stdout


def test_they_see_what_we_do(host: PeerHost, ours: Callable[..., Done], tmp_path: Path) -> None:
    roots = host.files.devices / "roots" / "legacy-ca.cert"
    chain, ca, cert, key = (tmp_path / name for name in ("chain", "ca", "oca.cert", "oca.key"))
    assert theirs(host, "show", "identifier").strip().lower() == ours("platform", "id").out.strip()
    theirs(host, "generate", cert, key)
    assert ours("platform", "own", "--oca-cert", cert, "--oca-key", key, "--yes").code == 0
    assert "owned" in theirs(host, "show", "flags")
    done = ours("platform", "export", "--out", chain, "--ca-out", ca)
    assert done.code == 0, done.err
    assert ca.read_bytes() == roots.read_bytes()
    tree = theirs(host, "verify", "--sev", chain, "--ca", ca)
    assert [name for name in ("PDH", "PEK", "OCA", "CEK", "ASK", "ARK") if name not in tree] == []
    theirs(host, "verify", "--sev", chain, "--ca", ca, "--oca", cert)
    theirs(host, "session", "-n", tmp_path / "guest", chain, "5")
    assert (tmp_path / "guest_session.b64").exists()
    assert ours("platform", "disown", "--yes").code == 0
    assert "owned" not in theirs(host, "show", "flags")


def test_we_see_what_they_do(host: PeerHost, ours: Callable[..., Done], tmp_path: Path) -> None:
    roots = host.files.devices / "roots" / "legacy-ca.cert"
    cert, key, chain = tmp_path / "oca.cert", tmp_path / "oca.key", tmp_path / "chain"
    assert sev("certs", "generate", cert, key).code == 0
    theirs(host, "provision", cert, key)
    assert ours("platform", "status", "--json").json()["owner"] == "external"
    before = ours("platform", "export", "--out", "-").data
    theirs(host, "rotate")
    after = ours("platform", "export", "--out", "-").data
    parsed = sev_chain.SevChain.parse(after)
    assert parsed.oca.encode() == cert.read_bytes()
    assert parsed.pdh.encode() != SevCertificate.decode(before[: len(parsed.pdh.encode())]).encode()
    sev_chain.verify(parsed, roots=SevRoots.of(roots.read_bytes()))
    chain.write_bytes(after)
    assert sev("session", "create", chain, "5", "--roots", roots, "--out", tmp_path / "session").code == 0
    theirs(host, "reset")
    done = ours("platform", "status", "--json").json()
    assert (done["state"], done["owner"]) == ("uninit", None)
    again = ours("platform", "export", "--out", "-", "--yes").data
    assert sev_chain.SevChain.parse(again).oca.encode() != cert.read_bytes()
