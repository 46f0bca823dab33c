"""The daemon as a process that serves callers from other machines, and its configuration."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import sev
from sev.client import Host
from sevd.access.roles import Role
from tests.support.authority import HOUR, Issued
from tests.support.daemon import Daemon, running
from tests.support.tls import Setup

TRUST = "spiffe://example.org/"


def free_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class ClientOptions(TypedDict):
    """TLS options of a client in the library."""

    tls_cert: str
    tls_key: str
    tls_ca: str


class RemoteDaemon:
    """One daemon with a port.

    Attributes:
        folder: Where everything is.
        setup: The listener's files and their authorities.
        port: Where it listens.
        config: Its configuration file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.setup = Setup(folder / "tls")
        self.port = free_port()
        self.config = folder / "sevd.toml"
        self.daemon: Daemon | None = None
        self.configure()

    @property
    def target(self) -> str:
        return f"dns:localhost:{self.port}"

    @property
    def log(self) -> str:
        assert self.daemon is not None
        return self.daemon.log

    def configure(self, identities: Mapping[str, str] | None = None, **more: str) -> None:
        """Writes the configuration: roles by match, and settings of [remote] in place of the usual ones."""
        files = self.setup.files
        remote = {
            "listen": f"127.0.0.1:{self.port}",
            "certificate": str(files.certificate),
            "key": str(files.key),
            "client_ca": str(files.client_ca),
            "crl": str(files.crl),
            **more,
        }
        if identities is None:
            identities = {f"uri:{TRUST}{role.text}": role.text for role in Role}
        lines = ["[remote]", *(f'{key} = "{value}"' for key, value in remote.items() if value)]
        for match, role in identities.items():
            lines += ["[[identity]]", f'match = "{match}"', f'role = "{role}"']
        self.config.write_text("\n".join(lines) + "\n")

    @contextlib.contextmanager
    def running(self, chip: Path) -> Iterator[RemoteDaemon]:
        """Runs it on a simulated host."""
        with running(self.folder, "--simulate=genoa", "--config", str(self.config), chip=chip) as daemon:
            self.daemon = daemon
            yield self

    def reload(self) -> str:
        """SIGHUP; what the daemon logs about it."""
        assert self.daemon is not None
        before = len(self.log)
        os.kill(self.daemon.process.pid, signal.SIGHUP)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            said = self.log[before:]
            if "reloaded" in said:
                return said
            time.sleep(0.02)
        raise AssertionError("the daemon does not reload")

    def client(self, name: str, *, begins: float = -HOUR, ends: float = HOUR) -> Issued:
        """A certificate with the SPIFFE id of this name."""
        return self.setup.clients.issue(name, uris=[TRUST + name], begins=begins, ends=ends)

    def files(self, one: Issued, stem: str) -> ClientOptions:
        """Options of a client in the library."""
        certificate, key = one.write(self.folder / "clients", stem)
        return {"tls_cert": str(certificate), "tls_key": str(key), "tls_ca": str(self.folder / "tls/servers.pem")}

    def words(self, one: Issued, stem: str) -> tuple[str, ...]:
        """The same as options of the command."""
        files = self.files(one, stem)
        return (
            "--socket", self.target, "--tls-cert", files["tls_cert"], "--tls-key", files["tls_key"],
            "--tls-ca", files["tls_ca"],
        )  # fmt: skip

    def connect(self, one: Issued, stem: str, *, timeout: float = 10.0) -> Host:
        """A client."""
        return sev.connect(self.target, timeout=timeout, **self.files(one, stem))
