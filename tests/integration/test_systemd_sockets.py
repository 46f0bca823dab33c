"""The service's sockets in a booted system: who reaches which, what is passed to whom, and which are there only on wish."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest

from tests.support.booted import Booted
from tests.support.booted_service import PYTHON, SIMULATED, SOCKETS, UNITS, active, configure, crash, outside, wait_for

ALL = (*SOCKETS, "fetch")

CONNECT = """
import json, socket
found = {}
for name in ("sevd", "monitor", "admin", "fd", "fetch"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if name in ("fd", "fetch") else socket.SOCK_STREAM) as one:
        try:
            one.connect(f"/run/sevd/{name}.sock")
            found[name] = True
        except PermissionError:
            found[name] = False
print(json.dumps(found))
"""

ASK = """
import json, socket, sys
from sev import packets
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
    one.connect("/run/sevd/fetch.sock")
    packets.send(one, json.loads(sys.argv[1]))
    one.settimeout(20)
    print(json.dumps(packets.receive(one)[0]))
"""

EARLY = """
import socket, time
with socket.socket(socket.AF_UNIX) as early:
    begin = time.monotonic()
    early.connect("/run/sevd/sevd.sock")
    early.settimeout(20)
    early.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes.fromhex("000000040000000000"))
    assert early.recv(9)[3:4] == b"\\x04", "the settings of HTTP/2 come first"
print(time.monotonic() - begin)
"""


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def listen_at(system: Booted, unit: str, address: str) -> None:
    """Has a socket unit listen elsewhere: the booted system has this machine's network."""
    system.write(f"/etc/systemd/system/{unit}.d/test.conf", f"[Socket]\nListenStream=\nListenStream={address}\n")
    system.run("systemctl", "daemon-reload")


def test_each_user_reaches_the_sockets_that_are_meant_for_it(system: Booted) -> None:
    plain = bool(system.show("sevd.service", "User"))
    found = {
        user: json.loads(system.run(PYTHON, "-c", CONNECT, user=user).stdout) for user in ("root", "member", "other")
    }
    assert found == {
        "root": dict.fromkeys(ALL, True),
        "member": {**dict.fromkeys(ALL, True), "admin": False, "fetch": False},
        "other": dict.fromkeys(ALL, False),
    }
    modes = system.run("stat", "--format=%n %a %U %G", *(f"/run/sevd/{name}.sock" for name in ALL), "/run/sevd")
    assert modes.stdout.splitlines() == [
        "/run/sevd/sevd.sock 660 root sev",
        "/run/sevd/monitor.sock 660 root sev",
        "/run/sevd/admin.sock 600 root root",
        "/run/sevd/fd.sock 660 root sev",
        f"/run/sevd/fetch.sock 600 {'sevd' if plain else 'root'} root",
        "/run/sevd 755 root root",
    ]


def test_every_call_is_served_by_the_socket_of_its_name(as_root: Booted) -> None:
    """The order in which descriptors are passed means nothing: roles are those of the names, after each start."""
    for _ in range(2):
        for name, wanted in (("sevd", 0), ("monitor", 7), ("admin", 0)):
            done = as_root.run("sev", "--yes", "--socket", f"/run/sevd/{name}.sock", "snp", "commit", check=False)
            assert done.returncode == wanted, (name, done.stderr)
        crash(as_root)


def test_fetching_is_done_by_a_process_that_has_the_network_and_nothing_else(as_root: Booted) -> None:
    configure(as_root, SIMULATED + '[endorsements]\nkds = "https://127.0.0.1:9/"\n')
    question = {"url": "https://127.0.0.1:9/vcek/v1/Milan/cert_chain", "limit": 65536, "seconds": 5, "headers": {}}
    told = json.loads(as_root.run(PYTHON, "-c", ASK, json.dumps(question)).stdout)
    assert "failed" in told or "error" in told, told
    assert as_root.show("sevd-fetch.service", "ActiveState") == "active"
    pid = as_root.show("sevd-fetch.service", "MainPID")
    status = as_root.run("cat", f"/proc/{pid}/status").stdout
    ids = next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
    assert set(ids) != {"0"}
    assert len(set(ids)) == 1
    assert "CapBnd:\t" + "0" * 16 in status
    assert "Seccomp:\t2" in status
    inside = ["nsenter", f"--target={pid}", "--mount", "--"]
    assert as_root.run(*inside, "ls", "/var/lib/sevd/simulator", check=False).returncode != 0
    assert not active(as_root), "the daemon itself was not needed"
    as_root.run("systemctl", "stop", "sevd-fetch.service")


def test_a_fetching_process_that_nobody_asks_ends_and_is_started_for_the_next(as_root: Booted) -> None:
    command = as_root.show("sevd-fetch.service", "ExecStart").partition("path=")[2].split()[0]
    text = f"[Service]\nExecStart=\nExecStart={command} --idle=1 --kds=https://127.0.0.1:9\n"
    as_root.write("/etc/systemd/system/sevd-fetch.service.d/idle.conf", text)
    as_root.run("systemctl", "daemon-reload")
    try:
        for _ in range(2):
            as_root.run(PYTHON, "-c", ASK, json.dumps({"url": "https://127.0.0.1:9/", "limit": 1, "seconds": 1}))
            wait_for(lambda: as_root.show("sevd-fetch.service", "ActiveState") == "inactive", "it ends by itself")
            assert as_root.show("sevd-fetch.service", "Result") == "success"
            assert as_root.show("sevd-fetch.socket", "ActiveState") == "active"
    finally:
        as_root.run("rm", "-r", "/etc/systemd/system/sevd-fetch.service.d")
        as_root.run("systemctl", "daemon-reload")


def test_ports_are_closed_until_the_administrator_opens_them(as_root: Booted) -> None:
    as_root.run("systemctl", "start", "sevd.service")
    for unit in ("sevd-mtls.socket", "sevd-metrics.socket"):
        assert as_root.show(unit, "ActiveState") == "inactive"
        assert as_root.run("systemctl", "is-enabled", unit, check=False).stdout.strip() == "disabled"


def test_metrics_are_read_on_a_port_though_the_service_has_no_network(as_root: Booted) -> None:
    pytest.importorskip("prometheus_client")
    port = free_port()
    listen_at(as_root, "sevd-metrics.socket", f"127.0.0.1:{port}")
    try:
        as_root.run("systemctl", "start", "sevd.service")
        # a socket of a service that runs cannot be started: enabled, it is with the service's next start
        assert as_root.run("systemctl", "start", "sevd-metrics.socket", check=False).returncode != 0
        as_root.run("systemctl", "enable", "sevd-metrics.socket")
        as_root.run("systemctl", "restart", "sevd.service")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"\nsevd_" in answer.read()
        crash(as_root)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.status == 200
    finally:
        as_root.run("systemctl", "disable", "sevd-metrics.socket")
        as_root.run("systemctl", "stop", "sevd.service", "sevd-metrics.socket")
        as_root.run("rm", "-r", "/etc/systemd/system/sevd-metrics.socket.d")


def test_a_caller_who_comes_while_the_service_is_down_is_served_when_it_is_up(as_root: Booted) -> None:
    took = float(as_root.run(PYTHON, "-c", EARLY, user="member").stdout)
    assert active(as_root)
    print(f"served after {took:.3f} s")


def test_what_was_installed_is_taken_away_again(booted: Booted, as_root: Booted) -> None:
    as_root.run("systemctl", "enable", "sevd.service")
    unit = outside(as_root, "/etc/systemd/system/sevd.service")
    links = [path.name for path in outside(as_root, "/etc/systemd/system/sockets.target.wants").iterdir()]
    assert sorted(links) == sorted(UNITS)
    as_root.run("systemctl", "start", "sevd.service")
    try:
        said = as_root.run("sevd", "--uninstall-units").stdout
        assert "systemctl stop" in said
        assert not unit.exists()
        assert list(outside(as_root, "/etc/systemd/system/sockets.target.wants").iterdir()) == []
        as_root.run("systemctl", "stop", "sevd.service", *UNITS)
        as_root.run("systemctl", "daemon-reload")
        assert as_root.show("sevd.service", "LoadState") == "not-found"
        assert outside(as_root, "/etc/sevd/sevd.toml").exists()
        assert outside(as_root, "/var/lib/sevd/audit.jsonl").exists()
    finally:
        booted.run("sevd", "--install-units", "--plain-user")
        booted.run("systemctl", "daemon-reload")
