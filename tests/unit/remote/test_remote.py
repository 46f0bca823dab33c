"""Remote callers, with real certificates: who gets in and who does not, what the audit says, and what changes later."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sev.v1 import guest_pb2, host_pb2
from sevd.access import remote as remote_module
from sevd.access import remote_refusals, tls_files
from sevd.access.accounts import GateLimits
from sevd.access.policy import AccessPolicy
from sevd.access.refusal import CAUSES
from sevd.access.roles import Role
from sevd.api.server import ServerLimits
from tests.support import docs
from tests.support.authority import HOUR, SERVER, Authority, Issued, place
from tests.support.remote import Remotely, identities, records, serving_remotely, uri
from tests.support.serving import by_name, call_on, details

HOST = by_name("HostService/GetHost")
CREATE = by_name("GuestService/CreateGuest")
VIEWER = uri(Role.VIEWER)


async def ask(channel: grpc.aio.Channel, **more: Any) -> Any:
    return await call_on(channel, HOST, host_pb2.GetHostRequest(), **more)


async def refused(one: Remotely, certificate: Issued | None) -> None:
    """Asks, and does not get in; returns when the daemon has done with it."""
    async with one.channel(certificate) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    for _ in range(500):
        if not len(one.remote.handshakes):
            break
        await asyncio.sleep(0.005)


async def ended(one: Remotely) -> None:
    """Waits until nobody is connected over TLS."""
    for _ in range(300):
        if not one.server.gate.remote_connections():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("still connected")


async def test_the_right_certificate_gets_in_as_who_it_says(tmp_path: Path) -> None:
    async with serving_remotely(tmp_path) as one, one.channel(one.of(Role.LAUNCHER)) as channel:
        assert isinstance(await ask(channel), host_pb2.GetHostResponse)
        (connection,) = one.server.gate.remote_connections()
        assert (connection.caller.owner, connection.caller.role) == (f"uri:{uri(Role.LAUNCHER)}", Role.LAUNCHER)
        assert connection.name.startswith("unix-abstract:sevd-")
        await call_on(channel, CREATE, guest_pb2.CreateGuestRequest(label="x"))
    (record,) = records(tmp_path)
    assert (record["what"], record["method"], record["result"]) == ("call", "GuestService/CreateGuest", "done")
    assert record["socket"] == "mtls"
    assert record["caller"]["owner"] == f"uri:{uri(Role.LAUNCHER)}"
    assert record["caller"]["names"] == [f"uri:{uri(Role.LAUNCHER)}"]
    assert record["caller"]["address"].startswith("127.0.0.1:")
    assert "uid" not in record["caller"]


async def test_a_name_of_dns_is_one_too_whatever_its_case(tmp_path: Path) -> None:
    names = identities({"dns:vmm-7.example.org": Role.VIEWER})
    async with serving_remotely(tmp_path, names=names) as one:
        async with one.channel(one.setup.clients.issue("x", dns=["VMM-7.example.org"])) as channel:
            await ask(channel)
        await refused(one, one.setup.clients.issue("x", dns=["*.example.org"]))


def revoked(one: Remotely) -> Issued:
    certificate = one.of(Role.VIEWER)
    assert one.setup.files.crl is not None
    place(one.setup.files.crl, one.setup.clients.crl(certificate))
    return certificate


REFUSED: dict[str, tuple[str, Callable[[Remotely], Issued | None]]] = {
    "wrong CA": ("UNKNOWN_AUTHORITY", lambda one: Authority("others").issue("x", uris=[VIEWER])),
    "wrong CA of the same name": ("UNKNOWN_AUTHORITY", lambda one: Authority("clients").issue("x", uris=[VIEWER])),
    "the server's CA": ("UNKNOWN_AUTHORITY", lambda one: one.setup.servers.issue("x", uris=[VIEWER])),
    "expired": (
        "CERTIFICATE_EXPIRED",
        lambda one: one.setup.clients.issue("x", uris=[VIEWER], begins=-2 * HOUR, ends=-60),
    ),
    "not yet valid": (
        "CERTIFICATE_NOT_YET_VALID",
        lambda one: one.setup.clients.issue("x", uris=[VIEWER], begins=HOUR, ends=2 * HOUR),
    ),
    "revoked": ("CERTIFICATE_REVOKED", revoked),
    "no certificate": ("NO_CERTIFICATE", lambda one: None),
    "for servers": ("CERTIFICATE_PURPOSE", lambda one: one.setup.clients.issue("x", uris=[VIEWER], usage=SERVER)),
    "for no purpose": ("CERTIFICATE_PURPOSE", lambda one: one.setup.clients.issue("x", uris=[VIEWER], usage=None)),
    "another SAN": ("IDENTITY_NOT_ALLOWED", lambda one: one.setup.clients.issue("x", uris=[uri(None)])),
    "no SAN": ("IDENTITY_NOT_ALLOWED", lambda one: one.setup.clients.issue(VIEWER[-60:])),
    "a SAN that only begins so": (
        "IDENTITY_NOT_ALLOWED",
        lambda one: one.setup.clients.issue("x", uris=[f"{VIEWER}/more"]),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_each_refusal_is_in_the_audit_with_its_reason(tmp_path: Path, what: str) -> None:
    reason, make = REFUSED[what]
    async with serving_remotely(tmp_path) as one:
        certificate = make(one)
        await refused(one, certificate)
        assert one.server.gate.connections == {}
    found = records(tmp_path)
    assert {(record["what"], record["result"], record["reason"]) for record in found} == {
        ("connection", "refused", reason)
    }
    caller = found[0]["caller"]
    assert found[0]["socket"] == "mtls"
    assert caller["address"].startswith("127.0.0.1:")
    if certificate is not None:
        assert caller["serial"] == f"{certificate.certificate.serial_number:x}"
        assert caller["subject"].startswith("CN=")


async def test_the_roles_of_remote_callers_hold(tmp_path: Path) -> None:
    async with serving_remotely(tmp_path) as one, one.channel(one.of(Role.VIEWER)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_on(channel, CREATE, guest_pb2.CreateGuestRequest())
        assert details(caught.value)[0].reason == "NOT_PERMITTED"
    assert records(tmp_path)[-1]["caller"]["owner"] == f"uri:{VIEWER}"


async def test_one_name_that_is_told_no_decides(tmp_path: Path) -> None:
    names = identities({f"uri:{VIEWER}": Role.VIEWER, "dns:bad.example.org": None})
    async with serving_remotely(tmp_path, names=names) as one:
        await refused(one, one.setup.clients.issue("x", uris=[VIEWER], dns=["bad.example.org"]))
    assert records(tmp_path)[-1]["reason"] == "IDENTITY_NOT_ALLOWED"


async def test_connections_of_one_name_are_limited(tmp_path: Path) -> None:
    limits = ServerLimits(GateLimits(100, 2), 256, 4 << 20)
    async with serving_remotely(tmp_path, limits=limits) as one:
        certificate = one.of(Role.VIEWER)
        channels = [one.channel(certificate) for _ in range(2)]
        for channel in channels:
            await ask(channel)
        await refused(one, certificate)
        async with one.channel(one.of(Role.ADMIN)) as other:
            await ask(other)
        for channel in channels:
            await channel.close()
    assert records(tmp_path)[-1]["reason"] == "LIMIT_REACHED"


async def test_another_policy_closes_those_who_have_no_role_any_more(tmp_path: Path) -> None:
    async with serving_remotely(tmp_path) as one, one.channel(one.of(Role.ADMIN)) as admin:
        viewer = one.channel(one.of(Role.VIEWER))
        await ask(admin)
        await ask(viewer)
        policy = AccessPolicy(names=identities({f"uri:{uri(Role.ADMIN)}": Role.VIEWER}))
        one.server.reload(policy, ServerLimits(GateLimits(), 256, 4 << 20))
        (left,) = one.server.gate.remote_connections()
        assert (left.caller.owner, left.caller.role) == (f"uri:{uri(Role.ADMIN)}", Role.VIEWER)
        await ask(admin)
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(viewer)
        await viewer.close()
    found = [record for record in records(tmp_path) if "closed" in record["message"]]
    assert [(record["reason"], record["caller"]["names"]) for record in found] == [
        ("IDENTITY_NOT_ALLOWED", [f"uri:{VIEWER}"])
    ]


async def test_a_list_that_has_a_caller_closes_his_connection(tmp_path: Path) -> None:
    async with serving_remotely(tmp_path) as one:
        certificate = one.of(Role.VIEWER)
        async with one.channel(certificate) as gone, one.channel(one.of(Role.ADMIN)) as stays:
            await ask(gone)
            await ask(stays)
            assert one.setup.files.crl is not None
            place(one.setup.files.crl, one.setup.clients.crl(certificate))
            # Nobody reloads: the next handshake sees it.
            async with one.channel(one.of(Role.LAUNCHER)) as other:
                await ask(other)
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(gone)
            await ask(stays)
    assert {record["reason"] for record in records(tmp_path)} == {"CERTIFICATE_REVOKED"}
    assert one.told[0][0] == "access.credentials"


async def test_an_authority_that_is_taken_away_takes_its_callers_along(tmp_path: Path) -> None:
    async with serving_remotely(tmp_path) as one:
        new = Authority("new")
        below = Authority("below", new)
        assert one.setup.files.crl is not None
        place(one.setup.files.client_ca, one.setup.clients.pem + new.pem)
        place(one.setup.files.crl, one.setup.clients.crl() + new.crl() + below.crl())
        async with (
            one.channel(one.of(Role.VIEWER)) as old,
            one.channel(below.issue("x", uris=[uri(Role.ADMIN)])) as through,
        ):
            await ask(old)
            await ask(through)
            place(one.setup.files.client_ca, new.pem)
            place(one.setup.files.crl, new.crl() + below.crl())
            one.remote.reload(one.renewed(), one.load())
            await ask(through)
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(old)
    assert {record["reason"] for record in records(tmp_path)} == {"UNKNOWN_AUTHORITY"}


async def test_a_connection_ends_with_its_certificate(tmp_path: Path) -> None:
    async with serving_remotely(tmp_path) as one:
        short = one.setup.clients.issue("x", uris=[VIEWER], ends=2)
        async with one.channel(short) as channel:
            await ask(channel)
            await ended(one)
            assert datetime.datetime.now(datetime.UTC) >= short.certificate.not_valid_after_utc
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(channel)
    assert {record["reason"] for record in records(tmp_path)} == {"CERTIFICATE_EXPIRED"}


async def test_a_clock_that_is_set_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "LOOK_SECONDS", 0.05)
    async with serving_remotely(tmp_path) as one, one.channel(one.of(Role.VIEWER)) as channel:
        await ask(channel)
        (connection,) = one.server.gate.remote_connections()
        peer: Any = connection.peer
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
        object.__setattr__(peer.certificate, "not_after", past)
        await ended(one)


async def test_files_that_are_no_good_change_nothing_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_module, "LOOK_SECONDS", 0.05)
    async with serving_remotely(tmp_path) as one:
        place(one.setup.files.certificate, b"half a file")
        for _ in range(100):
            if one.told:
                break
            await asyncio.sleep(0.02)
        assert [kind for kind, _ in one.told] == ["access.credentials_refused"]
        await asyncio.sleep(0.2)
        assert len(one.told) == 1
        async with one.channel(one.of(Role.VIEWER)) as channel:
            await ask(channel)
    assert "the old ones stay" in caplog.text


async def test_strangers_do_not_push_the_audit_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_refusals, "PER_CAUSE", 3)
    async with serving_remotely(tmp_path) as one:
        for _ in range(8):
            await refused(one, None)
        await refused(one, one.of(None))
    found = [record["reason"] for record in records(tmp_path)]
    assert found[:4] == ["NO_CERTIFICATE"] * 3 + ["IDENTITY_NOT_ALLOWED"]
    assert found[-1] == "NOT_RECORDED"


async def test_what_is_under_way_ends_with_the_server(tmp_path: Path) -> None:
    async with serving_remotely(tmp_path, handshake_seconds=60) as one:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        await asyncio.sleep(0.1)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


def test_every_file_s_stamp_is_cheap(tmp_path: Path) -> None:
    files = tls_files.TlsFiles(tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "d")
    assert files.stamp() == (2, 2, 2, 2)


def test_the_documentation_has_every_reason() -> None:
    expected = [(word, meaning, remedy) for word, (meaning, remedy) in CAUSES.items()]
    assert docs.rows("remote.md", "reason", "what it means", "what to do") == expected


async def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    async with serving_remotely(tmp_path) as one:
        await refused(one, None)
        before = len(os.listdir("/proc/self/fd"))
        for certificate in (None, one.of(None), Authority("others").issue("x", uris=[VIEWER])) * 4:
            await refused(one, certificate)
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b""):
            _, writer = await asyncio.open_connection("127.0.0.1", one.port)
            writer.write(data)
            writer.close()
        for _ in range(200):
            if not len(one.remote.handshakes) and len(os.listdir("/proc/self/fd")) <= before:
                break
            await asyncio.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) <= before
        async with one.channel(one.of(Role.VIEWER)) as channel:
            await ask(channel)


async def test_what_is_about_to_end_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "LOOK_SECONDS", 0.02)
    async with serving_remotely(tmp_path) as one:
        one.setup.servers.server(begins=-20 * HOUR, ends=HOUR).write(one.setup.folder, "server")
        one.remote.reload(one.renewed(), one.load())
        await asyncio.sleep(0.2)
        assert [kind for kind, _ in one.told] == ["access.credentials", "access.expiring"]
