"""`sev guest launch --type sev|sev-es` and what follows: owner, measurement, secrets, reports; on simulated Rome hosts."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sev.abi.legacy_report import LegacyReport
from sev.measurement.legacy import sev_es_plan, sev_plan
from sev.measurement.sample import sample_firmware
from sev.session import secret
from tests.support.cli import Done, sev
from tests.support.daemon import Daemon

TYPES = ("sev", "sev-es")
POLICIES = {"sev": "0x1", "sev-es": "0x5"}
SECRET = b"open sesame, says the owner"


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("firmware") / "sample.fd"
    path.write_bytes(sample_firmware(64 << 10))
    return path


@pytest.fixture
def rome(daemons: Callable[[str], Daemon]) -> Iterator[Daemon]:
    """A host that offers SEV and SEV-ES; fails the test if it leaves a guest."""
    daemon = daemons("rome")
    yield daemon
    with daemon.connect() as host:
        left = [guest.guest_id for guest in host.guests()]
        for guest_id in left:
            host.delete_guest(guest_id)
    assert left == []


def on(daemon: Daemon, *words: object) -> Done:
    return sev("--socket", daemon.socket, *words)


def launch(daemon: Daemon, kind: str, firmware: Path, *words: object) -> Done:
    return on(daemon, "guest", "launch", "--type", kind, "--firmware", firmware, *words, "--json")


def delete(daemon: Daemon, guest_id: str) -> None:
    assert on(daemon, "guest", "delete", guest_id, "--yes").code == 0


def expected(kind: str, firmware: Path, vcpus: int = 1, **options: Any) -> str:
    if kind == "sev":
        return sev_plan(firmware.read_bytes(), **options).digest().hex()
    return sev_es_plan(firmware.read_bytes(), vcpus, vcpu_type="EPYC-v4", **options).digest().hex()


@pytest.mark.parametrize("kind", TYPES)
def test_launch(rome: Daemon, firmware: Path, kind: str) -> None:
    done = launch(rome, kind, firmware, "--vcpus", 3, "--vcpu-type", "EPYC-v4")
    assert done.code == 0, done.err
    document = done.json()
    assert (document["type"], document["state"]) == (kind, "ready")
    assert document["launch_digest"] == document["expected_digest"] == expected(kind, firmware, 3)
    assert len(document["measurement"]) == 96
    assert (document["secret_gpa"], document["secret_size"]) == ("0x80f000", 0xC00)
    assert "SIMULATED" in done.err
    shown = on(rome, "guest", "show", document["guest_id"], "--json").json()
    assert (shown["policy"], shown["measurement"]) == (POLICIES[kind], document["measurement"])
    assert "nodbg" in on(rome, "guest", "show", document["guest_id"]).out
    listed = on(rome, "guest", "list", "--json").json()["guests"]
    assert [guest["type"] for guest in listed] == [kind]
    delete(rome, document["guest_id"])


@pytest.mark.parametrize("kind", TYPES)
def test_a_kernel_is_measured_where_the_firmware_looks_for_it(
    rome: Daemon, firmware: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "kernel").write_bytes(b"k" * 5000)
    (tmp_path / "initrd").write_bytes(b"i" * 7000)
    words = ("--kernel", tmp_path / "kernel", "--initrd", tmp_path / "initrd", "--append", "console=ttyS0")
    document = launch(rome, kind, firmware, *words).json()
    wanted = expected(kind, firmware, kernel=b"k" * 5000, initrd=b"i" * 7000, append="console=ttyS0")
    assert document["launch_digest"] == document["expected_digest"] == wanted
    assert wanted != expected(kind, firmware)
    delete(rome, document["guest_id"])


def session(daemon: Daemon, folder: Path, policy: str) -> Path:
    """What a guest owner makes of a platform's chain; nobody vouches for a simulated one here."""
    with daemon.connect() as host:
        chain = host.export_platform()
    (folder / "pdh").write_bytes(chain.pdh)
    assert sev("session", "create", folder / "pdh", policy, "--unverified", "--out", folder / "s").code == 0
    return folder / "s"


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("words", ["folder", "files"])
def test_a_secret_between_measurement_and_start(
    rome: Daemon, firmware: Path, tmp_path: Path, kind: str, words: str
) -> None:
    made = session(rome, tmp_path, POLICIES[kind])
    files = ("--dh-cert-file", made / "vm_godh.b64", "--session-file", made / "vm_session.b64")
    owner = ("--session", made) if words == "folder" else files
    held = launch(rome, kind, firmware, *owner, "--hold")
    assert held.code == 0, held.err
    document = held.json()
    guest_id = document["guest_id"]
    assert document["state"] == "measured"
    measured = on(rome, "guest", "measure", guest_id, "--out", tmp_path / "blob", "--json")
    assert measured.json()["measurement"] == document["measurement"] == (tmp_path / "blob").read_bytes().hex()
    text = on(rome, "guest", "measure", guest_id).out
    assert b64decode(text.split("measurement")[1].split()[0]).hex() == document["measurement"]
    with rome.connect() as host:
        major, minor, build = host.sev_status().firmware.split(".")
    version = ("--api-major", major, "--api-minor", minor)
    check = ("--build-id", build, "--policy", POLICIES[kind], "--tik", made / "vm_tik.bin", "--launch-digest")
    good = sev("measurement", "check", tmp_path / "blob", *version, *check, document["expected_digest"])
    assert good.code == 0, good.err
    assert sev("measurement", "check", tmp_path / "blob", *version, *check, "00" * 32).code == 3
    (tmp_path / "secret").write_bytes(SECRET)
    keys = ("--tik", made / "vm_tik.bin", "--tek", made / "vm_tek.bin", "--launch-measure-blob", tmp_path / "blob")
    packet = (tmp_path / "header", tmp_path / "payload")
    packed = sev("secret", "build", *packet, *keys, "--secret", f"{secret.DISK_PASSPHRASE}:{tmp_path}/secret", *version)
    assert packed.code == 0, packed.err
    injected = on(rome, "guest", "inject", guest_id, *packet, "--firmware", firmware, "--json")
    assert injected.code == 0, injected.err
    size = packet[1].stat().st_size
    assert injected.json() == {"guest_id": guest_id, "state": "measured", "gpa": "0x80f000", "bytes": size}
    again = on(rome, "secret", "inject", guest_id, *packet, "--gpa", "0x1000")
    assert again.code == 0, again.err
    assert on(rome, "guest", "finish", guest_id, "--json").json()["state"] == "ready"
    assert on(rome, "guest", "inject", guest_id, *packet, "--gpa", "0x1000").code == 11
    delete(rome, guest_id)
    assert SECRET.decode() not in rome.log


@pytest.mark.parametrize("kind", TYPES)
def test_reports(rome: Daemon, firmware: Path, tmp_path: Path, kind: str) -> None:
    document = launch(rome, kind, firmware).json()
    guest_id, path, nonce = document["guest_id"], tmp_path / "report", "00112233445566778899aabbccddeeff"
    done = on(rome, "guest", "report", guest_id, "--mnonce", nonce, "--out", path, "--json")
    assert done.json() == {"guest_id": guest_id, "report": str(path), "mnonce": nonce}
    assert path.stat().st_size == 208
    report = LegacyReport.parse(path.read_bytes())
    assert (report.mnonce.hex(), report.launch_digest.hex()) == (nonce, document["launch_digest"])
    with rome.connect() as host:
        chain = host.export_platform()
    (tmp_path / "chain").write_bytes(chain.pdh + chain.pek + chain.oca + chain.signed_cek)
    (tmp_path / "roots").write_bytes(chain.authorities)
    verify = ("--chain", tmp_path / "chain", "--mnonce", nonce, "--measurement", document["launch_digest"])
    verified = sev("report", "verify", path, *verify, "--roots", tmp_path / "roots")
    assert verified.code == 0, verified.err
    fresh = [on(rome, "guest", "report", guest_id, "--out", path, "--json").json()["mnonce"] for _ in range(2)]
    assert fresh[0] != fresh[1]
    for words in (("--report-data", "00"), ("--vmpl", "1"), ("--certs-out", tmp_path / "certs")):
        assert on(rome, "guest", "report", guest_id, "--out", path, *words).code == 2
    delete(rome, guest_id)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--host-data", "5a" * 32), 2),
        (("--vcek-disabled",), 2),
        (("--guest-features", "1"), 2),
        (("--policy", "0x5"), 2),
        (("--policy", "0x100000001"), 2),
        (("--dh-cert-file", "{firmware}"), 2),
        (("--dh-cert-file", "{firmware}", "--session-file", "{firmware}"), 2),
        (("--session", "/nonexistent"), 2),
        (("--session", "/proc/self/task"), 2),
        (("--memory", "4096"), 2),
        (("--append", "x"), 2),
    ],
)
def test_what_an_sev_guest_cannot_have(rome: Daemon, firmware: Path, words: tuple[str, ...], code: int) -> None:
    done = launch(rome, "sev", firmware, *(word.format(firmware=firmware) for word in words))
    assert done.code == code, done.err
    assert json.loads(done.out)["error"]["message"]


def test_options_that_only_these_types_have(rome: Daemon, firmware: Path) -> None:
    for kind in ("snp", "plain"):
        for words in (("--hold",), ("--session", "x"), ("--session-file", "x")):
            assert launch(rome, kind, firmware, *words).code == 2


def test_what_the_host_does_not_offer(rome: Daemon, daemon: Daemon, firmware: Path) -> None:
    assert launch(rome, "snp", firmware).code == 6
    done = launch(daemon, "sev-es", firmware)  # AMD-SB-3023: SNP in its place
    assert done.code == 6
    assert "AMD-SB-3023" in done.err + done.out


def test_a_genoa_host_has_sev_beside_snp(daemon: Daemon, firmware: Path) -> None:
    document = launch(daemon, "sev", firmware).json()
    assert document["launch_digest"] == expected("sev", firmware)
    with daemon.connect() as host:
        assert host.host().sev_asids.in_use == 1
    assert on(daemon, "guest", "report", document["guest_id"], "--out", "-").code == 0
    delete(daemon, document["guest_id"])


def test_steps_of_other_guests(daemon: Daemon, firmware: Path, tmp_path: Path) -> None:
    guest_id = launch(daemon, "snp", firmware).json()["guest_id"]
    (tmp_path / "header").write_bytes(bytes(52))
    (tmp_path / "payload").write_bytes(bytes(16))
    packet = (tmp_path / "header", tmp_path / "payload")
    assert on(daemon, "guest", "measure", guest_id).code == 6
    assert on(daemon, "guest", "inject", guest_id, *packet, "--gpa", "0x1000").code == 6
    assert on(daemon, "guest", "report", guest_id, "--mnonce", "00" * 16, "--out", tmp_path / "r").code == 2
    assert on(daemon, "guest", "finish", guest_id).code == 11
    delete(daemon, guest_id)
    for words in (
        ("measure", "nobody-here"),
        ("finish", "nobody-here"),
        ("inject", "nobody-here", *packet, "--gpa", 0),
    ):
        assert on(daemon, "guest", *words).code == 10


def test_what_no_packet_is(rome: Daemon, firmware: Path, tmp_path: Path) -> None:
    guest_id = launch(rome, "sev", firmware, "--hold").json()["guest_id"]
    (tmp_path / "header").write_bytes(bytes(52))
    for size, code in ((16, 6), (17, 9), (16 << 10, 6), ((16 << 10) + 1, 2), (0, 9)):
        (tmp_path / "payload").write_bytes(bytes(size))
        done = on(rome, "guest", "inject", guest_id, tmp_path / "header", tmp_path / "payload", "--gpa", "0x1000")
        assert done.code == code, (size, done.err)
    done = on(rome, "guest", "inject", guest_id, tmp_path / "header", tmp_path / "header", "--firmware", firmware)
    assert done.code == 9
    (tmp_path / "payload").write_bytes(bytes(16 << 10))
    done = on(rome, "guest", "inject", guest_id, tmp_path / "header", tmp_path / "payload", "--firmware", firmware)
    assert done.code == 2
    assert "room for 3072 bytes" in done.err
    assert on(rome, "guest", "inject", guest_id, tmp_path / "header", tmp_path / "payload").code == 2
    (tmp_path / "header").write_bytes(bytes(51))
    done = on(rome, "guest", "inject", guest_id, tmp_path / "header", tmp_path / "payload", "--gpa", "0x1000")
    assert done.code == 2
    delete(rome, guest_id)
