"""A daemon that keeps its host's certificates current from a key distribution service: its own processes, over HTTPS."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sev.abi import cert_table
from tests.support.cli import Done, sev
from tests.support.daemon import Daemon, running
from tests.support.device_files import DeviceFiles, device_files
from tests.support.needs import need_root
from tests.unit.fetch.test_fetch_process import by_socket


class Site:
    """A simulated host with its service, and a daemon on it.

    Attributes:
        files: The simulator.
        daemon: The daemon.
        kds: The service's address.
    """

    def __init__(self, files: DeviceFiles, daemon: Daemon, kds: str) -> None:
        self.files = files
        self.daemon = daemon
        self.kds = kds

    def __call__(self, *words: object) -> Done:
        """`sev` on it."""
        return sev(*words, "--socket", self.daemon.socket)

    def shown(self) -> dict[str, Any]:
        """What is at hand, and how it is kept current."""
        found: dict[str, Any] = self("certs", "list", "--json").json()
        return found

    def items(self) -> list[dict[str, Any]]:
        """How it stands with each thing that is needed."""
        found: list[dict[str, Any]] = self.shown()["refresh"]["items"]
        return found

    def kinds(self) -> list[str]:
        """Kinds of what is at hand."""
        return [one["kind"] for one in self.shown()["endorsements"]]

    def table(self) -> dict[bytes, bytes]:
        """What guests would get."""
        return dict(cert_table.parse((self.daemon.folder / "state" / "certs.bin").read_bytes()))


def address(files: DeviceFiles) -> str:
    """Where a simulator's service answers."""
    found: str = json.loads((files.devices / "platform.json").read_text())["kds"]
    return found


@contextmanager
def site(folder: Path, *options: str, kds: str = "", settings: str = "", product: str = "genoa") -> Iterator[Site]:
    """A host whose service has these faults and options, with a daemon on it that asks it."""
    (folder / "host").mkdir(parents=True)
    with device_files(folder / "host", "--kds", "127.0.0.1:0", *options, product=product) as files:
        url = kds or address(files)
        config = folder / "sevd.toml"
        config.write_text(f"[endorsements]\nkds_retry_seconds = 1\n{settings}")
        arguments = ["--simulator", str(files.devices), "--kds", url, "--config", str(config)]
        with running(folder / "daemon", *arguments) as daemon:
            yield Site(files, daemon, url)


def eventually(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not in {seconds} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def genoa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("genoa")) as found:
        yield found


def test_everything_comes_by_itself(genoa: Site) -> None:
    eventually(lambda: genoa.kinds() == ["ark", "ask", "vcek", "crl"], "all is there")
    found = genoa.shown()
    assert found["missing"] == []
    assert {one["origin"] for one in found["endorsements"]} == {"kds"}
    assert all(one["fetched_at"] and one["expires_at"] for one in found["endorsements"])
    assert found["refresh"]["service"] == genoa.kds
    assert found["refresh"]["next_at"] is not None
    assert {item["what"]: item["message"] for item in found["refresh"]["items"]} == dict.fromkeys(
        ("ca", "vcek", "crl", "cek")
    )
    assert set(genoa.table()) == {cert_table.VCEK, cert_table.ASK, cert_table.ARK}


def test_a_change_does_not_wait_for_it_and_is_followed(genoa: Site) -> None:
    eventually(lambda: "vcek" in genoa.kinds(), "the first VCEK")
    before = genoa.table()[cert_table.VCEK]
    assert genoa("snp", "config", "set", "--snp", "20").code == 0
    eventually(lambda: genoa.table().get(cert_table.VCEK) not in (None, before), "the VCEK of the other TCB")
    assert "snp=20" in genoa("certs", "list").out
    assert genoa("snp", "config", "reset").code == 0
    assert genoa.table()[cert_table.VCEK] == before, "what is at hand is there at once"


def test_a_platform_is_exported_with_what_was_fetched(genoa: Site, tmp_path: Path) -> None:
    eventually(lambda: "cek" in str(genoa("certs", "refresh", "--json").json()), "the CEK")
    assert genoa("platform", "export", "--out", tmp_path / "chain", "--full").code == 0
    roots = genoa.files.devices / "roots" / "legacy-ca.cert"
    done = sev("certs", "verify", tmp_path / "chain", "--roots", roots)
    assert done.code == 0, done.out


def test_asking_again_asks_only_whether_it_is_still_so(genoa: Site) -> None:
    eventually(lambda: "vcek" in genoa.kinds(), "the first VCEK")
    done = genoa("certs", "refresh")
    assert done.code == 0
    found = genoa("certs", "refresh", "--json").json()
    assert {item["what"]: item["result"] for item in found["items"]} == {
        "ca": "unchanged", "vcek": "at_hand", "crl": "unchanged", "cek": "at_hand",
    }  # fmt: skip


def test_the_daemon_has_no_connection_of_its_own(genoa: Site) -> None:
    eventually(lambda: "vcek" in genoa.kinds(), "the first VCEK")
    own = Path(f"/proc/{genoa.daemon.process.pid}")
    sockets = {link for fd in (own / "fd").iterdir() if (link := str(fd.readlink())).startswith("socket:")}
    inodes = {f"socket:[{line.split()[9]}]" for name in ("tcp", "tcp6", "udp") for line in
              Path(f"/proc/net/{name}").read_text().splitlines()[1:]}  # fmt: skip
    assert sockets
    assert sockets & inodes == set()


def test_a_daemon_without_a_network_asks_by_the_socket(tmp_path: Path) -> None:
    need_root()
    (tmp_path / "host").mkdir()
    with device_files(tmp_path / "host", "--kds", "127.0.0.1:0") as files:
        url, ca = address(files), files.devices / "roots" / "kds-ca.pem"
        process, path = by_socket(tmp_path, "--kds", url, "--kds-ca", str(ca))
        (tmp_path / "sevd.toml").write_text(f'[endorsements]\nfetch_socket = "{path}"\n')
        arguments = ["--simulator", str(files.devices), "--kds", url, "--config", str(tmp_path / "sevd.toml")]
        try:
            with running(tmp_path / "daemon", *arguments, prefix=["unshare", "--net"]) as daemon:
                found = Site(files, daemon, url)
                eventually(lambda: found.kinds() == ["ark", "ask", "vcek", "crl"], "all is there")
                addresses = subprocess.run(
                    ["nsenter", "--net", f"--target={daemon.process.pid}", "cat", "/proc/net/dev"],
                    capture_output=True, text=True, check=True,
                ).stdout  # fmt: skip
                assert [line.split(":")[0].strip() for line in addresses.splitlines()[2:]] == ["lo"]
        finally:
            process.kill()
            process.communicate()


FAULTS = [
    "throttle=1:times=1",
    "fail:times=1",
    "cut:times=1",
    # The identifier of the tests' chip begins with 0.
    "stranger:times=1:path=/vcek/v1/Genoa/0",
    "wrong:times=1:path=/vcek/v1/Genoa/0",
    "stale:times=1:path=/vcek/v1/Genoa/crl",
    "slow=1:times=1:path=/cek/",
    "garbage:times=1:path=/cek/",
]


def test_whatever_the_service_does_all_is_there_in_the_end(tmp_path: Path) -> None:
    faults = [word for spec in FAULTS for word in ("--fault", f"KDS:{spec}")]
    with site(tmp_path, *faults) as found:
        good = ["at_hand", "fetched"]
        eventually(lambda: sum(item["result"] in good for item in found.items()) == 4, "all is there", 60)
        assert found.kinds() == ["ark", "ask", "vcek", "crl"]
        said = found.daemon.log
        for says in ("too many requests", "HTTP 500", "cut off", "another chip", "another TCB", "ran out"):
            assert says in said, says
        assert "Traceback" not in found.daemon.log
        assert set(found.table()) == {cert_table.VCEK, cert_table.ASK, cert_table.ARK}


def test_a_service_that_is_not_there_holds_nothing_up(tmp_path: Path) -> None:
    with site(tmp_path, kds="https://127.0.0.1:1") as found:
        assert found("snp", "config", "set", "--snp", "20").code == 0
        done = found("certs", "refresh")
        assert done.code == 5
        assert "no connection" in done.out
        assert any("sevd fetches it from https://127.0.0.1:1" in one for one in found.shown()["missing"])
        roots, url, ca = found.files.devices / "roots" / "ark.pem", address(found.files), found.files.devices / "roots"
        for what in ("ca", "vcek"):
            done = found(
                "certs", "fetch", what, "--out", tmp_path / "c", "--kds", url, "--kds-ca", ca / "kds-ca.pem",
                "--roots", roots,
            )  # fmt: skip
            assert done.code == 0, done.err
        assert found("certs", "import", *sorted((tmp_path / "c").iterdir())).code == 0
        assert "vcek" in found.kinds()
        begin = time.monotonic()
    assert time.monotonic() - begin < 15


def test_a_directory_of_files_is_a_source_like_any_other(tmp_path: Path) -> None:
    offline = tmp_path / "offline"
    with site(tmp_path / "a") as found:
        eventually(lambda: len(found.kinds()) == 4, "all is there")
        assert found("certs", "export", "--out", offline).code == 0
        chip = found.files.folder / "state"
    (tmp_path / "b" / "host").mkdir(parents=True)
    (offline / "junk.pem").write_text("junk")
    chip.rename(tmp_path / "b" / "host" / "state")
    with device_files(tmp_path / "b" / "host") as files:
        (tmp_path / "sevd.toml").write_text(f'[endorsements]\noffline = "{offline}"\nkds = "https://127.0.0.1:1"\n')
        arguments = ["--simulator", str(files.devices), "--config", str(tmp_path / "sevd.toml")]
        with running(tmp_path / "b" / "daemon", *arguments) as daemon:
            found = Site(files, daemon, "")
            eventually(lambda: found.kinds() == ["ark", "ask", "vcek", "crl"], "all is there")
            assert {one["origin"] for one in found.shown()["endorsements"]} == {"offline"}
            done = found("certs", "refresh")
            assert done.code == 5
            assert "junk.pem holds no certificates" in done.out


def test_a_vlek_from_its_hash_stick_to_its_certificate(tmp_path: Path) -> None:
    client = tmp_path / "host" / "state" / "simulator" / "genoa" / "kds" / "provider.pem"
    with site(tmp_path, settings=f'kds_client = "{client}"\n') as found:
        eventually(lambda: "vcek" in found.kinds(), "the VCEK")
        options = ("--kds", found.kds, "--kds-ca", found.files.devices / "roots" / "kds-ca.pem", "--kds-client", client)
        assert found("certs", "fetch", "hashsticks", "--out", tmp_path / "stick", *options).code == 0
        assert (tmp_path / "stick" / "hashstick.bin").stat().st_mode & 0o777 == 0o600
        assert found("snp", "vlek", "load", tmp_path / "stick" / "hashstick.bin").code == 0
        eventually(lambda: cert_table.VLEK in found.table(), "the VLEK's certificate")
        assert set(found.table()) == {cert_table.VLEK, cert_table.ASK, cert_table.ARK}


def test_a_host_without_snp_has_the_cek_alone(tmp_path: Path) -> None:
    with site(tmp_path, product="naples") as found:
        eventually(lambda: [item["what"] for item in found.items()] == ["cek"], "it is needed")
        eventually(lambda: found.items()[0]["result"] in ("fetched", "at_hand"), "it is there")
        done = found("platform", "export", "--out", tmp_path / "chain", "--json")
        assert done.json()["cek"] == "host"
        roots = found.files.devices / "roots" / "legacy-ca.cert"
        assert sev("certs", "verify", tmp_path / "chain", "--roots", roots).code == 0


def test_a_service_that_is_none_is_an_error_of_configuration(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sevd", "--kds", "ftp://kds", "--check-config"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no address of a service" in done.stderr
