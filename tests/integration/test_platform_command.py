"""`sev platform` and `sev certs fetch` on a simulated host: in the daemon's process, and as files with its KDS."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sev import errors
from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.certs import sev_chain
from sev.certs.sev_roots import SevRoots
from sev.client import Host as Client
from sev.guest_model import Guest
from sev.measurement.sample import sample_firmware
from sev.session import Session
from tests.support.cli import Done, sev
from tests.support.daemon import Daemon, chip, running
from tests.support.data import DATA
from tests.support.device_files import device_files


@dataclass(frozen=True)
class Host:
    """A simulated host with its daemon.

    Attributes:
        daemon: The daemon.
        roots: Its ASK and ARK in SEV's own form.
        kds: Options that name its KDS; none where it has none.
    """

    daemon: Daemon
    roots: Path
    kds: tuple[str, ...] = ()

    def __call__(self, *words: object) -> Done:
        """`sev` on it."""
        return sev(*words, "--socket", self.daemon.socket)

    def owner(self) -> str:
        """Who owns the platform."""
        owner: str = self("platform", "status", "--json").json()["owner"]
        return owner


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The model in the daemon's own process."""
    folder = tmp_path_factory.mktemp("milan")
    with running(folder, "--simulate=milan", chip=chip("milan", tmp_path_factory)) as daemon:
        with daemon.connect() as host:
            authorities = host.export_platform().authorities
        (folder / "roots").write_bytes(authorities)
        yield Host(daemon, folder / "roots")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The model as files, by sevd-simulator, with its KDS."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "sim").mkdir()
    with (
        device_files(folder / "sim", "--kds", "127.0.0.1:0") as files,
        running(folder / "sevd", "--simulator", str(files.devices)) as daemon,
    ):
        ca = files.devices / "roots" / "kds-ca.pem"
        url = json.loads((files.devices / "platform.json").read_text())["kds"]
        kds = ("--kds", url, "--kds-ca", str(ca))
        yield Host(daemon, files.devices / "roots" / "legacy-ca.cert", kds)


@pytest.fixture(params=["simulated", "served"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Either face; the platform owns itself and is initialised afterwards."""
    found: Host = request.getfixturevalue(request.param)
    yield found
    with found.daemon.connect() as client:
        if client.sev_status().state == "uninit":  # a VM brings it up again
            guest = client.create_guest(
                memory_bytes=1 << 20, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0x00A00F11
            )
            client.delete_guest(guest.guest_id)
        client.disown_platform(confirm=True)


def owner_files(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "oca.cert", folder / "oca.key"
    assert sev("certs", "generate", cert, key).code == 0
    return cert, key


def test_status_and_identifier(host: Host) -> None:
    done = host("platform", "status", "--json")
    assert done.code == 0
    document = done.json()
    assert (document["state"], document["owner"], document["guest_count"]) == ("init", "self", 0)
    assert document["snp_initialized"]
    assert "SIMULATED" in done.err
    shown = host("platform", "status").out
    assert "itself" in shown
    assert "initialised" in shown
    chips = host("platform", "id").out.split()
    assert [len(bytes.fromhex(one)) for one in chips] == [64]
    assert host("platform", "id", "--json").json() == {"chip_ids": chips}


def test_an_exported_chain_verifies_with_its_own_roots_alone(host: Host, tmp_path: Path) -> None:
    out = tmp_path / "chain.bin"
    done = host("platform", "export", "--out", out, "--json")
    assert done.code == 0, done.err
    assert (done.json()["certificates"], done.json()["cek"]) == (["PDH", "PEK", "OCA", "CEK"], "host")
    data = out.read_bytes()
    assert [one.name for one in abi.split(data)] == ["PDH", "PEK", "OCA", "CEK"]
    verified = sev_chain.verify(sev_chain.SevChain.parse(data), roots=SevRoots.of(host.roots.read_bytes()))
    assert verified.pdh.usage == abi.PDH
    with pytest.raises(sev_chain.ChainInvalid):
        sev_chain.verify(sev_chain.SevChain.parse(data))
    assert sev("certs", "verify", out, "--roots", host.roots).code == 0
    assert sev("certs", "verify", out).code == 3
    assert sev("session", "create", out, "5", "--roots", host.roots, "--out", tmp_path / "session").code == 0
    full = tmp_path / "full.bin"
    assert host("platform", "export", "--out", full, "--full").code == 0
    assert full.read_bytes() == data + host.roots.read_bytes()
    bare = tmp_path / "bare.bin"
    assert host("platform", "export", "--out", bare, "--unsigned").code == 0
    assert sev("certs", "verify", bare, "--roots", host.roots).code == 3
    assert host("platform", "export", "--out", "-").data == data


def test_owning_and_disowning_in_one_step_each(host: Host, tmp_path: Path) -> None:
    cert, key = owner_files(tmp_path)
    before = host("platform", "export", "--out", "-").data
    own = ("platform", "own", "--oca-cert", cert, "--oca-key", key)
    refused = host(*own)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert host.owner() == "self"
    assert host(*own, "--yes", "--json").json()["owner"] == "external"
    chain = sev_chain.SevChain.parse(host("platform", "export", "--out", "-").data)
    assert chain.oca.encode() == cert.read_bytes()
    Session.create(5).start(sev_chain.verify(chain, roots=SevRoots.of(host.roots.read_bytes())))
    again = host(*own, "--yes", "--json")
    assert again.code == 6
    assert again.json()["error"]["firmware_status"]["name"] == "ALREADY_OWNED"
    assert host("platform", "disown").code == 2
    assert host("platform", "disown", "--yes", "--json").json()["owner"] == "self"
    after = host("platform", "export", "--out", "-").data
    assert after != before
    assert after[3 * abi.SIZE :] == before[3 * abi.SIZE :]  # the chip's key stays


def test_an_owner_whose_key_stays_elsewhere(host: Host, tmp_path: Path) -> None:
    cert, key = owner_files(tmp_path)
    csr, pek = tmp_path / "pek.csr", tmp_path / "pek.cert"
    assert host("platform", "csr", "--out", csr).code == 0
    assert SevCertificate.read(csr.read_bytes()).usage == abi.PEK
    assert sev("certs", "sign", csr, "--oca-cert", cert, "--oca-key", key, "--out", pek).code == 0
    for words, code in (((cert, pek), 2), ((csr, cert), 3), ((key, cert), 9), ((tmp_path / "no", cert), 2)):
        done = host("platform", "import", *words, "--yes")
        assert done.code == code, done.err
        assert host.owner() == "self"
    assert host("platform", "import", pek, cert).code == 2
    assert host("platform", "import", pek, cert, "--yes").code == 0
    assert host.owner() == "external"


def test_a_key_that_is_not_the_owners_is_noticed_before_anybody_is_asked(host: Host, tmp_path: Path) -> None:
    cert, _ = owner_files(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, key = owner_files(other)
    done = sev("platform", "own", "--oca-cert", cert, "--oca-key", key, "--yes", "--socket", "/nonexistent")
    assert done.code == 2
    assert "does not belong" in done.err
    assert sev("platform", "own", "--oca-cert", key, "--oca-key", key, "--yes").code == 9
    assert key.read_bytes().hex() not in done.err + done.out


def launch(client: Client, kind: str) -> Guest:
    """A launched guest of this type."""
    if kind == "SNP":
        return client.launch_snp(sample_firmware(), 1).guest
    return client.launch_sev(sample_firmware()).guest


@pytest.mark.parametrize("kind", ["SNP", "SEV"])
def test_keys_are_not_taken_from_under_a_guest(host: Host, tmp_path: Path, kind: str) -> None:
    cert, key = owner_files(tmp_path)
    before = host("platform", "export", "--out", "-").data
    with host.daemon.connect() as client:
        guest = launch(client, kind)
        try:
            for words in (
                ("reset",),
                ("pek", "generate"),
                ("disown",),
                ("own", "--oca-cert", cert, "--oca-key", key),
            ):
                done = host("platform", *words, "--yes", "--json")
                assert done.code == 11, done.err
                error = done.json()["error"]
                assert error["kind"] == "not_now"
                assert f"the guest {guest.guest_id} of uid:{os.geteuid()} ({kind}, ready)" in error["message"]
            assert host("platform", "export", "--out", "-").data == before
            assert host("platform", "pdh", "rotate").code == 0
            assert host("platform", "export", "--out", "-").data != before
            assert client.guest(guest.guest_id).state == "ready"
            assert client.sev_status().state == ("init" if kind == "SNP" else "working")
        finally:
            client.delete_guest(guest.guest_id)


def test_after_a_reset_snp_goes_down_only_if_that_is_meant(host: Host, tmp_path: Path) -> None:
    before = host("platform", "export", "--out", "-").data
    done = host("platform", "reset")
    assert (done.code, done.out) == (2, "")
    reset = host("platform", "reset", "--yes", "--json").json()
    assert (reset["state"], reset["owner"], reset["es_configured"]) == ("uninit", None, None)
    assert "not told while SEV is not initialised" in host("platform", "status").out
    for words in (("export", "--out", "-"), ("csr", "--out", "-"), ("pdh", "rotate")):
        refused = host("platform", *words, "--json")
        assert refused.code == 2
        assert "shut SNP down" in refused.json()["error"]["message"]
    assert host("snp", "status", "--json").json()["state"] == "init"
    after = host("platform", "export", "--out", "-", "--yes").data
    assert len(after) == len(before)
    assert after[: abi.SIZE] != before[: abi.SIZE]
    assert host("snp", "status", "--json").json()["state"] == "uninit"
    assert any("SNP" in sentence for sentence in host("host", "show", "--json").json()["missing"])
    assert host("platform", "export", "--out", "-").data == after
    with host.daemon.connect() as client:
        launched = client.launch_snp(sample_firmware(), 1)
        assert launched.as_expected
        client.delete_guest(launched.guest.guest_id)
    assert host("snp", "status", "--json").json()["state"] == "init"
    assert host("platform", "status", "--json").json()["state"] == "init"


def test_certificates_from_the_simulators_own_service(served: Host, tmp_path: Path) -> None:
    x509 = served.roots.with_name("ark.pem")
    out = tmp_path / "certs"
    assert served("certs", "fetch", "cek", *served.kds, "--roots", served.roots, "--out", out).code == 0
    for what in ("vcek", "ca", "crl"):
        done = served("certs", "fetch", what, *served.kds, "--roots", x509, "--out", out, "--json")
        assert done.code == 0, done.err
    assert sorted(os.listdir(out)) == ["ark.pem", "ask.pem", "cek.cert", "crl.pem", "vcek.pem"]
    by_kds = tmp_path / "kds.bin"
    done = served("platform", "export", "--out", by_kds, *served.kds, "--full", "--json")
    assert (done.code, done.json()["cek"]) == (0, "kds"), done.err
    by_file = tmp_path / "file.bin"
    done = served("platform", "export", "--out", by_file, "--cek", out / "cek.cert", "--full", "--json")
    assert (done.code, done.json()["cek"]) == (0, "file")
    assert by_file.read_bytes() == by_kds.read_bytes()
    with served.daemon.connect() as client:
        guest = client.launch_snp(sample_firmware(), 1).guest
        try:
            report = tmp_path / "report.bin"
            assert served("guest", "report", guest.guest_id, "--out", report).code == 0
        finally:
            client.delete_guest(guest.guest_id)
    verify = ("report", "verify", report, "--certs", out, "--roots", x509, "--crl", out / "crl.pem")
    assert sev(*verify).code == 0
    again = tmp_path / "again"
    done = sev("certs", "fetch", "vcek", "--report", report, *served.kds, "--roots", x509, "--out", again)
    assert done.code == 0, done.err
    assert (again / "vcek.pem").read_bytes() == (out / "vcek.pem").read_bytes()


def test_what_a_service_answers_is_not_believed_for_being_answered(served: Host, tmp_path: Path) -> None:
    rome = DATA / "roots" / "legacy" / "rome-ark.cert"
    out = tmp_path / "out"
    for words, code in (
        (("certs", "fetch", "cek", *served.kds), 3),
        (("certs", "fetch", "vcek", *served.kds), 3),
        (("certs", "fetch", "ca", "--product", "turin", *served.kds), 5),
        (("certs", "fetch", "vcek", *served.kds[:2]), 5),
        (("certs", "fetch", "vlek", *served.kds), 5),
        (("platform", "export", *served.kds, "--roots", rome), 3),
        (("platform", "export", "--roots", rome), 3),
        (("platform", "export", "--cek", served.roots), 9),
        (("platform", "export", "--cek", DATA / "legacy" / "naples" / "cek.cert"), 3),
        (("platform", "export", "--cek", served.roots, *served.kds), 2),
        (("platform", "export", "--unsigned", "--full"), 2),
        (("certs", "fetch", "vcek", "--kds", "https://127.0.0.1:1", "--kds-patience", "1"), 5),
    ):
        done = served(*words, "--out", out)
        assert done.code == code, (words, done.err)
        assert not out.exists()


def test_where_things_are(served: Host, tmp_path: Path) -> None:
    with served.daemon.connect() as client:
        chip_id = client.chip_ids()[0].hex()
    assert served("certs", "url", "cek").out.strip() == f"https://kdsintf.amd.com/cek/id/{chip_id}"
    assert (
        served("certs", "url", "vcek", "--json")
        .json()["url"]
        .startswith(f"https://kdsintf.amd.com/vcek/v1/Genoa/{chip_id}?blSPL=")
    )
    turin = (
        "--product",
        "turin",
        "--chip-id",
        "0102030405060708",
        "--tcb",
        "fmc=1,bootloader=2,tee=3,snp=4,microcode=5",
    )
    done = sev("certs", "url", "vcek", *turin, "--kds", "https://mirror.example")
    assert done.out == (
        "https://mirror.example/vcek/v1/Turin/0102030405060708?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=05\n"
    )
    for words in (
        ("vcek", "--product", "milan"),
        ("cek", "--product", "milan"),
        ("vcek", "--tcb", "1"),
        ("vcek", "--product", "rome", "--chip-id", "00" * 64),
        ("ca", "--product", "naples"),
        ("cek", "--chip-id", "zz"),
        ("hash", "--product", "milan"),
        ("ca", "--product", "milan", "--kds", "nowhere"),
    ):
        assert sev("certs", "url", *words).code == 2, words


def test_without_a_device_it_says_what_is_missing(tmp_path: Path) -> None:
    with running(tmp_path, "--device", "/nonexistent/sev") as daemon:
        for words in (("status",), ("id",), ("export", "--out", "-"), ("reset", "--yes"), ("pdh", "rotate")):
            done = sev("platform", *words, "--socket", daemon.socket, "--json")
            assert done.code == 6, done.err
            error = done.json()["error"]
            assert "/nonexistent/sev" in error["message"] + error["remedy"]
        with daemon.connect() as client, pytest.raises(errors.DeviceMissing):
            client.own_platform(*_owner(tmp_path), confirm=True)


def _owner(folder: Path) -> tuple[bytes, bytes]:
    cert, key = owner_files(folder)
    return cert.read_bytes(), key.read_bytes()


def test_what_happened_is_in_the_audit(simulated: Host, tmp_path: Path) -> None:
    assert simulated("platform", "pdh", "rotate").code == 0
    cert, key = owner_files(tmp_path)
    assert simulated("platform", "own", "--oca-cert", cert, "--oca-key", key, "--yes").code == 0
    assert simulated("platform", "disown", "--yes").code == 0
    text = (simulated.daemon.folder / "state" / "audit.jsonl").read_text()
    calls = [record["method"] for line in text.splitlines() if "method" in (record := json.loads(line))]
    assert calls[-3:] == [
        "SevPlatformService/GeneratePdh",
        "SevPlatformService/ImportPek",
        "SevPlatformService/GeneratePek",
    ]
