"""What a running daemon counts: by RPC, over HTTP, and in `sev top`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from sev.client import Host
from sev.errors import NotFound
from sev.guest_model import Guest
from sev.measurement.sample import sample_firmware
from sev.measurement.vcpu_types import signature
from tests.support.cli import sev
from tests.support.daemon import Daemon, chip, running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    """A daemon, and where its metrics are."""
    folder = tmp_path_factory.mktemp("metrics")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "sevd.toml"
    config.write_text(f'[metrics]\nlisten = "{address}"\n')
    made = chip("genoa", tmp_path_factory)
    with running(folder / "d", "--config", str(config), "--simulate=genoa", chip=made) as daemon:
        yield daemon, f"http://{address}/metrics"


def scraped(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {(one.name, frozenset(one.labels.items())): one.value for family in parse(text) for one in family.samples}


def empty_guest(host: Host, guest_id: str, label: str) -> Guest:
    return host.create_guest(
        memory_bytes=1 << 20,
        firmware_bytes=4096,
        vcpu_count=1,
        cpuid_signature=signature("EPYC-v4"),
        guest_id=guest_id,
        label=label,
    )


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_a_launch_and_a_commit_are_counted(served: tuple[Daemon, str]) -> None:
    daemon, url = served
    before = scraped(url)
    with daemon.connect() as host:
        guest = host.launch_snp(sample_firmware(), vcpus=1, vcpu_type="EPYC-v4").guest
        host.snp_commit(confirm=True)
        with pytest.raises(NotFound):
            host.guest("nobody-here")
        now = scraped(url)
        host.delete_guest(guest.guest_id, confirm=True)
    assert now[key("sevd_guests", type="snp", state="ready")] == 1
    assert now[key("sevd_asids", kind="sev_es", use="used")] == before[key("sevd_asids", kind="sev_es", use="used")] + 1
    assert now[key("sevd_calls_total", method="GuestService/FinishGuestLaunch", code="OK")] == 1
    assert now[key("sevd_calls_total", method="GuestService/GetGuest", code="NOT_FOUND")] == 1
    assert now[key("sevd_call_seconds_count", method="GuestService/FinishGuestLaunch")] == 1
    assert now[key("sevd_firmware_command_seconds_count", command="SNP_COMMIT", status="SUCCESS")] == 1
    for step in ("create", "start", "update", "finish"):
        assert now[key("sevd_device_step_seconds_count", step=step, result="done")] >= 1, step
    assert key("sevd_guests", type="snp", state="ready") not in scraped(url)


def test_a_refusal_of_the_firmware_is_counted_by_its_status(served: tuple[Daemon, str]) -> None:
    daemon, url = served
    done = sev("--socket", daemon.socket, "snp", "config", "set", "--microcode", 255)
    assert done.code == 6
    assert (
        scraped(url)[key("sevd_firmware_command_seconds_count", command="SNP_SET_CONFIG", status="INVALID_PARAM")] == 1
    )


def test_the_rpc_says_the_same(served: tuple[Daemon, str]) -> None:
    daemon, url = served
    with daemon.connect() as host:
        metrics = host.metrics()
    here = scraped(url)
    assert metrics.time is not None
    for name in ("sevd_start_time_seconds", "sevd_simulated"):
        assert metrics.value(name) == here[key(name)]
    assert metrics.value("sevd_tcb", tcb="reported", component="bootloader") == 10
    assert metrics.value("sevd_asids", kind="sev_es") == 99
    assert metrics.value("sevd_nothing") is None
    expiries = {one.labels["kind"] for one in metrics.samples("sevd_endorsement_expiry_seconds")}
    assert {"ark", "ask", "vcek", "crl"} <= expiries


def test_no_metric_names_a_caller_or_a_guest(served: tuple[Daemon, str]) -> None:
    daemon, url = served
    with daemon.connect() as host:
        guest = empty_guest(host, "a-telling-name", "a-telling-label")
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        host.delete_guest(guest.guest_id, confirm=True)
    for word in ("a-telling", "uid:", daemon.socket):
        assert word not in text


def test_top_draws_pictures(served: tuple[Daemon, str]) -> None:
    daemon, _ = served
    with daemon.connect() as host:
        guest = empty_guest(host, "shown-in-top", "")
        done = sev("--socket", daemon.socket, "top", "-n", 2, "--interval", 0.2)
        host.delete_guest(guest.guest_id, confirm=True)
    assert done.code == 0
    first, second = done.out.split("\n\nhost ")
    assert "Genoa (simulated), firmware" in first
    assert "a second" not in first  # one picture has no rate
    assert "calls" in second
    assert "a second" in second
    for picture in (first, second):
        assert "SEV-ES and SEV-SNP 1 of 99" in picture
        assert "shown-in-top" in picture


def test_top_for_scripts(served: tuple[Daemon, str]) -> None:
    daemon, _ = served
    done = sev("--socket", daemon.socket, "--json", "top", "-n", 2, "--interval", 0.1)
    pictures = [json.loads(line) for line in done.out.splitlines()]
    assert len(pictures) == 2
    for picture in pictures:
        assert picture["host"]["product"] == "genoa"
        assert picture["guests"] == []
        by_name = {one["name"]: one for one in picture["metrics"]}
        assert by_name["sevd_simulated"]["samples"] == [{"labels": {}, "value": 1.0}]
        histogram = by_name["sevd_device_wait_seconds"]["samples"][0]
        assert histogram["count"] >= histogram["buckets"][-1]["total"]


def test_spans_go_where_opentelemetry_is_told(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "sevd.toml"
    config.write_text("[tracing]\nenabled = true\n")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    made = chip("genoa", tmp_path_factory)
    options = ("--config", str(config), "--simulate=genoa")
    with running(tmp_path / "d", *options, chip=made) as daemon, daemon.connect() as host:
        host.snp_status()
    assert '"name": "SnpPlatformService/GetSnpStatus"' in daemon.log
    assert '"name": "device platform"' in daemon.log
    assert '"name": "HostService/GetHost"' in daemon.log


@pytest.mark.parametrize("words", [("--interval", "0"), ("--interval", "soon"), ("-n", "0"), ("-n", "-1"), ("x",)])
def test_bad_options_of_top(daemon: Daemon, words: tuple[str, ...]) -> None:
    assert sev("--socket", daemon.socket, "top", *words).code == 2


def test_an_address_for_everybody_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "sevd.toml"
    config.write_text('[metrics]\nlisten = "0.0.0.0:9463"\n')
    command = [
        sys.executable,
        "-m",
        "sevd",
        "--config",
        str(config),
        "--simulate=genoa",
        "--socket",
        str(tmp_path / "s"),
    ]
    done = subprocess.run(
        [*command, "--state-dir", str(tmp_path / "d")], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "loopback" in done.stderr
    assert not (tmp_path / "s").exists()
