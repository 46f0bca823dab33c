"""Callers from other machines at the real daemon: the command, the library, refusals, and how a start is refused."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sev
from sev import aio, errors
from tests.support.authority import CLIENT, HOUR, Authority, key_pem, place
from tests.support.cli import sev as run
from tests.support.daemon import chip
from tests.support.remote_daemon import TRUST, RemoteDaemon, free_port

FIRMWARE = 512 * 1024


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteDaemon]:
    made = RemoteDaemon(tmp_path_factory.mktemp("remote"))
    with made.running(chip("genoa", tmp_path_factory)):
        yield made


def records(remote: RemoteDaemon) -> list[dict[str, Any]]:
    lines = (remote.folder / "state/audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_command_reaches_a_daemon_elsewhere(remote: RemoteDaemon) -> None:
    words = remote.words(remote.client("viewer"), "viewer")
    done = run(*words, "--json", "host", "show")
    assert (done.code, done.json()["product"]) == (0, "genoa")
    done = run(*words, "snp", "commit", "--yes")
    assert done.code == 7, done.err
    assert "needs the role admin" in done.err


def test_a_guest_is_launched_from_elsewhere_and_is_its_own(remote: RemoteDaemon) -> None:
    from sev.measurement.sample import sample_firmware

    with remote.connect(remote.client("launcher"), "launcher") as host:
        launched = host.launch_snp(sample_firmware(FIRMWARE), vcpus=1, vcpu_type="EPYC-v4")
        assert launched.as_expected
        guest = host.guest(launched.guest.guest_id)
        assert guest.owner == f"uri:{TRUST}launcher"
        with remote.connect(remote.client("viewer"), "viewer") as other, pytest.raises(errors.NotFound):
            other.guest(launched.guest.guest_id)
        with pytest.raises(errors.UsageError, match="own machine"):
            host.map_memory(launched.guest.guest_id)
        host.delete_guest(launched.guest.guest_id)


def test_the_asyncio_client_does_too(remote: RemoteDaemon) -> None:
    async def ask() -> str:
        async with aio.connect(remote.target, **remote.files(remote.client("viewer"), "aio")) as host:
            return (await host.host()).product

    assert asyncio.run(ask()) == "genoa"


REFUSED = {
    "expired": ("CERTIFICATE_EXPIRED", "has expired"),
    "revoked": ("CERTIFICATE_REVOKED", "has been revoked"),
    "wrong CA": ("UNKNOWN_AUTHORITY", "does not know the authority"),
    "wrong CA of the same name": ("UNKNOWN_AUTHORITY", "has not signed"),
    "not allowed": ("IDENTITY_NOT_ALLOWED", "no name in this certificate"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("client", ["sync", "asyncio"])
def test_a_refusal_is_exit_7_and_points_to_the_audit(remote: RemoteDaemon, what: str, client: str) -> None:
    reason, says = REFUSED[what]
    one = remote.client("viewer")
    if what == "expired":
        one = remote.client("viewer", begins=-2 * HOUR, ends=-60)
    elif what == "revoked":
        assert remote.setup.files.crl is not None
        place(remote.setup.files.crl, remote.setup.clients.crl(one))
    elif what == "wrong CA":
        one = Authority("strangers").issue("viewer", uris=[TRUST + "viewer"])
    elif what == "wrong CA of the same name":
        one = Authority("clients").issue("viewer", uris=[TRUST + "viewer"])
    elif what == "not allowed":
        one = remote.client("somebody")
    if client == "sync":
        done = run(*remote.words(one, "refused"), "host", "show")
        assert (done.code, says in done.err, "audit" in done.err) == (7, True, True), done.err
    else:
        files = remote.files(one, "refused")

        async def ask() -> None:
            async with aio.connect(remote.target, **files) as host:
                await host.host()

        with pytest.raises(errors.NotPermitted, match=says) as caught:
            asyncio.run(ask())
        assert "audit" in caught.value.remedy
    serial = f"{one.certificate.serial_number:x}"
    found = [record for record in records(remote) if record.get("caller", {}).get("serial") == serial]
    assert {(record["socket"], record["result"], record["reason"]) for record in found} == {("mtls", "refused", reason)}


def test_nobody_there_is_exit_8(remote: RemoteDaemon) -> None:
    words = list(remote.words(remote.client("viewer"), "viewer"))
    words[1] = f"dns:localhost:{free_port()}"
    done = run("--timeout", "0.3", *words, "host", "show")
    assert done.code == 8, done.err


def test_a_daemon_that_is_not_trusted_is_exit_8(remote: RemoteDaemon, tmp_path: Path) -> None:
    words = list(remote.words(remote.client("viewer"), "viewer"))
    words[-1] = str(place(tmp_path / "others.pem", Authority("others").pem))
    done = run(*words, "host", "show")
    assert (done.code, "not trusted" in done.err) == (8, True), done.err


def test_a_name_that_is_not_in_the_daemon_s_certificate_is_exit_8(remote: RemoteDaemon) -> None:
    words = list(remote.words(remote.client("viewer"), "viewer"))
    words[1] = f"dns:127.0.0.2:{remote.port}"  # not bound there; the daemon's own is
    assert run("--timeout", "0.3", *words, "host", "show").code == 8


def test_a_key_of_another_certificate_is_exit_2(remote: RemoteDaemon, tmp_path: Path) -> None:
    words = list(remote.words(remote.client("viewer"), "viewer"))
    words[5] = str(place(tmp_path / "other.key", key_pem(remote.client("viewer").key)))
    done = run("--timeout", "0.5", *words, "host", "show")
    assert (done.code, "is not the key of" in done.err) == (2, True), done.err


def start(remote: RemoteDaemon) -> subprocess.CompletedProcess[str]:
    """A start that ends by itself."""
    command = [sys.executable, "-m", "sevd", "--simulate=genoa", "--config", str(remote.config)]
    paths = ["--socket", f"{remote.folder}/s", "--state-dir", f"{remote.folder}/state"]
    return subprocess.run([*command, *paths], capture_output=True, text=True, timeout=60, check=False)


WRONG_STARTS = {
    "nobody is allowed": ({}, {}, "none is allowed"),
    "only users of this host": ({"uid:1234": "admin"}, {}, "none is allowed"),
    "a name that is told no": ({f"uri:{TRUST}x": "none"}, {}, "none is allowed"),
    "no key": (None, {"key": ""}, "remote.key is not set"),
    "no authority": (None, {"client_ca": ""}, "remote.client_ca is not set"),
    "a file that is not there": (None, {"certificate": "/nonexistent/x"}, "No such file"),
    "no address": (None, {"listen": "7443"}, "expected HOST:PORT"),
    "an address of somebody else": (None, {"listen": "192.0.2.1:7443"}, "remote.listen"),
}


@pytest.mark.parametrize("what", WRONG_STARTS)
def test_a_start_that_would_be_wrong_is_refused(tmp_path: Path, what: str) -> None:
    identities, changes, says = WRONG_STARTS[what]
    remote = RemoteDaemon(tmp_path)
    remote.configure(identities, **changes)
    done = start(remote)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "s").exists()


def test_a_reload_that_would_be_wrong_changes_nothing(remote: RemoteDaemon) -> None:
    with remote.connect(remote.client("viewer"), "viewer") as host:
        host.host()
        try:
            remote.configure({"uid:1234": "admin"})
            assert "not reloaded" in remote.reload()
            host.host()
            remote.configure(certificate="/nonexistent/x")
            assert "No such file" in remote.reload()
            host.host()
        finally:
            remote.configure()
            assert "not reloaded" not in remote.reload()
        host.host()


def test_a_daemon_without_remote_callers_never_loads_tls() -> None:
    code = "import sys, sevd.daemon, sevd.assembly; print([m for m in ('sevd.access.remote', 'cryptography.x509') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_purposes_are_checked_both_ways(remote: RemoteDaemon) -> None:
    place(remote.setup.files.certificate, remote.setup.servers.issue("sevd", usage=CLIENT).pem)
    try:
        assert "not for servers" in remote.reload()
    finally:
        remote.setup.servers.server().write(remote.folder / "tls", "server")
        remote.reload()
    with sev.connect(remote.target, **remote.files(remote.client("viewer"), "viewer")) as host:
        assert host.host().product == "genoa"


def test_a_certificate_that_has_run_out_holds_up_no_other_change(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    remote = RemoteDaemon(tmp_path)
    remote.setup.servers.server(begins=-2 * HOUR, ends=-60).write(tmp_path / "tls", "server")
    with remote.running(chip("genoa", tmp_path_factory)):
        assert "it expired on" in remote.log
        done = run(*remote.words(remote.client("viewer"), "viewer"), "host", "show")
        assert (done.code, "has expired" in done.err) == (8, True), done.err
        remote.configure({f"uri:{TRUST}other": "viewer"})
        assert "not reloaded" not in remote.reload()
        # One that replaces it must be good.
        remote.setup.servers.server(begins=-2 * HOUR, ends=-30).write(tmp_path / "tls", "server")
        assert "it expired on" in remote.reload()
        remote.setup.servers.server().write(tmp_path / "tls", "server")
        assert "not reloaded" not in remote.reload()
        with remote.connect(remote.client("other"), "other") as host:
            assert host.host().product == "genoa"


def test_when_certificates_run_out_is_a_metric(remote: RemoteDaemon) -> None:
    with remote.connect(remote.client("viewer"), "viewer") as host:
        found = host.metrics().metrics
    samples = {sample.labels["kind"]: sample.value for sample in found["sevd_remote_expiry_seconds"].samples}
    assert sorted(samples) == ["certificate", "crl"]
    assert all(0 < end - time.time() <= HOUR for end in samples.values())
