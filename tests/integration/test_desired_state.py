"""The configuration's [platform] through the daemon: applied, told, reloaded, put on record, on every kind of host."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sev.client import Host
from sev.errors import SevError
from sev.snp_model import DesiredPlatform
from tests.support.cli import sev
from tests.support.daemon import Daemon, running
from tests.support.device_files import device_files, prepare
from tests.support.table_soak import chip_of


@contextmanager
def daemon(folder: Path, config: str, *options: str) -> Iterator[tuple[Daemon, Host]]:
    """A daemon with this configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "sevd.toml").write_text(config)
    if any(option.startswith("--simulate=") for option in options):
        prepare(folder, options[0].partition("=")[2])
    with running(folder, "--config", str(folder / "sevd.toml"), *options) as it, it.connect(timeout=30) as host:
        yield it, host


def wanted(host: Host, condition: Callable[[DesiredPlatform], bool], seconds: float = 20) -> DesiredPlatform:
    """What is wanted and how the platform deviates, once this is so."""
    until = time.monotonic() + seconds
    while True:
        found = host.host().desired_platform
        assert found is not None
        if condition(found):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.05)


def records(it: Daemon) -> list[tuple[str, str, str]]:
    """What the daemon did by itself: method, result, reason."""
    lines = (it.folder / "state" / "audit.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    own = [one for one in found if one.get("caller", {}).get("owner") == "daemon"]
    return [(one["method"], one["result"], one.get("reason", "")) for one in own]


def test_from_the_start_to_a_reload(tmp_path: Path) -> None:
    config = '[platform]\nreported_tcb = "snp=23"\nmask_chip_id = true\n'
    with daemon(tmp_path, config, "--simulate=genoa") as (it, host):
        found = wanted(host, lambda one: not one.drift)
        assert found.actual_reported_tcb is not None
        assert (found.actual_reported_tcb.snp, found.actual_mask_chip_id) == (23, True)
        assert (found.reported_tcb, found.mask_chip_id, found.mask_chip_key, found.vlek) == ("snp=23", True, None, "")
        assert found.apply_time is not None
        assert records(it) == [("SnpPlatformService/SetSnpConfig", "done", "")]
        text = sev("host", "show", "--socket", it.socket).out
        assert "wanted            reported TCB snp=23\n                  chip id masked" in text

        # What an administrator sets is drift, is told, and stays.
        assert sev("snp", "config", "set", "--snp", "20", "--socket", it.socket).code == 0
        found = wanted(host, lambda one: bool(one.drift))
        assert found.drift == ("The reported TCB is not the wanted one: snp is 20, wanted is 23.",)
        shown = sev("host", "show", "--socket", it.socket)
        assert "drift             The reported TCB is not the wanted one" in shown.out
        assert sev("host", "show", "--json", "--socket", it.socket).json()["desired_platform"]["drift"] == list(
            found.drift
        )

        # A reload applies, what changed and what did not.
        it.process.send_signal(signal.SIGHUP)
        wanted(host, lambda one: not one.drift)
        (tmp_path / "sevd.toml").write_text('[platform]\nreported_tcb = "snp=99"\n')
        it.process.send_signal(signal.SIGHUP)
        found = wanted(host, lambda one: one.reported_tcb == "snp=99" and len(one.drift) == 2)
        assert "snp 99 > 27" in found.drift[1]
        assert host.snp_status().mask_chip_id  # what is not wanted any more is left as it is
        assert records(it)[-1] == ("SnpPlatformService/SetSnpConfig", "refused", "FIRMWARE_STATUS")
        (tmp_path / "sevd.toml").write_text('[platform]\nreported_tcb = "fast"\n')
        it.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert wanted(host, lambda one: True).reported_tcb == "snp=99"  # one with an error changes nothing
        (tmp_path / "sevd.toml").write_text("")
        it.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 10
        while host.host().desired_platform is not None:
            assert time.monotonic() < until
            time.sleep(0.05)
        recent = host.events(recent=512, only_recent=True)
        drifts = [event.message for event in recent if event.kind == "platform.drift"]
        assert "snp is 20, wanted is 23" in drifts[0]
        assert drifts[1] == "the platform is as the configuration wants it"


def test_a_commit_forgets_it_and_it_comes_back(tmp_path: Path) -> None:
    stick = tmp_path / "stick.bin"
    config = f'[platform]\nreported_tcb = "committed"\nvlek = "{stick}"\n'
    with daemon(tmp_path, config, "--simulate=genoa") as (it, host):
        assert "cannot be read" in wanted(host, lambda one: one.actual_reported_tcb is not None).drift[0]
        status = host.update_firmware("1.55.50", {"snp": 28})
        assert status.current_tcb.snp == 28
        # The hash stick of the TCB that will be committed, as one has it ready for an update.
        stick.write_bytes(chip_of(tmp_path / "state").wrap_vlek(status.current_tcb.encode(), bytes(12)))
        assert host.snp_status().committed_tcb != status.current_tcb  # never commits by itself
        host.snp_commit(confirm=True)
        found = wanted(host, lambda one: not one.drift)
        assert found.actual_vlek is not None
        assert found.actual_vlek.tcb == found.actual_reported_tcb == status.current_tcb
        assert records(it) == [("SnpPlatformService/LoadVlek", "done", "")]
        text = sev("snp", "status", "--socket", it.socket).out
        assert "VLEK      for bootloader=10,tee=0,snp=28,microcode=88" in text
        # Loaded by hand: replaced, and said.
        (tmp_path / "other.bin").write_bytes(
            chip_of(tmp_path / "state").wrap_vlek(status.current_tcb.encode(), bytes([1] * 12))
        )
        done = sev("snp", "vlek", "load", str(tmp_path / "other.bin"), "--socket", it.socket)
        assert (done.code, "replaced the VLEK by one for bootloader=10" in done.err) == (0, True)
        assert "not known to be that of" in wanted(host, lambda one: bool(one.drift)).drift[0]
        older = chip_of(tmp_path / "state").wrap_vlek(status.current_tcb.replace(snp=27).encode(), bytes(12))
        (tmp_path / "older.bin").write_bytes(older)
        done = sev("snp", "vlek", "load", str(tmp_path / "older.bin"), "--socket", it.socket)
        assert done.code == 6
        assert "snp=27" in done.err
        assert "snp=28" in done.err


WITHOUT: list[tuple[str, str, tuple[str, ...], str]] = [
    (
        "SNP is not offered",
        '[guests]\ntechnologies = ["sev-es"]\n',
        ("--simulate=genoa",),
        "SEV-SNP is not offered here",
    ),
    ("no SNP", "", ("--simulate=rome",), "has no SEV-SNP"),
    ("no device", "", ("--device=/nonexistent/sev",), "there is no SEV platform here"),
]


@pytest.mark.parametrize(("more", "options", "drift"), [one[1:] for one in WITHOUT], ids=[one[0] for one in WITHOUT])
def test_where_it_cannot_be_it_is_drift_and_the_daemon_runs(
    tmp_path: Path, more: str, options: tuple[str, ...], drift: str
) -> None:
    with daemon(tmp_path, f'[platform]\nreported_tcb = "committed"\n{more}', *options) as (it, host):
        found = wanted(host, lambda one: bool(one.drift) and "not looked" not in one.drift[0])
        assert drift in found.drift[0]
        assert records(it) == []
        assert it.process.poll() is None


def test_a_simulator_that_comes_back_is_configured_again(tmp_path: Path) -> None:
    config = '[platform]\nreported_tcb = "snp=23"\n'
    folder = tmp_path / "simulator"
    with device_files(folder) as files:
        run = daemon(tmp_path / "daemon", config, f"--simulator={files.devices}")
        it, host = run.__enter__()
    try:
        wanted(host, lambda one: bool(one.drift))
        with pytest.raises(SevError):
            host.snp_status()
        with device_files(folder):
            found = wanted(host, lambda one: not one.drift)
            assert found.actual_reported_tcb is not None
            assert found.actual_reported_tcb.snp == 23
            assert host.snp_status().reported_tcb.snp == 23
            assert it.process.poll() is None
    finally:
        run.__exit__(None, None, None)
