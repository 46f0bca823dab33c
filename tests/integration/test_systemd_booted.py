"""The service under a systemd that was booted for it: sockets, users, restarts, crashes, watchdog, and what the unit may do."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from tests.support.booted import Booted
from tests.support.booted_service import (
    SIMULATED,
    UNITS,
    active,
    calling,
    configure,
    crash,
    main_pid,
    outcome,
    wait_for,
)

# --- sockets and users ----------------------------------------------------------------------------------------------


def test_units_are_right_in_systemds_eyes(system: Booted) -> None:
    services = "sevd.service", "sevd-device.service", "sevd-fetch.service"
    done = system.run("systemd-analyze", "verify", *services, *UNITS, "sevd-mtls.socket", "sevd-metrics.socket")
    about_ours = [line for line in (done.stdout + done.stderr).splitlines() if "sevd" in line]
    assert about_ours == []


def test_the_first_call_starts_the_daemon_and_status_says_how_it_is(system: Booted) -> None:
    assert not active(system)
    shown = json.loads(system.run("sev", "--json", "host", "show", user="member").stdout)
    assert shown
    assert active(system)
    said = system.run("systemctl", "status", "--no-pager", "sevd.service").stdout
    assert re.search(r'Status: "SIMULATED genoa, firmware [\d.]+, 0 guests"', said), said
    # the sockets are the same and still root's, whoever the daemon is
    assert system.run("stat", "--format=%U %G", "/run/sevd/sevd.sock").stdout == "root sev\n"
    refused = system.run("sev", "host", "show", user="other", check=False)
    assert refused.returncode == 7, refused.stderr


def test_the_audit_knows_the_units_of_callers(as_root: Booted) -> None:
    as_root.run("systemd-run", "--unit=caller", "--property=Type=oneshot", "sev", "--yes", "snp", "commit")
    records = [
        json.loads(line) for line in Path(f"/proc/{as_root.pid}/root/var/lib/sevd/audit.jsonl").read_text().splitlines()
    ]
    assert [(one["method"], one["caller"]["unit"]) for one in records] == [
        ("SnpPlatformService/CommitSnp", "caller.service")
    ]


# --- restarts -------------------------------------------------------------------------------------------------------


def test_a_client_loses_no_call_through_restarts_crashes_and_a_reload(system: Booted) -> None:
    with calling(system, 5) as client:
        for _ in range(2):
            before = main_pid(system)
            system.run("systemctl", "restart", "sevd.service")
            assert main_pid(system) != before
            crash(system)
            system.run("systemctl", "reload", "sevd.service")
        calls, longest = outcome(client)
    print(f"{calls} calls, longest {longest:.3f} s")
    assert calls > 10
    assert longest < 5


def test_crash_after_crash_does_not_wear_the_service_out(as_root: Booted) -> None:
    as_root.run("systemctl", "start", "sevd.service")
    assert as_root.show("sevd.service", "NRestarts") == "0"
    for _ in range(6):
        crash(as_root)
    assert as_root.show("sevd.service", "NRestarts") == "6"
    assert all(as_root.show(unit, "ActiveState") == "active" for unit in UNITS)


def test_a_wrong_configuration_is_final_and_said(as_root: Booted) -> None:
    configure(as_root, "[daemon]\nno_such_setting = 1\n")
    assert as_root.run("systemctl", "start", "sevd.service", check=False).returncode != 0
    assert as_root.show("sevd.service", "ExecMainStatus") == "2"
    assert as_root.show("sevd.service", "NRestarts") == "0"
    assert "there is no setting daemon.no_such_setting" in as_root.log()
    configure(as_root, SIMULATED)
    as_root.run("systemctl", "restart", "sevd.socket", "sevd.service")
    as_root.run("sev", "host", "show", user="member")


def test_a_reload_with_an_error_changes_nothing_and_status_says_so(as_root: Booted) -> None:
    as_root.write("/etc/systemd/system/sevd.service.d/often.conf", "[Service]\nWatchdogSec=2\n")
    as_root.run("systemctl", "daemon-reload")
    as_root.run("systemctl", "start", "sevd.service")
    before = main_pid(as_root)
    configure(as_root, SIMULATED + '[access]\nlauncher_groups = ["no-such-group"]\n')
    as_root.run("systemctl", "reload", "sevd.service")
    wait_for(lambda: "not reloaded" in as_root.show("sevd.service", "StatusText"), "the status line says it")
    time.sleep(1.2)  # and goes on saying it, when it is renewed
    assert re.search(
        "SIMULATED.*; configuration not reloaded: .*no-such-group", as_root.show("sevd.service", "StatusText")
    )
    as_root.run("sev", "host", "show", user="member")
    configure(as_root, SIMULATED + "[access]\nlauncher_groups = []\n")
    as_root.run("systemctl", "reload", "sevd.service")
    wait_for(lambda: "not reloaded" not in as_root.show("sevd.service", "StatusText"), "the good one was taken")
    assert as_root.run("sev", "host", "show", user="member", check=False).returncode == 7
    configure(as_root, SIMULATED + "[daemon]\ndrain_seconds = 3\n")
    as_root.run("systemctl", "reload", "sevd.service")
    wait_for(lambda: "take a restart: daemon.drain_seconds" in as_root.show("sevd.service", "StatusText"), "it is said")
    assert main_pid(as_root) == before
    as_root.run("rm", "/etc/systemd/system/sevd.service.d/often.conf")


def test_a_device_that_appears_has_the_daemon_started_anew(as_root: Booted) -> None:
    as_root.run("systemctl", "start", "sevd-device.service")
    assert not active(as_root), "one that does not run is left alone"
    as_root.run("systemctl", "start", "sevd.service")
    before = main_pid(as_root)
    as_root.run("systemctl", "start", "sevd-device.service")
    wait_for(lambda: main_pid(as_root) not in (before, "0") and active(as_root), "the daemon was started anew")
