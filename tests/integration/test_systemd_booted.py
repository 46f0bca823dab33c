"""The service under a systemd that was booted for it: sockets, users, restarts, crashes, watchdog, and what the unit may do."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.booted import PREFIX, Booted
from tests.support.booted_service import (
    PLAIN,
    PYTHON,
    SIMULATED,
    SOCKETS,
    UNITS,
    active,
    calling,
    configure,
    crash,
    fault,
    holds_a_vm,
    main_pid,
    outcome,
    prepared,
    simulator,
    wait_for,
    workers,
)
from tests.support.needs import need_fuse, need_kvm

USERS = "u member -\nu other -\nm member sev\n"

CONNECT = """
import json, socket
found = {}
for name in ("sevd", "monitor", "admin", "fd"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if name == "fd" else socket.SOCK_STREAM) as one:
        try:
            one.connect(f"/run/sevd/{name}.sock")
            found[name] = True
        except PermissionError:
            found[name] = False
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A system with the service installed as docs/install.md says, and two users."""
    made = Booted(tmp_path_factory.mktemp("systemd"))
    try:
        made.write("/etc/sysusers.d/test.conf", USERS)
        made.run("sevd", "--install-units", "--plain-user")
        made.run("systemd-sysusers")
        made.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/sevd.conf")
        yield made
    finally:
        made.close()


@pytest.fixture(params=["root", "plain-user"])
def system(booted: Booted, request: pytest.FixtureRequest) -> Iterator[Booted]:
    """The system with the service new and stopped, as root or as a user of its own; its sockets wait."""
    yield from prepared(booted, plain_user=request.param == "plain-user")


@pytest.fixture
def as_root(booted: Booted) -> Iterator[Booted]:
    """The same, as root."""
    yield from prepared(booted, plain_user=False)


# --- sockets and users ----------------------------------------------------------------------------------------------


def test_units_are_right_in_systemds_eyes(system: Booted) -> None:
    services = "sevd.service", "sevd-device.service", "sevd-fetch.service"
    done = system.run("systemd-analyze", "verify", *services, *UNITS, "sevd-mtls.socket", "sevd-metrics.socket")
    about_ours = [line for line in (done.stdout + done.stderr).splitlines() if "sevd" in line]
    assert about_ours == []


def test_each_user_reaches_the_sockets_that_are_meant_for_it(system: Booted) -> None:
    found = {
        user: json.loads(system.run(PYTHON, "-c", CONNECT, user=user).stdout) for user in ("root", "member", "other")
    }
    assert found == {
        "root": dict.fromkeys(SOCKETS, True),
        "member": {**dict.fromkeys(SOCKETS, True), "admin": False},
        "other": dict.fromkeys(SOCKETS, False),
    }
    modes = system.run("stat", "--format=%n %a %U %G", *(f"/run/sevd/{name}.sock" for name in SOCKETS), "/run/sevd")
    assert modes.stdout.splitlines() == [
        "/run/sevd/sevd.sock 660 root sev",
        "/run/sevd/monitor.sock 660 root sev",
        "/run/sevd/admin.sock 600 root root",
        "/run/sevd/fd.sock 660 root sev",
        "/run/sevd 755 root root",
    ]


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
    assert calls > 50
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
    as_root.run("systemctl", "start", "sevd.service")
    before = main_pid(as_root)
    configure(as_root, SIMULATED + '[access]\nlauncher_groups = ["no-such-group"]\n')
    as_root.run("systemctl", "reload", "sevd.service")
    wait_for(lambda: "not reloaded" in as_root.show("sevd.service", "StatusText"), "the status line says it")
    as_root.run("sev", "host", "show", user="member")
    configure(as_root, SIMULATED + "[access]\nlauncher_groups = []\n")
    as_root.run("systemctl", "reload", "sevd.service")
    wait_for(lambda: "SIMULATED" in as_root.show("sevd.service", "StatusText"), "the good one was taken")
    assert as_root.run("sev", "host", "show", user="member", check=False).returncode == 7
    assert main_pid(as_root) == before


def test_a_device_that_appears_has_the_daemon_started_anew(as_root: Booted) -> None:
    as_root.run("systemctl", "start", "sevd-device.service")
    assert not active(as_root), "one that does not run is left alone"
    as_root.run("systemctl", "start", "sevd.service")
    before = main_pid(as_root)
    as_root.run("systemctl", "start", "sevd-device.service")
    wait_for(lambda: main_pid(as_root) not in (before, "0") and active(as_root), "the daemon was started anew")


# --- workers --------------------------------------------------------------------------------------------------------


def test_a_guest_outlives_restarts_and_crashes_of_the_service(system: Booted) -> None:
    need_kvm()
    configure(system, PLAIN)
    system.write("/image", "\xf4" * 4096)
    launch = ("sev", "--json", "guest", "launch", "--type", "plain", "--firmware", "/image", "--memory", "8MiB")
    guest = json.loads(system.run(*launch, user="member").stdout)["guest_id"]
    guests = "sev", "--json", "guest", "list"
    before = system.run(*guests, user="member").stdout
    assert guest in before
    (worker,) = [one for one in workers(system) if holds_a_vm(system, one)]
    system.run("systemctl", "restart", "sevd.service")
    assert system.run(*guests, user="member").stdout == before
    crash(system)
    assert system.run(*guests, user="member").stdout == before
    assert [one for one in workers(system) if holds_a_vm(system, one)] == [worker]
    # it is locked down on top of the unit
    status = system.run("cat", f"/proc/{worker}/status").stdout
    assert re.search(r"^CapBnd:\t0{16}$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    system.run("sev", "--yes", "guest", "delete", guest, user="member")
    assert worker not in workers(system)
    system.run("systemctl", "stop", "sevd.service", *UNITS)
    assert workers(system) == set()


def test_snp_guests_of_a_simulator_launch_under_the_unit(as_root: Booted) -> None:
    need_fuse()
    simulator(as_root)
    try:
        as_root.run(
            PYTHON,
            "-c",
            "from sev.measurement.sample import sample_firmware; open('/image', 'wb').write(sample_firmware())",
        )
        launch = ("sev", "--json", "guest", "launch", "--firmware", "/image", "--memory", "16MiB")
        guest = json.loads(as_root.run(*launch, user="member").stdout)["guest_id"]
        as_root.run("systemctl", "restart", "sevd.service")
        shown = json.loads(as_root.run("sev", "--json", "guest", "show", guest, user="member").stdout)
        assert "ready" in json.dumps(shown).lower()
        as_root.run("sev", "--yes", "guest", "delete", guest, user="member")
    finally:
        as_root.run("systemctl", "stop", "sevd.service", "simulator.service", check=False)


def test_the_watchdog_sees_a_firmware_command_that_hangs(as_root: Booted) -> None:
    need_fuse()
    simulator(as_root)
    as_root.write("/etc/systemd/system/sevd.service.d/fast.conf", "[Service]\nWatchdogSec=2\n")
    caller: subprocess.Popen[bytes] | None = None
    try:
        as_root.run("systemctl", "daemon-reload")
        as_root.run("sev", "snp", "status")
        fault(as_root, "*:hang")
        caller = subprocess.Popen(
            ["nsenter", f"--target={as_root.pid}", "--mount", "--pid", "--", "/usr/local/bin/sev", "snp", "status"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: not active(as_root), "the watchdog strikes")
        assert "has made no progress" in as_root.log()
        fault(as_root, "clear")  # a process cannot go before its system call returns
        wait_for(lambda: active(as_root), "and the daemon comes back")
        assert "Watchdog timeout" in as_root.log()
        as_root.run("sev", "snp", "status")
    finally:
        if caller is not None:
            caller.kill()
            caller.wait()
        as_root.run("rm", "/etc/systemd/system/sevd.service.d/fast.conf")
        as_root.run("systemctl", "stop", "sevd.service", "simulator.service", check=False)


# --- what the unit may do -------------------------------------------------------------------------------------------

_LEFT_OUT = ("Type", "NotifyAccess", "ExecReload", "Sockets", "Restart", "RestartSec", "WatchdogSec", "ExecStart",
             "RestartPreventExitStatus", "Requires", "Wants", "Also", "WantedBy")  # fmt: skip


def test_every_directive_holds_from_inside(system: Booted) -> None:
    table = ["/run/sevd/table/x"] if system.show("sevd.service", "User") else ["/run/sevd/x"]
    unit = system.run("systemctl", "cat", "sevd.service").stdout
    lines = [line for line in unit.splitlines() if line.partition("=")[0] not in _LEFT_OUT]
    start = f"Type=oneshot\nExecStart={PYTHON} {PREFIX}/src/tests/support/unit_probe.py {' '.join(table)}"
    text = "\n".join(lines).replace("[Service]", f"[Service]\n{start}", 1)
    system.write("/etc/systemd/system/probe.service", text)
    system.run("systemctl", "daemon-reload")
    system.run("systemctl", "start", "probe.service")
    (line,) = re.findall(r"^PROBE (.*)$", system.log("probe.service"), re.MULTILINE)[-1:]
    found: dict[str, object] = json.loads(line)
    denied = {key: value for key, value in found.items() if key.startswith("call ")}
    assert set(denied.values()) == {"EPERM"}, denied
    for name, wanted in {
        "status CapEff": "0" * 16,
        "status CapPrm": "0" * 16,
        "status CapBnd": "0" * 16,
        "status NoNewPrivs": "1",
        "status Seccomp": "2",
        **dict.fromkeys(("write /usr/x", "write /etc/x", "write /etc/sevd/x", "write /var/x"), "EROFS"),
        **{f"write {path}": "done" for path in ("/var/lib/sevd/x", "/tmp/x", *table)},
        "open /dev/null": "done",
        "open /dev/kvm": "done" if os.path.exists("/dev/kvm") else "ENOENT",
        **dict.fromkeys(("open /dev/fuse", "open /dev/kmsg", "open /dev/mem"), "ENOENT"),
        "socket AF_UNIX": "done",
        **{f"socket AF_{one}": "EAFNOSUPPORT" for one in ("INET", "INET6", "NETLINK", "PACKET", "VSOCK")},
        **dict.fromkeys(("write and execute", "set-user-id"), "EPERM"),
        **dict.fromkeys(("program in state", "program in tmp"), "EACCES"),
        **dict.fromkeys(("program of the system", "memfd", "pidfd"), "done"),
        "core": 0,
        **dict.fromkeys(("boot", "processor", "manager"), True),
    }.items():
        assert found[name] == wanted, name
    for path in ("/run/x", "/run/systemd/x", "/home/x", "/root/x", "/sys/x", "/proc/sys/kernel/hostname"):
        assert found[f"write {path}"] in ("EROFS", "EACCES", "ENOENT", "EPERM"), path


def test_limits_are_what_the_unit_asks_for(as_root: Booted) -> None:
    as_root.run("systemctl", "start", "sevd.service")
    assert as_root.show("sevd.service", "LimitMEMLOCK") == "infinity"
    limits = as_root.run("cat", f"/proc/{main_pid(as_root)}/limits").stdout
    found = {line[:25].strip(): line[25:].split()[1] for line in limits.splitlines()[1:]}
    assert found["Max core file size"] == "0"
    with open("/proc/self/status", encoding="ascii") as file:
        capabilities = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    if capabilities >> 24 & 1:  # CAP_SYS_RESOURCE, without which systemd itself cannot raise a limit
        assert found["Max locked memory"] == "unlimited"
        assert found["Max open files"] == "20480"
