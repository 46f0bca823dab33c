"""The service in a booted system while a firmware command hangs, or takes its time."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.booted import Booted
from tests.support.booted_service import (
    PYTHON,
    active,
    crash,
    fault,
    faults_that_happened,
    main_pid,
    simulator,
    wait_for,
)
from tests.support.needs import need_fuse

FAST = "/etc/systemd/system/sevd.service.d/fast.conf"


@pytest.fixture
def host(as_root: Booted) -> Iterator[Booted]:
    """The service on a simulated host that another process serves; it has answered."""
    need_fuse()
    simulator(as_root)
    try:
        as_root.run("sev", "snp", "status")
        yield as_root
    finally:
        fault(as_root, "clear")
        as_root.run("rm", "--force", FAST)
        as_root.run("systemctl", "stop", "sevd.service", "simulator.service", check=False)


def calling(host: Booted, *words: str) -> subprocess.Popen[str]:
    """A `sev` of the system that runs meanwhile."""
    return subprocess.Popen(
        ["nsenter", f"--target={host.pid}", "--mount", "--pid", "--", "/usr/local/bin/sev", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def test_the_watchdog_sees_a_firmware_command_that_hangs(host: Booted) -> None:
    host.write(FAST, "[Service]\nWatchdogSec=2\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "sevd.service")
    first = main_pid(host)
    fault(host, "*:hang")
    begin = time.monotonic()
    with calling(host, "--timeout=60", "snp", "status") as caller:
        try:
            # what needs no firmware is answered meanwhile
            host.run("sev", "host", "show")
            host.run("sev", "guest", "list")
            wait_for(lambda: not active(host), "the watchdog strikes")
            print(f"the watchdog struck after {time.monotonic() - begin:.1f} s")
            assert "has made no progress" in host.log()
            fault(host, "clear")  # a process cannot go before its system call returns
            wait_for(lambda: active(host), "and the daemon comes back")
            assert main_pid(host) != first
            assert "Watchdog timeout" in host.log()
            assert caller.wait(60) == 0, "who waited is answered, by the next daemon"
        finally:
            caller.kill()


def test_while_a_launch_hangs_the_next_daemon_serves_everything_else(host: Booted) -> None:
    """The command that hangs is a worker's, which outlives the daemon that the watchdog kills."""
    make = "from sev.measurement.sample import sample_firmware; open('/image', 'wb').write(sample_firmware())"
    host.run(PYTHON, "-c", make)
    launch = "--yes", "--timeout=60", "--json", "guest", "launch", "--firmware", "/image", "--memory", "16MiB"
    good = json.loads(host.run("sev", *launch).stdout)["guest_id"]
    host.write(FAST, "[Service]\nWatchdogSec=20\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "sevd.service")
    fault(host, "SNP_LAUNCH_UPDATE:hang")
    with calling(host, *launch) as caller:
        try:
            wait_for(lambda: faults_that_happened(host) == 1, "the command is with the firmware")
            crash(host)
            assert "the firmware does not answer" in host.show("sevd.service", "StatusText")
            begin = time.monotonic()
            listed = host.run("sev", "--json", "guest", "list").stdout
            shown = json.loads(host.run("sev", "--json", "host", "show").stdout)
            print(f"served after {time.monotonic() - begin:.1f} s")
            assert good in listed
            assert "does not answer" in json.dumps(shown)
            fault(host, "clear")
            wait_for(lambda: "does not answer" not in host.run("sev", "host", "show").stdout, "it answers again")
            host.run("sev", "snp", "status")
            caller.wait(60)
        finally:
            fault(host, "clear")
            caller.kill()
    assert "its guest is taken over when it answers" in host.log()
    for one in json.loads(host.run("sev", "--json", "guest", "list").stdout)["guests"]:
        host.run("sev", "--yes", "guest", "delete", one["guest_id"])


def test_a_stop_finishes_the_command_in_flight_and_says_what_it_waits_for(host: Booted) -> None:
    fault(host, "SNP_COMMIT:delay=5")
    first = main_pid(host)
    with calling(host, "--yes", "--timeout=60", "snp", "commit") as caller:
        try:
            wait_for(lambda: faults_that_happened(host) == 1, "the command is with the firmware")
            begin = time.monotonic()
            host.run("systemctl", "--no-block", "restart", "sevd.service")
            wait_for(lambda: "waiting for" in host.show("sevd.service", "StatusText"), "the status line says it")
            said = host.show("sevd.service", "StatusText")
            assert "1 call" in said
            assert "firmware command" in said
            with calling(host, "--timeout=60", "--yes", "snp", "commit") as second:
                assert caller.wait(60) == 0, "the call in flight is answered"
                assert second.wait(60) == 0, "a new one by the next daemon"
            assert time.monotonic() - begin > 2, "it was waited for"
        finally:
            caller.kill()
    assert main_pid(host) != first
    assert "stopping, waiting for 1 call" in host.log()
    assert host.show("sevd.service", "Result") == "success"


@pytest.mark.long
def test_a_command_that_outlasts_the_calls_time_is_finished_too(host: Booted) -> None:
    """The manager's own patience is extended as long as there is something to wait for."""
    host.write("/etc/sevd/sevd.toml", '[simulation]\ndirectory = "/run/simulated"\n[daemon]\ndrain_seconds = 0\n')
    host.write(FAST, "[Service]\nTimeoutStopSec=1\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", "sevd.service")
    fault(host, "SNP_COMMIT:delay=5")
    with calling(host, "--yes", "--timeout=60", "snp", "commit") as caller:
        try:
            wait_for(lambda: faults_that_happened(host) == 1, "the command is with the firmware")
            host.run("systemctl", "stop", "sevd.service")
            assert host.show("sevd.service", "Result") == "success", "it was not killed"
            assert caller.wait(60) == 0
        finally:
            caller.kill()
