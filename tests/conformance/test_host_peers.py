"""snphost, unmodified, on the files of simulated Milan, Genoa and Turin hosts: every command, what it prints, its exit code."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from sev import products
from sev.abi import cert_table
from sev.abi import sev_device as abi
from sev.abi.tcb import TcbVersion
from sev.certs import load
from sev.certs.crl import Crl
from sev.launch.linux import LinuxKernel
from sev.launch.platform import SevDevice
from sevd.simulator.overlay import OverlayKernel
from tests.support.control import NO_KVM, launch
from tests.support.needs import need_kvm
from tests.support.peer_host import PeerHost, peer_host
from tests.support.peers import peer

pytestmark = [pytest.mark.peer, pytest.mark.root]

TESTS = 30
OLD = {"bootloader": 1, "tee": 0, "snp": 1, "microcode": 1}


@dataclass(frozen=True)
class Snphost:
    """The program on a host.

    Attributes:
        host: The host.
        product: Its processor line.
        folder: For what the program writes.
    """

    host: PeerHost
    product: products.Product
    folder: Path

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.host.run("snphost", *words)

    def ok(self, *words: object) -> str:
        """What a command that succeeds says."""
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout.strip()

    def no(self, *words: object, code: int = 1) -> str:
        """What a command that is refused says."""
        done = self.run(*words)
        assert done.returncode == code, done.stdout
        return done.stderr

    def place(self, name: str) -> Path:
        """An empty folder."""
        made = self.folder / name
        made.mkdir()
        return made

    def tcbs(self) -> tuple[TcbVersion, TcbVersion]:
        """The reported TCB and that of the platform, as they are shown."""
        reported, platform = self.ok("show", "tcb").split("Platform TCB:")
        return self.read_tcb(reported), self.read_tcb(platform)

    def read_tcb(self, text: str) -> TcbVersion:
        """A TCB as it is shown."""
        shown = {name.strip(): value for name, value in re.findall(r"^ +([\w ]+): +(\w+)", text, re.MULTILINE)}
        return TcbVersion.of(
            self.product,
            fmc=None if shown["FMC"] == "None" else int(shown["FMC"]),
            bootloader=int(shown["Boot Loader"]),
            tee=int(shown["TEE"]),
            snp=int(shown["SNP"]),
            microcode=int(shown["Microcode"]),
        )

    def status(self) -> abi.SnpStatus:
        """The platform's status by our own ioctl."""
        with SevDevice(LinuxKernel(), str(self.host.files.sev)) as device:
            return abi.SnpStatus.decode(device.snp_status())

    def chip_id(self) -> str:
        """The chip's identifier by our own ioctl."""
        with SevDevice(LinuxKernel(), str(self.host.files.sev)) as device:
            return device.get_id().hex()

    def fetch_vcek(self, form: str, folder: Path) -> None:
        """`fetch vek`; the URL is given where the program's own has more digits than the KDS knows."""
        url = self.ok("show", "vcek-url")
        identifier = self.chip_id().upper()
        known = identifier[: 2 * self.product.chip_id_bytes]
        assert self.ok("fetch", "vek", form, folder, *([url.replace(identifier, known)] * (known != identifier))) == ""

    def set_config(self, masks: int, **components: int) -> subprocess.CompletedProcess[str]:
        """`config set`: FMC is compulsory where there is one."""
        words = [components[name] for name in ("bootloader", "tee", "snp", "microcode")]
        fmc = [components.get("fmc", 0)] if "fmc" in self.product.components else []
        return self.run("config", "set", *words, masks, *fmc)


@pytest.fixture(params=["milan", "genoa", "turin"])
def snphost(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Snphost]:
    peer("snphost")
    folder = tmp_path / "written"
    folder.mkdir()
    with peer_host(tmp_path / "host", request.param) as host:
        yield Snphost(host, products.by_name(request.param), folder)


def query(url: str) -> dict[str, int]:
    return {name: int(value) for name, (value,) in parse_qs(urlsplit(url).query).items()}


def test_what_is_shown(snphost: Snphost) -> None:
    status = snphost.status()
    assert snphost.ok("show", "version") == f"{status.api_major}.{status.api_minor}"
    assert snphost.ok("show", "guests") == "0"
    assert snphost.tcbs() == (
        TcbVersion(status.reported_tcb, snphost.product),
        TcbVersion(status.current_tcb, snphost.product),
    )
    identifier = snphost.ok("show", "identifier")
    assert identifier == snphost.chip_id().upper()
    levels = {
        {"bootloader": "bl", "microcode": "ucode"}.get(name, name) + "SPL": value
        for name, value in TcbVersion(status.reported_tcb, snphost.product).components().items()
    }
    name = snphost.product.kds_name
    for command, path in (
        ("vcek-url", f"https://kdsintf.amd.com/vcek/v1/{name}/{identifier}?"),
        ("vlek-url", f"https://kdsintf.amd.com:444/vlek/v1/{name}/cert?"),
        ("hashsticks-url", f"https://kdsintf.amd.com:444/vlek/v1/{name}/hash_sticks?"),
    ):
        url = snphost.ok("show", command)
        assert url.startswith(path)
        assert query(url) == levels


def test_guests_are_counted(snphost: Snphost) -> None:
    kernel = OverlayKernel(snphost.host.files.devices, NO_KVM)
    guest, _ = launch(kernel, str(snphost.host.files.sev))
    assert snphost.ok("show", "guests") == "1"
    guest.close()
    kernel.exit()
    assert snphost.ok("show", "guests") == "0"


def test_ok_is_green(snphost: Snphost) -> None:
    need_kvm()
    shown = snphost.ok("ok")
    assert shown.count("PASS") == TESTS
    assert "FAIL" not in shown
    document = json.loads(snphost.ok("ok", "-o", "json"))
    assert document["summary"] == {"failed": 0, "passed": TESTS, "skipped": 0, "total": TESTS}
    assert [test["name"] for test in document["tests"] if test["status"] != "pass"] == []
    messages = {test["name"]: test.get("message") for test in document["tests"]}
    assert messages["KVM supported"] == "API version: 12"
    assert messages["SEV firmware version"] == snphost.ok("show", "version")
    assert snphost.set_config(0, **OLD).returncode == 0
    assert "TCB versions did NOT match" in snphost.run("ok", "-s").stdout
    assert snphost.run("ok").returncode == 1


def test_config_and_commit(snphost: Snphost) -> None:
    before = snphost.tcbs()
    assert snphost.ok("commit") == ""
    assert snphost.tcbs() == before
    for masks in range(4):
        assert snphost.set_config(masks, **OLD).returncode == 0
        assert snphost.tcbs() == (TcbVersion.of(snphost.product, **OLD), before[1])
    for masks, wanted in (
        (4, OLD),
        (31, OLD),
        (0, dict.fromkeys(OLD, 255)),
        (0, {**OLD, "snp": int(before[1].components()["snp"]) + 1}),
    ):
        done = snphost.set_config(masks, **wanted)
        assert done.returncode == 1
        assert "FirmwareError(KnownSevError(InvalidParam))" in done.stderr
        assert snphost.tcbs() == (TcbVersion.of(snphost.product, **OLD), before[1])
    assert snphost.no("config", "set", 256, 0, 0, 0, 0, code=2)
    assert snphost.ok("config", "reset") == ""
    assert snphost.tcbs() == before


def test_keys_and_certificates_of_the_kds(snphost: Snphost) -> None:
    roots = snphost.host.files.devices / "roots"
    crls = snphost.place("crls")
    provider = ("--client-cert", snphost.host.provider, "--private-key", snphost.host.provider)
    for form, leaf, issuer in (("pem", "vcek", "ask"), ("der", "vlek", "asvk")):
        folder = snphost.place(leaf)
        endorser = ("-e", leaf)
        assert snphost.ok("fetch", "ca", *endorser, form, folder) == ""
        if leaf == "vcek":
            snphost.fetch_vcek(form, folder)
        else:
            assert snphost.ok("fetch", "vek", *endorser, *provider, form, folder) == ""
        assert snphost.ok("fetch", "crl", *endorser, crls) == ""
        found = {path.stem: load(path.read_bytes())[0] for path in folder.iterdir()}
        assert set(found) == {"ark", issuer, leaf}
        assert found["ark"] == load((roots / "ark.pem").read_bytes())[0]
        assert found[leaf].issuer_cn == found[issuer].subject_cn
        (path,) = crls.iterdir()
        assert Crl.parse(path.read_bytes()).issuer_cn == found["ark"].subject_cn
        shown = snphost.ok("verify", "certs", folder)
        assert f"⬑\x1b[0m {leaf}" in shown
        assert "⬑̸" not in shown.split("\n", 1)[1]


def test_tables_for_guests(snphost: Snphost) -> None:
    made, table = snphost.place("made"), snphost.folder / "table"
    snphost.ok("fetch", "ca", "der", made)
    snphost.fetch_vcek("der", made)
    assert snphost.ok("import", made, table) == ""
    entries = dict(cert_table.parse(table.read_bytes()))
    guids = {"ark": cert_table.ARK, "ask": cert_table.ASK, "vcek": cert_table.VCEK}
    assert entries == {guid: (made / f"{name}.der").read_bytes() for name, guid in guids.items()}
    for form in ("der", "pem"):
        back = snphost.place(form)
        assert snphost.ok("export", form, table, back) == ""
        assert {path.name for path in back.iterdir()} == {f"{name}.{form}" for name in guids}
        for name in guids:
            assert load((back / f"{name}.{form}").read_bytes()) == load((made / f"{name}.der").read_bytes())


def test_a_loaded_key_of_a_provider(snphost: Snphost) -> None:
    folder = snphost.place("sticks")
    hardware = snphost.chip_id()[: 2 * snphost.product.chip_id_bytes]
    provider = snphost.host.provider
    assert snphost.ok("fetch", "hashsticks", folder, provider, provider, "--hwid", hardware) == ""
    (stick,) = folder.iterdir()
    wrapped = stick.read_bytes()
    assert len(wrapped) == abi.VLEK_BLOB_SIZE
    current = snphost.tcbs()[1]
    shown, reported = snphost.ok("verify", "vlek-hashstick", stick).split("matches reported")
    assert snphost.read_tcb(shown) == snphost.read_tcb(reported) == current
    assert snphost.ok("vlek-load", stick) == ""
    damaged = folder / "damaged"
    damaged.write_bytes(wrapped[:100] + bytes([wrapped[100] ^ 1]) + wrapped[101:])
    assert "Status Code: 0xb" in snphost.no("vlek-load", damaged)
    short = folder / "short"
    short.write_bytes(wrapped[:-1])
    assert "expected 432 bytes, got 431" in snphost.no("vlek-load", short)
    assert snphost.set_config(0, **OLD).returncode == 0
    assert "does not match reported TCB" in snphost.no("verify", "vlek-hashstick", stick)


def test_what_snphost_gets_wrong_itself(snphost: Snphost) -> None:
    """A chain that does not hold is shown so, and the exit code is 0; what the KDS refuses is taken for a certificate; the
    KDS knows a Turin by 16 digits and is asked for 128."""
    other = snphost.place("other")
    snphost.ok("fetch", "ca", "pem", other)
    snphost.fetch_vcek("pem", other)
    chain = snphost.place("chain")
    for path in other.iterdir():
        data = load(path.read_bytes())[0].der
        broken = data[:-1] + bytes([data[-1] ^ 1]) if path.stem == "vcek" else data
        (chain / f"{path.stem}.der").write_bytes(broken)
    done = snphost.run("verify", "certs", chain)
    assert done.returncode == 0
    assert "⬑̸\x1b[0m vcek" in done.stdout
    assert "Type=X509" in snphost.no("fetch", "vek", "-e", "vlek", "der", chain)
    if snphost.product.chip_id_bytes < abi.ID_SIZE:
        assert "Type=X509" in snphost.no("fetch", "vek", "der", chain)
