"""The simulator's KDS over real HTTPS on 127.0.0.1: trust, faults, limits, and its end."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sev.attestation import Collateral, Report, Roots, verify
from sev.certs import Crl, load
from sev.errors import KernelError, UsageError
from sevd.simulator import Simulator, kds, kds_answers, store, tls
from sevd.simulator.guest_device import SevGuestDevice
from sevd.simulator.kds import KdsFault, KdsServer
from tests.support.guest_program import GuestProgram, running_guest
from tests.support.simulated import simulated_host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulated_host(tmp_path_factory.mktemp("host")) as simulator:
        yield simulator


@pytest.fixture
def server(host: Simulator) -> Iterator[KdsServer]:
    service = KdsServer(host)
    service.start()
    yield service
    service.close()
    service.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "kds"]


def client(server: KdsServer, name: str = "127.0.0.1", *, provider: bool = False) -> http.client.HTTPSConnection:
    """A connection that trusts the service's authority, and checks the name it was asked for."""
    context = ssl.create_default_context(cadata=server.ca_pem.decode())
    if provider:
        context.load_cert_chain(server.provider_pem)
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=20, context=context)
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sock = context.wrap_socket(raw, server_hostname=name)
    return connection


def get(server: KdsServer, target: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = client(server)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


CHAIN = "/vcek/v1/Genoa/cert_chain"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "kdsintf.amd.com"])
def test_it_answers_under_its_names(server: KdsServer, name: str) -> None:
    connection = client(server, name)
    connection.request("GET", CHAIN)
    response = connection.getresponse()
    assert response.status == 200
    assert [one.kind for one in load(response.read())] == ["ask", "ark"]
    connection.close()
    assert server.url == f"https://127.0.0.1:{server.port}"
    assert server.requests[-1] == ("GET", CHAIN)


def test_nobody_trusts_it_unasked(server: KdsServer) -> None:
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    with raw, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")


def test_a_report_verifies_with_what_it_serves(server: KdsServer, host: Simulator) -> None:
    report_data = os.urandom(64)
    with running_guest(host) as guest:
        report = GuestProgram(SevGuestDevice(guest, lambda: b"")).report(report_data).report
    parsed = Report.parse(report)
    assert parsed.reported_tcb is not None
    tcb = parsed.reported_tcb.components()
    query = "&".join(f"{kds_answers.SPL_NAMES[name]}={value:02}" for name, value in tcb.items())
    status, vcek, _ = get(server, f"/vcek/v1/Genoa/{parsed.chip_id.hex()}?{query}")
    assert status == 200
    chain = load(get(server, CHAIN)[1])
    crl = get(server, "/vcek/v1/Genoa/crl")[1]
    collateral = Collateral(vek=vcek, certificates=chain, crls=[crl])
    verified = verify(parsed, collateral, at=datetime.now(UTC), roots=Roots.from_pem(host.roots_pem()))
    assert verified.report.report_data == report_data


def test_several_requests_on_one_connection(server: KdsServer) -> None:
    connection = client(server)
    for _ in range(5):
        connection.request("GET", "/vcek/v1/Genoa/crl")
        assert connection.getresponse().read()
    connection.request("HEAD", "/vcek/v1/Genoa/crl")
    response = connection.getresponse()
    assert int(response.headers["Content-Length"]) > 0
    assert response.read() == b""
    connection.request("GET", "/nothing")
    response = connection.getresponse()
    assert response.status == 404
    response.read()
    connection.close()


def test_providers_show_a_certificate(server: KdsServer) -> None:
    target = "/vlek/v1/Genoa/cert?blSPL=1&teeSPL=0&snpSPL=1&ucodeSPL=1"
    assert get(server, target)[0] == 403
    connection = client(server, provider=True)
    connection.request("GET", target)
    response = connection.getresponse()
    assert response.status == 200
    assert [one.kind for one in load(response.read())] == ["vlek"]
    connection.close()


def test_throttling_ends_after_its_times(server: KdsServer) -> None:
    server.fault(KdsFault("throttle", seconds=7, times=2))
    for _ in range(2):
        status, _, headers = get(server, CHAIN)
        assert (status, headers["Retry-After"]) == (429, "7")
    assert get(server, CHAIN)[0] == 200


def test_faults_of_some_paths_until_they_are_cleared(server: KdsServer) -> None:
    server.fault(KdsFault("fail", path="/vcek/v1/Genoa/crl"))
    assert [get(server, "/vcek/v1/Genoa/crl")[0] for _ in range(3)] == [500] * 3
    assert get(server, CHAIN)[0] == 200
    server.clear_faults()
    assert get(server, "/vcek/v1/Genoa/crl")[0] == 200


def test_a_slow_answer(server: KdsServer) -> None:
    server.fault(KdsFault("slow", seconds=0.3, times=1))
    begin = time.monotonic()
    assert get(server, CHAIN)[0] == 200
    assert time.monotonic() - begin >= 0.3


def test_garbage_and_half_an_answer(server: KdsServer) -> None:
    good = get(server, CHAIN)[1]
    server.fault(KdsFault("garbage", times=1))
    status, body, _ = get(server, CHAIN)
    assert (status, len(body)) == (200, len(good))
    assert body != good
    server.fault(KdsFault("cut", times=1))
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(server, CHAIN)
    assert caught.value.partial == good[: len(good) // 2]


def test_what_lasts_is_not_sent_again(server: KdsServer) -> None:
    for path in (CHAIN, "/vcek/v1/Genoa/crl"):
        _, body, headers = get(server, path)
        connection = client(server)
        try:
            for etag, status in ((headers["ETag"], 304), ('"other"', 200)):
                connection.request("GET", path, headers={"If-None-Match": etag})
                response = connection.getresponse()
                assert (response.status, response.read()) == (status, b"" if status == 304 else body)
        finally:
            connection.close()


def test_a_list_that_ran_out_and_the_vcek_of_a_stranger(server: KdsServer) -> None:
    path = "/vcek/v1/Genoa/crl"
    server.fault(KdsFault("stale", times=1))
    stale = Crl.parse(get(server, path)[1])
    assert stale.next_update < datetime.now(UTC)
    assert Crl.parse(get(server, path)[1]).next_update > datetime.now(UTC)
    ca = server._answers._firmware.ca
    target = f"/vcek/v1/Genoa/{ca.chip_id.hex()}?blSPL=1&teeSPL=0&snpSPL=1&ucodeSPL=1"
    server.fault(KdsFault("stranger", times=1))
    stranger, own = (load(get(server, target)[1])[0] for _ in range(2))
    assert own.hwid == ca.chip_id
    assert stranger.hwid not in (None, ca.chip_id)
    assert stranger.tcb == own.tcb


@pytest.mark.parametrize(
    "make", [lambda: KdsFault("nonsense"), lambda: KdsFault("slow", seconds=1e9), lambda: KdsFault("fail", times=-1)]
)
def test_faults_that_there_are_not(make: object) -> None:
    assert callable(make)
    with pytest.raises(UsageError):
        make()


def test_faults_are_read_from_text() -> None:
    assert KdsFault.parse("fail") == KdsFault("fail")
    assert KdsFault.parse("throttle=5:times=2:path=/vcek/") == KdsFault("throttle", 5, 2, "/vcek/")
    assert KdsFault.parse("slow=0.5") == KdsFault("slow", seconds=0.5)


@pytest.mark.parametrize(
    "spec",
    ["", "nothing", "slow=x", "slow=nan", "fail:times", "fail:times=x", "fail:x=1", "fail:times=1:times=2", "a" * 999],
)
def test_texts_that_are_no_faults(spec: str) -> None:
    with pytest.raises(UsageError):
        KdsFault.parse(spec)


def test_clients_that_speak_no_tls_or_nothing(server: KdsServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            plain.recv(100)
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(10)]
    assert get(server, CHAIN)[0] == 200
    for one in silent:
        one.close()


def test_bodies_that_are_too_long_or_of_no_length(server: KdsServer) -> None:
    for headers in ({"Content-Length": str(1 << 20)}, {"Transfer-Encoding": "chunked"}, {"Content-Length": "x"}):
        connection = client(server)
        connection.putrequest("POST", "/vlek/v1/Genoa/hash_sticks")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()


def test_connections_are_bounded(server: KdsServer) -> None:
    assert server._server is not None
    server._server._places = threading.BoundedSemaphore(2)
    held = [client(server) for _ in range(2)]
    with pytest.raises(OSError, match=r"EOF|reset|Broken"):
        client(server)
    held[0].close()
    for _ in range(100):
        try:
            assert get(server, CHAIN)[0] == 200
            break
        except OSError:
            time.sleep(0.02)
    else:
        pytest.fail("no place became free")
    held[1].close()


def test_old_connections_are_ended(server: KdsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kds, "CONNECTION_SECONDS", 0.1)
    connection = client(server)
    time.sleep(0.6)
    with pytest.raises((OSError, http.client.HTTPException)):  # noqa: PT012 - either of the two may notice
        connection.request("GET", CHAIN)
        connection.getresponse()
    connection.close()


def test_its_end_ends_connections_and_waits(host: Simulator) -> None:
    service = KdsServer(host)
    service.start()
    connection = client(service)
    service.fault(KdsFault("slow", seconds=60))
    done: list[object] = []

    def ask() -> None:
        try:
            connection.request("GET", CHAIN)
            done.append(connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            done.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not service.requests:
        time.sleep(0.01)
    begin = time.monotonic()
    service.close()
    thread.join(10)
    assert done
    assert time.monotonic() - begin < 5
    connection.close()


def test_a_port_that_is_taken(host: Simulator, server: KdsServer) -> None:
    other = KdsServer(host, port=server.port)
    with pytest.raises(KernelError, match="cannot listen"):
        other.start()
    with pytest.raises(KernelError):
        KdsServer(host, port=99999).start()


# --- keys and certificates ------------------------------------------------------------------------------------------


def test_the_authority_stays(tmp_path: Path) -> None:
    first, second = tls.open_material(tmp_path), tls.open_material(tmp_path)
    assert first == second
    assert first.certificate.read_bytes() == second.certificate.read_bytes()
    for name in ("ca.key", "server.key", "provider.pem"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_leaves_are_made_anew_in_time(tmp_path: Path) -> None:
    first = tls.open_material(tmp_path)
    before = first.certificate.read_bytes()
    later = (datetime.now(UTC) + timedelta(days=tls.LEAF_DAYS - 10)).timestamp()
    assert tls.open_material(tmp_path, lambda: later).ca == first.ca
    assert first.certificate.read_bytes() != before


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "server.key", "server.pem"])
def test_damaged_material_is_named(tmp_path: Path, name: str) -> None:
    tls.open_material(tmp_path)
    (tmp_path / name).write_bytes(b"damage")
    with pytest.raises(store.CorruptState, match=name):
        tls.open_material(tmp_path)


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    tls.open_material(tmp_path / "a")
    tls.open_material(tmp_path / "b")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(store.CorruptState, match=r"ca\.key"):
        tls.open_material(tmp_path / "a")
