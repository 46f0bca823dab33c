"""Every file that a daemon keeps, damaged: it is set aside or passed over, said, and the daemon serves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sev.client import Host
from tests.support.cli import sev
from tests.support.daemon import running
from tests.support.device_files import DeviceFiles, device_files
from tests.support.power import tree

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "garbled": lambda data: bytes(octet ^ 0x5A if at % 97 == 0 else octet for at, octet in enumerate(data)),
    "empty": lambda data: b"",
    "random": lambda data: os.urandom(max(len(data), 100)),
    "huge": lambda data: data * (1 + (2 << 20) // max(len(data), 1)),
}

ITS_OWN = ("lock",)
"""Files without content."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFiles]:
    folder = tmp_path_factory.mktemp("simulator")
    with device_files(folder, "--kds", "127.0.0.1:0") as served:
        yield served


@pytest.fixture(scope="module")
def state(files: DeviceFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a daemon kept that did a bit of everything."""
    folder = tmp_path_factory.mktemp("kept")
    stick = folder / "hashstick.bin"
    with running(folder, "--simulator", str(files.devices)) as daemon, daemon.connect() as host:
        exercise(host)
        stick.write_bytes(hash_stick(daemon.socket, files, folder))
        host.vlek_load(stick.read_bytes())
        guest = host.create_guest(memory_bytes=1 << 20, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0x00A00F11)
        cards = {name: data for name, data in tree(folder / "state").items() if name.endswith("guest.json")}
        host.delete_guest(guest.guest_id)
    kept = folder / "state"
    assert len(cards) == 1
    for name, data in cards.items():  # as a guest leaves it that ended with its worker
        (kept / name).parent.mkdir(mode=0o700)
        (kept / name).write_bytes(data)
    names = sorted(tree(kept))
    for wanted in ("audit.jsonl", "journal.jsonl", "vlek.json", "endorsements/simulated/index"):
        assert wanted in names
    assert sum(name.startswith("endorsements/simulated/objects/") for name in names) == 4
    return kept


def hash_stick(socket: str, files: DeviceFiles, folder: Path) -> bytes:
    import json

    kds = json.loads((files.devices / "platform.json").read_text())["kds"]
    client = files.folder / "state" / "simulator" / "genoa" / "kds" / "provider.pem"
    options = ("--kds", kds, "--kds-ca", files.devices / "roots" / "kds-ca.pem", "--kds-client", client)
    done = sev("certs", "fetch", "hashsticks", "--out", folder / "sticks", *options, "--socket", socket)
    assert done.code == 0, done.err
    return (folder / "sticks" / "hashstick.bin").read_bytes()


def exercise(host: Host) -> None:
    """What a daemon must be able to do."""
    found = host.endorsements()
    contents = [one.der for one in found.endorsements if one.kind in ("ark", "ask", "vcek", "crl")]
    assert len(contents) == 4
    host.import_endorsements(contents)
    assert host.snp_status().reported_tcb.raw
    guest = host.create_guest(memory_bytes=1 << 20, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0x00A00F11)
    host.delete_guest(guest.guest_id)


def damaged(state: Path, folder: Path, damage: str, *names: str) -> Path:
    """A copy of what was kept, with these files damaged."""
    folder.mkdir()
    copy = folder / "state"
    shutil.copytree(state, copy, ignore=shutil.ignore_patterns("*.sock", "sock"))
    for name in names:
        path = copy / name
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    return folder


def check(folder: Path, files: DeviceFiles) -> str:
    """A daemon on it serves; what it said."""
    with running(folder, "--simulator", str(files.devices)) as daemon:
        with daemon.connect() as host:
            exercise(host)
        said = daemon.log
    assert "Traceback" not in said
    assert "unexpected" not in said
    return said


def names_of(state: Path) -> list[str]:
    return [name for name in sorted(tree(state)) if name not in ITS_OWN and not name.startswith("private/")]


def test_each_file_in_turn(state: Path, files: DeviceFiles, tmp_path: Path) -> None:
    kinds = list(DAMAGES)
    seen = set()
    for number, name in enumerate(names_of(state)):
        # Objects are alike: one of them is damaged in every way below.
        group = name.rpartition("/")[0] if "/objects/" in name else name
        if group in seen:
            continue
        seen.add(group)
        damage = kinds[number % len(kinds)]
        folder = damaged(state, tmp_path / str(number), damage, name)
        said = check(folder, files)
        # An empty journal is one without entries.
        if name.startswith(("endorsements/", "workers/")) or (name == "journal.jsonl" and damage != "empty"):
            assert Path(name).name in said, f"{name} {damage}: it is said"
        if name.startswith("endorsements/"):
            aside = [one for one in tree(folder / "state") if one.startswith(f"{name}.damaged-")]
            assert len(aside) == 1, f"{name} {damage}: it is set aside"
        shutil.rmtree(folder)


SAMPLE = ("garbled", "empty")


@pytest.mark.parametrize(
    "damage", [one if one in SAMPLE else pytest.param(one, marks=pytest.mark.long) for one in DAMAGES]
)
def test_all_of_them_at_once(state: Path, files: DeviceFiles, tmp_path: Path, damage: str) -> None:
    folder = damaged(state, tmp_path / "all", damage, *names_of(state))
    said = check(folder, files)
    assert said.count("is damaged") >= 1
    kept = tree(folder / "state")
    for name in names_of(state):
        if name.startswith("endorsements/"):
            bad = DAMAGES[damage]((state / name).read_bytes()) if damage != "random" else None
            aside = [content for one, content in kept.items() if one.startswith(f"{name}.damaged-")]
            # With the index gone nobody knows what an object was that says nothing of itself: it stays where it is.
            assert aside or "/objects/" in name, name
            assert bad is None or not aside or aside == [bad]
