"""Callers from other machines at the service in a booted system: a port that systemd passes to a unit without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sev
from sev import errors
from sev.client import Host
from tests.support.authority import Authority, Issued, key_pem, place
from tests.support.booted import Booted
from tests.support.booted_service import SIMULATED, active, configure, crash, outside, wait_for
from tests.support.remote_daemon import TRUST, free_port
from tests.support.tls import Setup

REMOTE = """
[remote]
certificate = "/etc/sevd/server.pem"
client_ca = "/etc/sevd/clients.pem"
crl = "/etc/sevd/crl.pem"
"""
IDENTITY = f"""
[[identity]]
match = "uri:{TRUST}scheduler"
role = "launcher"
"""


class Elsewhere:
    """A caller on another machine, as far as the service can tell."""

    def __init__(self, system: Booted, folder: Path) -> None:
        self.system = system
        self.folder = folder
        self.setup = Setup(folder)
        self.port = free_port()

    def install(self) -> None:
        """The listener's files, the key as a credential, and the port."""
        files = self.setup.files
        configure(self.system, SIMULATED + REMOTE + IDENTITY)
        for path in (files.certificate, files.client_ca, files.crl):
            assert path is not None
            self.put(path.name, path.read_bytes())
        store = outside(self.system, "/etc/credstore")
        store.mkdir(exist_ok=True)
        place(store / "sevd-tls.key", files.key.read_bytes())
        address = f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{self.port}\n"
        self.system.write("/etc/systemd/system/sevd-mtls.socket.d/test.conf", address)
        self.system.run("systemctl", "daemon-reload")

    def remove(self) -> None:
        self.system.run("systemctl", "stop", "sevd-mtls.socket", "sevd.service", check=False)
        self.system.run("rm", "-r", "/etc/systemd/system/sevd-mtls.socket.d", "/etc/credstore/sevd-tls.key")
        self.system.run("systemctl", "daemon-reload")

    def put(self, name: str, data: bytes) -> None:
        place(outside(self.system, "/etc/sevd") / name, data, 0o644)

    def client(self, name: str, authority: Authority | None = None) -> Issued:
        return (authority or self.setup.clients).issue(name, uris=[TRUST + name])

    def connect(self, one: Issued) -> Host:
        certificate = place(self.folder / "client.pem", one.pem)
        key = place(self.folder / "client.key", key_pem(one.key))
        return sev.connect(
            f"dns:localhost:{self.port}",
            timeout=20,
            tls_cert=str(certificate),
            tls_key=str(key),
            tls_ca=str(self.folder / "servers.pem"),
        )

    def records(self) -> list[dict[str, Any]]:
        lines = outside(self.system, "/var/lib/sevd/audit.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def test_a_port_is_served_by_a_unit_without_a_network(system: Booted, tmp_path: Path) -> None:
    elsewhere = Elsewhere(system, tmp_path)
    elsewhere.install()
    try:
        system.run("systemctl", "start", "sevd-mtls.socket")
        with elsewhere.connect(elsewhere.client("scheduler")) as host:
            assert host.host().product == "genoa"  # the service was started by this call
            assert active(system)
            crash(system)
            assert host.host().product == "genoa"
        stranger = elsewhere.client("stranger")
        with (
            elsewhere.connect(stranger) as host,
            pytest.raises(errors.NotPermitted, match="no name in this certificate"),
        ):
            host.host()
        serial = f"{stranger.certificate.serial_number:x}"
        found = [one for one in elsewhere.records() if one.get("caller", {}).get("serial") == serial]
        assert {(one["socket"], one["result"], one["reason"]) for one in found} == {
            ("mtls", "refused", "IDENTITY_NOT_ALLOWED")
        }
        # Another authority, without a restart: read though the unit sees the file system read-only.
        new = Authority("new")
        elsewhere.put("crl.pem", elsewhere.setup.clients.crl() + new.crl())
        elsewhere.put("clients.pem", elsewhere.setup.clients.pem + new.pem)
        with elsewhere.connect(elsewhere.client("scheduler", new)) as host:
            assert host.host().product == "genoa"
        system.run("systemctl", "reload", "sevd.service")
        with elsewhere.connect(elsewhere.client("scheduler")) as host:
            assert host.host().product == "genoa"
    finally:
        elsewhere.remove()


def test_a_port_without_anybody_who_is_allowed_is_a_wrong_configuration(as_root: Booted, tmp_path: Path) -> None:
    elsewhere = Elsewhere(as_root, tmp_path)
    elsewhere.install()
    configure(as_root, SIMULATED + REMOTE)
    try:
        as_root.run("systemctl", "start", "sevd-mtls.socket")
        as_root.run("systemctl", "start", "sevd.service", check=False)
        wait_for(lambda: as_root.show("sevd.service", "ActiveState") == "failed", "it gives up")
        assert as_root.show("sevd.service", "ExecMainStatus") == "2"
        assert "none is allowed" in as_root.log()
    finally:
        elsewhere.remove()
