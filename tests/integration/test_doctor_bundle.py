"""`sev doctor` of a daemon with keys, guests, secrets and callers: none of them is in the bundle."""

from __future__ import annotations

import base64
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sev.doctor import gather
from sev.measurement.sample import sample_firmware
from tests.support.cli import sev
from tests.support.daemon import Daemon

LABEL = "quarterly-figures"
GUEST = "payroll-database"


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        out = {}
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            assert file is not None
            out[entry.name.removeprefix("sev-doctor/")] = file.read()
        return out


def spelled(data: bytes) -> Iterator[bytes]:
    """Every piece of 18 bytes of some data, raw, in hexadecimal and in base64."""
    for at in range(0, len(data) - 18, 18):
        piece = data[at : at + 18]
        if len(set(piece)) > 6:  # zeros and padding are no secret
            yield from (piece, piece.hex().encode(), piece.hex().upper().encode(), base64.b64encode(piece))


def secrets(folder: Path) -> Iterator[bytes]:
    """Whatever a state directory keeps that is key material: PEM, DER, and long hexadecimal values."""
    found = 0
    for path in folder.rglob("*"):
        if not path.is_file() or path.name in ("audit.jsonl", "journal.jsonl", "lock"):
            continue
        data = path.read_bytes()
        if path.suffix in (".key", ".der", ".pem") or path.name == "certs.bin":
            yield from spelled(data)
            found += 1
        for body in re.findall(rb"-----BEGIN [A-Z ]+-----\n(.*?)-----END", data, re.DOTALL):
            yield from body.split()
            yield from spelled(base64.b64decode(body))
        for value in re.findall(rb'"([0-9a-f]{32,})"', data):
            yield from (value, value[:32], base64.b64encode(bytes.fromhex(value.decode()))[:32])
            found += 1
    assert found > 3, "a simulated chip has keys"


@pytest.fixture
def busy(daemons: Callable[[str], Daemon], tmp_path: Path) -> Iterator[Daemon]:
    """A host with a guest, an audit trail and events."""
    daemon = daemons("genoa")
    firmware = tmp_path / "f"
    firmware.write_bytes(sample_firmware())
    on = ("--socket", daemon.socket)
    host_data = "c0ffee" + "ab" * 29
    made = sev(
        *on, "guest", "launch", "--type", "snp", "--firmware", firmware, "--vcpus", "1", "--host-data", host_data,
        "--label", LABEL, "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    guest_id = made.json()["guest_id"]
    sev(*on, "guest", "show", GUEST)
    sev(*on, "guest", "delete", GUEST, "--yes")
    yield daemon
    sev(*on, "guest", "delete", guest_id, "--yes")


@pytest.mark.parametrize("names", [False, True])
def test_nothing_secret_is_in_it(busy: Daemon, tmp_path: Path, names: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_state_folder", lambda configured: str(busy.folder / "state"))
    out = tmp_path / "b.tar.gz"
    done = sev("--socket", busy.socket, "doctor", "--out", out, *(["--with-names"] if names else []))
    assert done.code == 0, done.err
    found = contents(out)
    assert {"host.json", "events.json", "audit.json", "guests.json", "metrics.json", "state.json"} <= set(found)
    everything = b"\n".join(found.values()) + done.out.encode()
    with busy.connect() as host:
        chip_id = host.host().chip_id.hex()
        (guest,) = host.guests()
    for secret in (*secrets(busy.folder / "state"), chip_id[:48].encode(), guest.launch_digest.hex()[:32].encode()):
        assert secret not in everything, secret
    assert b"c0ffeeabab" not in everything
    assert LABEL.encode() not in everything
    assert GUEST.encode() not in everything
    if not names:
        assert guest.guest_id.encode() not in everything
    for name in found:
        assert name in done.out, "it says what it packs"
    audit = json.loads(found["audit.json"])
    assert audit["by_method"]["GuestService/DeleteGuest refused NOT_FOUND"] >= 1
    assert audit["intact"] is True
    assert json.loads(found["events.json"])["by_kind"]["guest.created"] >= 1
    assert any(one["name"].endswith(".key") for one in json.loads(found["state.json"]))


def test_neither_the_log_nor_the_trail_has_them(busy: Daemon) -> None:
    state = busy.folder / "state"
    written = busy.log.encode() + (state / "audit.jsonl").read_bytes()
    assert b"GuestService/CreateGuest" in written
    for secret in secrets(state):
        assert secret not in written, secret
    for content in (LABEL.encode(), b"c0ffeeabab"):
        assert content not in written


def test_what_would_be_packed_can_be_read_before(busy: Daemon) -> None:
    document = sev("--socket", busy.socket, "doctor", "--json").json()
    assert document["out"] is None
    listed = [one["name"] for one in document["contents"]]
    assert [f"{name}.json" for name in document["sections"]] == listed[1:]
