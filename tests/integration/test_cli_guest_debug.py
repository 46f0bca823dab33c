"""`sev guest debug read|write`: memory in plain where the guest's policy allows it; on a simulated Rome host."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sev.cli.guest_debug import dump
from sev.measurement.sample import sample_firmware
from tests.support.cli import Done, sev
from tests.support.daemon import Daemon

FIRMWARE = sample_firmware(64 << 10)
GPA = (4 << 30) - len(FIRMWARE)


@pytest.fixture
def rome(daemons: Callable[[str], Daemon]) -> Iterator[Daemon]:
    daemon = daemons("rome")
    yield daemon
    with daemon.connect() as host:
        for guest in host.guests():
            host.delete_guest(guest.guest_id)


def on(daemon: Daemon, *words: object) -> Done:
    return sev("--socket", daemon.socket, "guest", "debug", *words)


@pytest.fixture(params=["sev", "sev-es"])
def guest(rome: Daemon, request: pytest.FixtureRequest) -> str:
    with rome.connect() as host:
        if request.param == "sev":
            return host.launch_sev(FIRMWARE, policy=0).guest.guest_id
        return host.launch_sev_es(FIRMWARE, policy=4).guest.guest_id


def test_reading_into_a_file(rome: Daemon, guest: str, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    done = on(rome, "read", guest, "--gpa", f"{GPA:#x}", "--size", "64KiB", "--out", path, "--json")
    assert done.code == 0, done.err
    assert done.json() == {"guest_id": guest, "gpa": f"{GPA:#x}", "bytes": len(FIRMWARE), "file": str(path)}
    assert path.read_bytes() == FIRMWARE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_reading_to_the_terminal(rome: Daemon, guest: str) -> None:
    at = len(FIRMWARE) - 40
    done = on(rome, "read", guest, "--gpa", GPA + at, "--size", 40)
    assert (done.code, done.out.rstrip("\n")) == (0, dump(GPA + at, FIRMWARE[at:]))
    shown = on(rome, "read", guest, "--gpa", GPA + at, "--size", 40, "--json").json()
    assert bytes.fromhex(shown["data"]) == FIRMWARE[at:]
    refused = on(rome, "read", guest, "--gpa", 0, "--size", "65KiB")
    assert (refused.code, "--out" in refused.err) == (2, True)


def test_writing(rome: Daemon, guest: str, tmp_path: Path) -> None:
    patch = tmp_path / "patch"
    patch.write_bytes(b"unaligned and of odd length")
    done = on(rome, "write", guest, "--gpa", f"{GPA + 5:#x}", "--in", patch, "--json")
    assert done.code == 0, done.err
    assert done.json() == {"guest_id": guest, "gpa": f"{GPA + 5:#x}", "bytes": 27}
    again = on(rome, "read", guest, "--gpa", GPA, "--size", 48, "--json").json()
    assert bytes.fromhex(again["data"]) == FIRMWARE[:5] + patch.read_bytes() + FIRMWARE[32:48]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("read", "no-such-guest", "--gpa", "0", "--size", "16"), 10),
        (("write", "no-such-guest", "--gpa", "0", "--in", "/dev/null"), 10),
        (("read", "x", "--size", "16"), 2),
        (("read", "x", "--gpa", "0", "--size", "0"), 2),
        (("write", "x", "--gpa", "0", "--in", "/nonexistent/file"), 2),
    ],
)
def test_what_cannot_be(rome: Daemon, words: tuple[str, ...], code: int) -> None:
    assert on(rome, *words).code == code


def test_a_policy_that_forbids_it(rome: Daemon, tmp_path: Path) -> None:
    with rome.connect() as host:
        guest = host.launch_sev(FIRMWARE, policy=1).guest.guest_id
    path = tmp_path / "memory"
    path.write_bytes(b"0123456789abcdef")
    for words in (
        ("read", guest, "--gpa", hex(GPA), "--size", "16", "--out", tmp_path / "out", "--json"),
        ("write", guest, "--gpa", hex(GPA), "--in", path, "--json"),
    ):
        done = on(rome, *words)
        assert done.code == 6, done.err
        error = done.json()["error"]
        assert "POLICY_FAILURE" in json.dumps(error)
        assert "nodbg" in error["remedy"]
    assert not (tmp_path / "out").exists()
    outside = on(rome, "read", guest, "--gpa", "0xfffff000", "--size", "8KiB")
    assert outside.code == 2


def test_dump() -> None:
    lines = dump(0x1000, bytes(range(0x41, 0x41 + 17))).splitlines()
    assert lines == [
        "000000001000  41 42 43 44 45 46 47 48  49 4a 4b 4c 4d 4e 4f 50  |ABCDEFGHIJKLMNOP|",
        "000000001010  51                                                |Q|",
    ]
