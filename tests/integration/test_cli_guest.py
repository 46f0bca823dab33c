"""`sev guest` against a real simulated daemon: guests that were launched are shown, report, are watched and deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import COMMAND, sev
from tests.support.daemon import Daemon
from tests.support.guest_commands import delete, launch


@pytest.fixture
def guest(daemon: Daemon, firmware: Path) -> Iterator[str]:
    """A launched guest on the shared host."""
    done = launch(daemon, firmware, "--vcpus", 2, "--label", "of a test")
    assert done.code == 0, done.err
    guest_id = done.json()["guest_id"]
    yield guest_id
    sev("--socket", daemon.socket, "guest", "delete", guest_id, "--yes")


def test_list_and_show(daemon: Daemon, guest: str) -> None:
    listed = sev("--socket", daemon.socket, "guest", "list", "--json").json()["guests"]
    shown = sev("--socket", daemon.socket, "guest", "show", guest, "--json").json()
    assert shown in listed
    assert shown["guest_id"] == guest
    assert shown["owner"] == f"uid:{os.geteuid()}"
    assert (shown["state"], shown["type"], shown["vcpu_count"], shown["label"]) == ("ready", "snp", 2, "of a test")
    assert shown["simulated"] is True
    assert shown["create_time"].endswith("Z")
    assert len(shown["launch_digest"]) == 96
    assert shown["updated_pages"] > 128
    text = sev("--socket", daemon.socket, "guest", "show", guest).out
    assert shown["launch_digest"] in text
    table = sev("--socket", daemon.socket, "guest", "list").out.splitlines()
    assert table[0].split()[:3] == ["ID", "TYPE", "STATE"]
    assert any(line.startswith(guest) for line in table)


def test_no_guests(daemon: Daemon) -> None:
    done = sev("--socket", daemon.socket, "guest", "list")
    assert (done.code, done.out) == (0, "no guests\n")
    assert "SIMULATED" in done.err


@pytest.mark.parametrize("guest_id", ["snp-000000000000", "x", "../../etc", "", "A" * 40, "\udcff", "x" * 5000])
def test_guests_that_are_none(daemon: Daemon, tmp_path: Path, guest_id: str) -> None:
    for words in (
        ("guest", "show", guest_id),
        ("guest", "delete", guest_id, "--yes"),
        ("guest", "report", guest_id, "--out", tmp_path / "r"),
    ):
        done = sev("--socket", daemon.socket, *words, "--json")
        assert done.code in (2, 10), done.err
        if guest_id == "snp-000000000000":
            assert done.code == 10
            assert done.json()["error"]["kind"] == "not_found"
    assert not (tmp_path / "r").exists()


def test_delete_needs_confirmation(daemon: Daemon, guest: str) -> None:
    assert sev("--socket", daemon.socket, "guest", "delete", guest).code == 2
    assert sev("--socket", daemon.socket, "guest", "show", guest).code == 0
    done = sev("--socket", daemon.socket, "guest", "delete", guest, "--yes", "--json")
    assert (done.code, done.json()) == (0, {"deleted": guest})
    assert sev("--socket", daemon.socket, "guest", "show", guest).code == 10
    assert sev("--socket", daemon.socket, "guest", "delete", guest, "--yes").code == 10


def test_report_and_certificates_verify(daemon: Daemon, guest: str, tmp_path: Path) -> None:
    report, certs = tmp_path / "report.bin", tmp_path / "certs"
    done = sev(
        "--socket", daemon.socket, "guest", "report", guest, "--report-data", "c0ffee", "--vmpl", 1, "--out", report,
        "--certs-out", certs, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "SIMULATED" in done.err
    assert "padded" in done.err
    document = done.json()
    assert document["report_data"] == "c0ffee" + "00" * 61
    assert len(report.read_bytes()) == 1184
    shown = sev("report", "show", report, "--json").json()
    assert shown["report_data"] == document["report_data"]
    assert shown["vmpl"] == 1
    assert {path.name for path in certs.iterdir()} >= {"ark.pem", "ask.pem", "vcek.pem"}
    with_its_root = sev("report", "verify", report, "--certs", certs, "--roots", certs / "ark.pem", "--json")
    assert with_its_root.code == 0, with_its_root.err
    assert with_its_root.json()["verified"] is True
    with_amds = sev("report", "verify", report, "--certs", certs, "--json")
    assert with_amds.code == 3
    digest = sev("--socket", daemon.socket, "guest", "show", guest, "--json").json()["launch_digest"]
    expected = ("--measurement", digest, "--report-data", "c0ffee", "--vmpl", "1")
    assert sev("report", "verify", report, "--certs", certs, "--roots", certs / "ark.pem", *expected).code == 0


def test_report_to_stdout(daemon: Daemon, guest: str) -> None:
    done = sev("--socket", daemon.socket, "guest", "report", guest, "--out", "-")
    assert done.code == 0
    assert len(done.data) == 1184


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--out", "/nonexistent/r"), 2),
        (("--vmpl", "4", "--out", "r"), 2),
        (("--report-data", "00" * 65, "--out", "r"), 2),
        (("--report-data", "zz", "--out", "r"), 2),
        ((), 2),
        (("--out", "r", "--certs-out", "/dev/null"), 2),
    ],
)
def test_reports_asked_for_wrongly(
    daemon: Daemon, guest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sev("--socket", daemon.socket, "guest", "report", guest, *words).code == code


def test_a_guest_that_forbids_the_vcek_has_no_report(daemon: Daemon, firmware: Path, tmp_path: Path) -> None:
    guest_id = launch(daemon, firmware, "--vcek-disabled").json()["guest_id"]
    done = sev("--socket", daemon.socket, "guest", "report", guest_id, "--out", tmp_path / "r", "--json")
    assert done.code == 6, done.err
    assert done.json()["error"]["firmware_status"]["name"] == "INVALID_KEY"
    delete(daemon, guest_id)


def test_watch_shows_each_change_and_ends_with_the_guest(daemon: Daemon, firmware: Path) -> None:
    guest_id = launch(daemon, firmware).json()["guest_id"]
    watch = subprocess.Popen(
        [*COMMAND, "--socket", daemon.socket, "guest", "watch", guest_id, "--json"], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert watch.stdout is not None
    first = json.loads(watch.stdout.readline())
    assert (first["guest_id"], first["state"]) == (guest_id, "ready")
    delete(daemon, guest_id)
    rest, err = watch.communicate(timeout=20)
    assert json.loads(rest.splitlines()[-1])["state"] == "deleted"
    assert watch.returncode == 0
    assert "Traceback" not in err


def test_watch_can_be_interrupted(daemon: Daemon, guest: str) -> None:
    watch = subprocess.Popen(
        [*COMMAND, "--socket", daemon.socket, "guest", "watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    assert guest in watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=20)
    assert watch.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err


def test_watching_a_guest_that_is_none(daemon: Daemon) -> None:
    assert sev("--socket", daemon.socket, "guest", "watch", "snp-000000000000").code == 10
