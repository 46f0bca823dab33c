"""sevctl as a guest's owner, unmodified: its measurements, secrets and VMSA pages are ours byte for byte, and each side
goes on with the other's files."""

from __future__ import annotations

import json
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest

from sev.abi import sev_certificate
from sev.session import TransportKeys, secret
from tests.conformance.test_sevctl_vectors import MEASUREMENTS, SECRETS, words
from tests.support.cli import Done, sev
from tests.support.daemon import running
from tests.support.data import DATA
from tests.support.peer_host import PeerHost, peer_host
from tests.support.peers import peer
from tests.support.tiny_firmware import tiny_firmware

pytestmark = pytest.mark.peer

Tool = Callable[..., object]

FIRMWARE = DATA / "measure" / "ovmf-amdsev-el9-tail4k.bin"
PASSPHRASE = b"the owner's passphrase\0with a zero in it"
OTHER_GUID = UUID("52e8a7ba-2c0a-4b11-a1a9-0f1f3ec6c1b2")


def theirs(*arguments: object, code: int = 0) -> str:
    """What sevctl prints; it needs no host for any of this."""
    done = subprocess.run([str(peer("sevctl")), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done.stdout


def ours(*arguments: object) -> Done:
    """What `sev` does, which is nothing wrong."""
    done = sev(*arguments)
    assert done.code == 0, (arguments, done.err)
    return done


@pytest.mark.parametrize("number", range(len(MEASUREMENTS["cases"])))
def test_published_measurements(number: int, tmp_path: Path) -> None:
    case: dict[str, Any] = MEASUREMENTS["cases"][number]
    nonce = ["--nonce", case["nonce_b64"]] if "nonce_b64" in case else ["--launch-measure-blob", case["blob_b64"]]
    options = ["--cmdline" if word == "--append" else word for word in words(case, tmp_path)]
    assert theirs("measurement", "build", *options, *nonce).strip() == case["blob_b64"]
    assert ours("measurement", "build", *options, *nonce).out.strip() == case["blob_b64"]


def test_random_measurements(tmp_path: Path) -> None:
    """Whatever describes a launch: the same blob from both, on the terminal and in a file."""
    random = Random(62)
    kinds = set()
    for _ in range(24):
        files = {name: tmp_path / name for name in ("tik", "nonce", "kernel", "initrd", "page0", "page1")}
        for name, path in files.items():
            path.write_bytes(random.randbytes({"tik": 16, "nonce": 16, "page0": 4096, "page1": 4096}.get(name, 999)))
        encrypted, hashed, digest = random.random() < 0.4, random.random() < 0.5, random.random() < 0.3
        options: list[object] = ["--api-major", random.randrange(256), "--api-minor", hex(random.randrange(17, 256))]
        options += ["--build-id", random.randrange(256), "--tik", files["tik"], "--nonce", files["nonce"]]
        options += ["--policy", hex(random.getrandbits(32) & ~4 | (4 if encrypted and not digest else 0))]
        if digest:
            options += ["--launch-digest", b64encode(random.randbytes(32)).decode()]
        else:
            options += ["--firmware", FIRMWARE]
            if hashed:
                options += [
                    "--kernel",
                    files["kernel"],
                    "--initrd",
                    files["initrd"],
                    "--cmdline",
                    "console=ttyS0 quiet",
                ]
            if encrypted:
                options += ["--num-cpus", random.randrange(1, 9), "--vmsa-cpu0", files["page0"]]
                options += ["--vmsa-cpu1", files["page1"]]
        kinds.add((digest, not digest and encrypted, not digest and hashed))
        expected = theirs("measurement", "build", *options).strip()
        assert ours("measurement", "build", *options).out.strip() == expected, options
        assert theirs("measurement", "build", *options, "--outfile", tmp_path / "theirs").startswith("Wrote")
        ours("measurement", "build", *options, "--outfile", tmp_path / "ours")
        assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes() == b64decode(expected)
        described = [word for word in options if word not in ("--nonce", files["nonce"])]
        ours("measurement", "check", tmp_path / "theirs", *described)
    assert len(kinds) == 5


def packed(folder: Path, name: str, tool: Tool, *arguments: object) -> secret.Packet:
    header, payload = folder / f"{name}.header", folder / f"{name}.payload"
    tool("secret", "build", *arguments, header, payload)
    return secret.Packet(header.read_bytes(), payload.read_bytes())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_secrets(count: int, tmp_path: Path) -> None:
    """With the same IV the same packet; without one, each opens the other's."""
    random = Random(count)
    measure = b64decode(SECRETS["launch_measure_blob_b64"])
    keys = {"tik": bytes.fromhex(SECRETS["tik_hex"]), "tek": bytes.fromhex(SECRETS["tek_hex"])}
    options: list[object] = ["--launch-measure-blob", SECRETS["launch_measure_blob_b64"]]
    for name, key in keys.items():
        (tmp_path / name).write_bytes(key)
        options += [f"--{name}", tmp_path / name]
    entries = []
    for number in range(count):
        content, guid = random.randbytes(1 + random.randrange(600)), f"{number:08x}-1111-4222-8333-444455556666"
        (tmp_path / str(number)).write_bytes(content)
        options += ["--secret", f"{guid}:{tmp_path / str(number)}"]
        entries.append((UUID(guid), content))
    fixed = ("--iv", SECRETS["iv_b64"])
    assert packed(tmp_path, "a", theirs, *options, *fixed) == packed(tmp_path, "b", ours, *options, *fixed)
    free = packed(tmp_path, "c", theirs, *options), packed(tmp_path, "d", ours, *options)
    assert free[0] != free[1]
    for packet in free:
        opened = secret.unseal(TransportKeys(keys["tek"], keys["tik"]), packet, measure[:32])
        assert secret.read_table(opened) == entries


VCPUS: dict[str, tuple[object, ...]] = {
    "first": ("--cpu", 0, "--userspace", "qemu", "--family", 25, "--model", 1, "--stepping", 1),
    "second": ("--cpu", 1, "--userspace", "qemu", "--family", 25, "--model", 1, "--stepping", 1),
    "last": ("--cpu", 511, "--userspace", "qemu", "--family", 26, "--model", 2, "--stepping", 1),
    "no model": ("--cpu", 0, "--userspace", "qemu"),
    "Rome": ("--cpu", 1, "--userspace", "qemu", "--family", 23, "--model", 49, "--stepping", 0),
    "krun": ("--cpu", 0, "--userspace", "krun"),
    "krun's second": ("--cpu", 1, "--userspace", "krun", "--family", 25, "--model", 17, "--stepping", 0),
}


@pytest.mark.parametrize("name", VCPUS)
def test_pages_of_vcpus(name: str, tmp_path: Path) -> None:
    pages = tmp_path / "theirs", tmp_path / "ours"
    tools: tuple[Tool, Tool] = theirs, ours
    for page, tool in zip(pages, tools, strict=True):
        tool("vmsa", "build", page, *VCPUS[name], "--firmware", FIRMWARE)
    assert pages[0].read_bytes() == pages[1].read_bytes()
    if name in ("first", "second"):
        assert pages[0].read_bytes() == (FIRMWARE.parent / f"vmsa{name == 'second':d}.bin").read_bytes()
    other = ("--cpu", 1, "--userspace", "qemu", "--family", 25, "--model", 17, "--stepping", 3, "--firmware", FIRMWARE)
    before = pages[0].read_bytes()
    theirs("vmsa", "update", pages[1], *other)  # each changes what the other made
    ours("vmsa", "update", pages[0], *other)
    assert pages[0].read_bytes() == pages[1].read_bytes() != before
    shown = theirs("vmsa", "show", pages[0])
    assert ours("vmsa", "show", pages[1], "--form", "sevctl").out == shown
    document, registers = json.loads(shown), ours("vmsa", "show", pages[1], "--json").json()
    for register, value in registers.items():
        parts = list(value.values()) if isinstance(value, dict) else value
        their = document[register]
        assert parts == (list(their.values()) if isinstance(their, dict) else their)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PeerHost]:
    peer("sevctl")
    with peer_host(tmp_path / "host", "rome") as found:
        yield found


@pytest.mark.root
@pytest.mark.parametrize("owner", ["theirs", "ours"])
@pytest.mark.parametrize(("kind", "policy"), [("sev", 0), ("sev-es", 4)])
def test_whoever_owns_the_guest(host: PeerHost, tmp_path: Path, owner: str, kind: str, policy: int) -> None:
    """Chain from one, session from the other; measurement and secret from both; the guest has it, and its report holds."""
    folder, image, ca = tmp_path / "session", tmp_path / "image", host.files.devices / "roots" / "legacy-ca.cert"
    folder.mkdir()
    image.write_bytes(tiny_firmware(b"\xf4"))
    with running(tmp_path / "daemon", "--simulator", str(host.files.devices)) as daemon:
        on = ("--socket", daemon.socket)
        if owner == "theirs":
            ours(*on, "platform", "export", "--out", tmp_path / "chain")
            theirs("verify", "--sev", tmp_path / "chain", "--ca", ca)
            theirs("session", "-n", folder / "vm", tmp_path / "chain", policy)
        else:
            assert host.run("sevctl", "export", tmp_path / "chain").returncode == 0
            ours("session", "create", tmp_path / "chain", policy, "--roots", ca, "--out", folder)
        assert (tmp_path / "chain").stat().st_size == 4 * sev_certificate.SIZE
        launch = ("guest", "launch", "--type", kind, "--firmware", image, "--session", folder, "--policy", policy)
        launched = ours(*on, *launch, "--vcpu-type", "EPYC-Rome", "--hold", "--json").json()
        guest = launched["guest_id"]
        ours(*on, "guest", "measure", guest, "--out", tmp_path / "blob")
        version = host.run("sevctl", "show", "version").stdout.strip().split(".")
        keys = [part for name in ("tik", "tek") for part in (f"--{name}", folder / f"vm_{name}.bin")]
        described: list[object] = ["--policy", policy, *keys[:2]]
        for option, part in zip(("--api-major", "--api-minor", "--build-id"), version, strict=True):
            described += [option, part]
        described += ["--launch-digest", b64encode(bytes.fromhex(launched["expected_digest"])).decode()]
        measured = (tmp_path / "blob").read_bytes()
        built = theirs("measurement", "build", *described, "--launch-measure-blob", tmp_path / "blob")
        assert b64decode(built) == measured
        ours("measurement", "check", tmp_path / "blob", *described)
        (tmp_path / "secret").write_bytes(PASSPHRASE)
        given = [f"{secret.DISK_PASSPHRASE}:{tmp_path / 'secret'}", f"{OTHER_GUID}:{tmp_path / 'secret'}"]
        wanted = [word for one in given for word in ("--secret", one)]
        tools: tuple[Tool, Tool] = theirs, ours
        for number, tool in enumerate(tools):
            header, payload = tmp_path / f"header{number}", tmp_path / f"payload{number}"
            tool("secret", "build", *keys, "--launch-measure-blob", tmp_path / "blob", *wanted, header, payload)
            ours(*on, "secret", "inject", guest, header, payload, "--gpa", hex(0x6000 + 0x1000 * number))
        ours(*on, "guest", "finish", guest)
        ours(*on, "guest", "report", guest, "--out", tmp_path / "report")
        with daemon.connect() as client:
            for at in (0x6000, 0x7000):
                table = secret.read_table(client.read_guest_memory(guest, at, payload.stat().st_size))
                assert table == [(secret.DISK_PASSPHRASE, PASSPHRASE), (OTHER_GUID, PASSPHRASE)]
        assert theirs("validate", tmp_path / "chain", tmp_path / "report") == ""
        report = bytearray((tmp_path / "report").read_bytes())
        report[20] ^= 1
        (tmp_path / "report").write_bytes(report)
        theirs("validate", tmp_path / "chain", tmp_path / "report", code=1)
        ours(*on, "guest", "delete", guest, "--yes")
