"""`sev host` and `sev snp` against a real simulated daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import sev
from tests.support.daemon import Daemon, chip, running
from tests.support.needs import need_root

PRODUCTS = pytest.mark.parametrize("product", ["milan", "genoa", "turin"])


@PRODUCTS
def test_host_show(daemons: Callable[[str], Daemon], product: str) -> None:
    daemon = daemons(product)
    done = sev("--socket", daemon.socket, "host", "show", "--json")
    assert done.code == 0
    document = done.json()
    assert document["product"] == product
    assert document["simulated"] is True
    assert document["firmware"].startswith(document["api_version"] + ".")
    assert document["kernel"]
    for kind in ("sev", "sev_es"):
        use = document["asids"][kind]
        assert 0 <= use["in_use"] <= use["total"]
    assert document["asids"]["sev_es"]["total"] > 0
    assert len(document["chip_id"]) == (16 if product == "turin" else 128)
    assert "sev-snp" in document["technologies"]
    assert document["device_health"] == "ready"
    assert document["missing"] == []
    assert "SIMULATED" in done.err
    shown = sev("host", "show", "--socket", f"unix:{daemon.socket}")
    assert shown.code == 0
    assert product.capitalize() in shown.out
    assert document["chip_id"] in shown.out.replace("\n", "").replace(" ", "")


def test_which_socket_is_never_silent_with_v(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    done = sev("host", "show", "-v", "--socket", daemon.socket)
    assert f"unix:{daemon.socket}" in done.err
    monkeypatch.setenv("SEVD_SOCKET", daemon.socket)
    done = sev("host", "show", "-v")
    assert daemon.socket in done.err
    assert "$SEVD_SOCKET" in done.err
    assert daemon.socket not in sev("host", "show").err
    assert sev("host", "show", "-q").err == ""


def test_the_last_global_option_wins(daemon: Daemon) -> None:
    assert sev("--socket", "/nonexistent", "host", "show", "--socket", daemon.socket).code == 0
    assert sev("--socket", daemon.socket, "host", "show", "--socket", "/nonexistent").code == 8


@PRODUCTS
def test_snp_status(daemons: Callable[[str], Daemon], product: str) -> None:
    daemon = daemons(product)
    done = sev("--socket", daemon.socket, "snp", "status", "--json")
    assert done.code == 0
    assert "SIMULATED" in done.err
    document = done.json()
    assert document["state"] == "init"
    names = {"bootloader", "tee", "snp", "microcode", "raw"} | ({"fmc"} if product == "turin" else set())
    for name in ("current_tcb", "reported_tcb"):
        assert set(document[name]) == names
        assert len(document[name]["raw"]) == 16
    assert document["committed_tcb"] is None or set(document["committed_tcb"]) == names
    assert document["guest_count"] == 0
    assert (document["mask_chip_id"], document["mask_chip_key"], document["vlek_loaded"]) == (False, False, False)
    shown = sev("--socket", daemon.socket, "snp", "status")
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["TCB", "current", "reported", "committed"] in lines
    current, reported = document["current_tcb"], document["reported_tcb"]
    assert any(line[:3] == ["snp", str(current["snp"]), str(reported["snp"])] for line in lines)


@pytest.fixture(scope="module", params=["genoa", "turin"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    """A host of this module's own, whose platform may be changed."""
    product = request.param
    folder = tmp_path_factory.mktemp("own")
    with running(folder, f"--simulate={product}", chip=chip(product, tmp_path_factory)) as daemon:
        yield daemon


def test_config_set_keeps_what_is_not_named(own: Daemon) -> None:
    to = ("--socket", own.socket, "--json")
    before = sev("snp", "status", *to).json()
    lower = before["reported_tcb"]["snp"] - 1
    done = sev("snp", "config", "set", "--snp", lower, "--mask-chip-id", *to)
    assert done.code == 0, done.err
    after = done.json()
    assert after["reported_tcb"]["snp"] == lower
    for name in ("bootloader", "tee", "microcode"):
        assert after["reported_tcb"][name] == before["reported_tcb"][name]
    assert (after["mask_chip_id"], after["mask_chip_key"]) == (True, False)
    again = sev("snp", "config", "set", "--no-mask-chip-id", *to).json()
    assert again["reported_tcb"]["snp"] == lower
    assert again["mask_chip_id"] is False
    reset = sev("snp", "config", "reset", *to)
    assert reset.code == 0
    assert reset.json()["reported_tcb"] == before["reported_tcb"]


def test_config_set_in_snphosts_order(own: Daemon) -> None:
    to = ("--socket", own.socket, "--json")
    tcb = sev("snp", "status", *to).json()["reported_tcb"]
    words = [tcb[name] for name in ("bootloader", "tee", "snp", "microcode")]
    fmc = [tcb["fmc"]] if "fmc" in tcb else []
    done = sev("snp", "config", "set", *words, 3, *fmc, *to)
    assert done.code == 0, done.err
    assert (done.json()["mask_chip_id"], done.json()["mask_chip_key"]) == (True, True)
    assert done.json()["reported_tcb"] == tcb
    assert sev("snp", "config", "reset", *to).json()["mask_chip_id"] is False


@pytest.mark.parametrize(
    "words",
    [(), ("1", "2"), ("1", "2", "3", "4", "4"), ("1", "2", "3", "4", "0", "--snp", "1"), ("--snp", "256"), ("x",)],
)
def test_config_set_wrongly(own: Daemon, words: tuple[str, ...]) -> None:
    done = sev("snp", "config", "set", *words, "--socket", own.socket)
    assert done.code == 2
    assert done.out == ""


def test_a_reported_tcb_above_the_committed_is_refused_by_the_firmware(own: Daemon) -> None:
    to = ("--socket", own.socket, "--json")
    before = sev("snp", "status", *to).json()
    done = sev("snp", "config", "set", "--snp", 255, *to)
    assert done.code == 6
    error = done.json()["error"]
    assert error["kind"] == "refused"
    assert error["firmware_status"] == {"code": 0x16, "name": "INVALID_PARAM"}
    assert error["request_id"]
    assert error["remedy"]
    assert sev("snp", "status", *to).json() == before


def test_commit_needs_confirmation(own: Daemon) -> None:
    to = ("--socket", own.socket)
    refused = sev("snp", "commit", *to)
    assert refused.code == 2
    assert "--yes" in refused.err
    done = sev("snp", "commit", "--yes", "--json", *to)
    assert done.code == 0, done.err
    document = done.json()
    assert document["committed_tcb"] in (None, document["current_tcb"])


@pytest.mark.parametrize(("size", "code"), [(431, 9), (433, 9), (0, 9), (70000, 2)])
def test_a_hash_stick_of_the_wrong_size(own: Daemon, tmp_path: Path, size: int, code: int) -> None:
    (tmp_path / "stick").write_bytes(bytes(size))
    assert sev("snp", "vlek", "load", tmp_path / "stick", "--socket", own.socket).code == code


def test_a_hash_stick_that_is_none_is_refused(own: Daemon, tmp_path: Path) -> None:
    (tmp_path / "stick").write_bytes(os.urandom(432))
    done = sev("snp", "vlek", "load", tmp_path / "stick", "--socket", own.socket, "--json")
    assert done.code == 6
    assert done.json()["error"]["firmware_status"]["name"]


STRANGER = """
import os, sys
from sev.cli.main import main
main(sys.argv[1:])  # as root: loads what a user without rights in this place could not
sys.stdout.flush(); os.ftruncate(1, 0); os.lseek(1, 0, 0)
os.setgroups([]); os.setgid(61234); os.setuid(61234)
sys.exit(main(sys.argv[1:]))
"""


def test_who_may_not_open_the_socket_gets_7(daemon: Daemon, tmp_path: Path) -> None:
    need_root()
    for folder in (daemon.folder, *daemon.folder.parents[:3]):
        folder.chmod(0o755)
    with (tmp_path / "out").open("w+") as out:
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, "--socket", daemon.socket, "host", "show", "--json"],
            stdout=out, stderr=subprocess.PIPE, text=True, check=False, timeout=30,
        )  # fmt: skip
        out.seek(0)
        error = json.load(out)["error"]
    assert done.returncode == 7, done.stderr
    assert error["kind"] == "not_permitted"
    assert "Traceback" not in done.stderr
