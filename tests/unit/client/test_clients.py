"""Both clients against a server that does what the test says: retries, errors, streams, interruption."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import sev
import sev.aio
from sev import errors
from sev.v1 import guest_pb2, host_pb2, snp_platform_pb2
from tests.support.fake_daemon import FakeDaemon, abort, served

HOST = host_pb2.GetHostResponse(host=host_pb2.Host(product="genoa", simulated=True)).SerializeToString()
STATUS = snp_platform_pb2.ResetSnpConfigResponse().SerializeToString()


@pytest.fixture
def fake() -> FakeDaemon:
    fake = FakeDaemon()
    fake.answers["HostService/GetHost"] = lambda request, context: HOST
    return fake


@pytest.fixture
def socket(tmp_path: Path, fake: FakeDaemon) -> Iterator[str]:
    path = str(tmp_path / "s")
    with served(fake, path):
        yield path


def both(socket: str, operation: str, *args: Any, timeout: float = 5.0, **kwargs: Any) -> list[Any]:
    """The outcome of an operation, a result or an error, with either client."""

    def sync() -> Any:
        with sev.connect(socket, timeout=timeout) as host:
            return getattr(host, operation)(*args, **kwargs)

    async def asynchronous() -> Any:
        async with sev.aio.connect(socket, timeout=timeout) as host:
            return await getattr(host, operation)(*args, **kwargs)

    outcomes: list[Any] = []
    for run in (sync, lambda: asyncio.run(asynchronous())):
        try:
            outcomes.append(run())
        except errors.SevError as error:
            outcomes.append(error)
    return outcomes


def test_an_answer(socket: str) -> None:
    for info in both(socket, "host"):
        assert info.product == "genoa"
        assert info.simulated


def test_unavailable_once_is_not_seen(socket: str, fake: FakeDaemon) -> None:
    for _ in range(2):
        fake.fail_once("HostService/GetHost", grpc.StatusCode.UNAVAILABLE, HOST)
        with sev.connect(socket) as host:
            assert host.host().product == "genoa"
    fake.fail_once("HostService/GetHost", grpc.StatusCode.UNAVAILABLE, HOST)
    assert both(socket, "host")[0].product == "genoa"


def test_a_repeated_change_has_the_same_request_id(socket: str, fake: FakeDaemon) -> None:
    fake.fail_once("SnpPlatformService/ResetSnpConfig", grpc.StatusCode.UNAVAILABLE, STATUS)
    with sev.connect(socket) as host:
        host.snp_reset_config()
        host.snp_reset_config()
    sent = [snp_platform_pb2.ResetSnpConfigRequest.FromString(raw).request_id for _, raw in fake.requests]
    assert sent[0] == sent[1] != sent[2]


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND])
def test_other_codes_are_sent_once(socket: str, fake: FakeDaemon, code: grpc.StatusCode) -> None:
    fake.answers["HostService/GetHost"] = lambda request, context: abort(context, code)
    for error in both(socket, "host"):
        assert isinstance(error, errors.SevError)
        assert error.message == "as the test says"
    assert len(fake.requests) == 2


def test_unavailable_for_good_ends_with_the_timeout(socket: str, fake: FakeDaemon) -> None:
    fake.answers["HostService/GetHost"] = lambda request, context: abort(context, grpc.StatusCode.UNAVAILABLE)
    begin = time.monotonic()
    for error in both(socket, "host", timeout=0.4):
        assert type(error) is errors.Unreachable
    assert 0.7 < time.monotonic() - begin < 3


def test_no_socket_is_told_at_once(tmp_path: Path) -> None:
    begin = time.monotonic()
    for error in both(str(tmp_path / "none"), "host", timeout=30):
        assert type(error) is errors.Unreachable
    assert time.monotonic() - begin < 3


def test_a_silent_daemon_is_waited_for_as_long_as_asked(tmp_path: Path) -> None:
    from socket import AF_UNIX
    from socket import socket as plain

    with plain(AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(8)
        begin = time.monotonic()
        for error in both(str(tmp_path / "s"), "host", timeout=0.6):
            assert isinstance(error, errors.Unreachable | errors.NotNow)
        assert 1.1 < time.monotonic() - begin < 4


def test_a_daemon_that_starts_late_is_met(tmp_path: Path, fake: FakeDaemon) -> None:
    from socket import AF_UNIX
    from socket import socket as plain

    path = str(tmp_path / "s")
    with plain(AF_UNIX) as stale:
        stale.bind(path)
    found: list[str] = []

    def ask() -> None:
        with sev.connect(path) as host:
            found.append(host.host().product)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    os.unlink(path)
    os.symlink(tmp_path / "real", path)
    with served(fake, str(tmp_path / "real")):
        thread.join(10)
    assert found == ["genoa"]


def test_a_slow_answer_is_not_now(socket: str, fake: FakeDaemon) -> None:
    released = threading.Event()

    def slow(request: Any, context: grpc.ServicerContext) -> bytes:
        released.wait(5)
        return HOST

    fake.answers["HostService/GetHost"] = slow
    try:
        for error in both(socket, "host", timeout=0.3):
            assert type(error) is errors.NotNow
            assert "--timeout" in error.remedy
    finally:
        released.set()


def test_a_method_that_is_not_there(socket: str) -> None:
    for error in both(socket, "snp_status"):
        assert type(error) is errors.NotOffered
    for error in both(socket, "guest_report", "guest-id"):
        assert type(error) is errors.NotOffered
        assert "sev attest report" in error.remedy


def test_an_answer_that_is_no_message(socket: str, fake: FakeDaemon) -> None:
    fake.answers["HostService/GetHost"] = lambda request, context: b"\xff\xff\xff"
    for error in both(socket, "host"):
        assert isinstance(error, errors.InternalError)


def test_an_upload_arrives_whole_and_again_after_a_break(socket: str, fake: FakeDaemon) -> None:
    fake.fail_once(
        "GuestService/LoadGuestMemory",
        grpc.StatusCode.UNAVAILABLE,
        guest_pb2.LoadGuestMemoryResponse(loaded_bytes=3_000_000).SerializeToString(),
    )
    content = os.urandom(3_000_000)
    assert both(socket, "load_memory", "guest-id", [(0x1000, content)]) == [3_000_000, 3_000_000]
    assert len(fake.requests) == 3
    for _, raw in fake.requests:
        messages = [guest_pb2.LoadGuestMemoryRequest.FromString(one) for one in raw]
        assert b"".join(message.data for message in messages) == content


def test_streams_end_and_fail_as_they_should(socket: str, fake: FakeDaemon) -> None:
    def two(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for name in ("a", "b"):
            yield guest_pb2.WatchGuestsResponse(guest=guest_pb2.Guest(guest_id=name)).SerializeToString()
        if request:
            abort(context, grpc.StatusCode.NOT_FOUND)

    async def collect(guest_id: str) -> list[str]:
        async with sev.aio.connect(socket) as host:
            return [guest.guest_id async for guest in host.watch_guests(guest_id)]

    fake.streams["GuestService/WatchGuests"] = two
    with sev.connect(socket) as host:
        assert [guest.guest_id for guest in host.watch_guests()] == ["a", "b"]
        with pytest.raises(errors.NotFound):
            list(host.watch_guests("guest-id"))
    assert asyncio.run(collect("")) == ["a", "b"]
    with pytest.raises(errors.NotFound):
        asyncio.run(collect("guest-id"))


def test_leaving_a_stream_cancels_it(socket: str, fake: FakeDaemon) -> None:
    cancelled = threading.Event()

    def endless(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(cancelled.set)
        while context.is_active():
            yield host_pb2.WatchEventsResponse().SerializeToString()
            time.sleep(0.01)

    fake.streams["HostService/WatchEvents"] = endless
    with sev.connect(socket) as host:
        events = host.events()
        next(events)
        events.close()  # type: ignore[attr-defined]
        assert cancelled.wait(5)


def test_a_cancelled_launch_deletes_its_guest(socket: str, fake: FakeDaemon) -> None:
    from sev.measurement.sample import sample_firmware

    reached, released = threading.Event(), threading.Event()

    def hold(request: Any, context: grpc.ServicerContext) -> bytes:
        reached.set()
        released.wait(10)
        return b""

    fake.answers.update(
        {
            "GuestService/CreateGuest": lambda request, context: b"",
            "GuestService/LoadGuestMemory": hold,
            "GuestService/DeleteGuest": lambda request, context: b"",
        }
    )

    async def launch() -> None:
        async with sev.aio.connect(socket) as host:
            task = asyncio.ensure_future(host.launch_snp(sample_firmware(), 1))
            await asyncio.to_thread(reached.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    try:
        asyncio.run(launch())
    finally:
        released.set()
    created = next(raw for method, raw in fake.requests if method == "GuestService/CreateGuest")
    deleted = next(raw for method, raw in fake.requests if method == "GuestService/DeleteGuest")
    wanted = guest_pb2.CreateGuestRequest.FromString(created).guest_id
    assert guest_pb2.DeleteGuestRequest.FromString(deleted).guest_id == wanted


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_is_above_zero(timeout: float) -> None:
    for connect in (sev.connect, sev.aio.connect):
        with pytest.raises(errors.UsageError):
            connect("/run/x", timeout=timeout)


def test_tls_is_for_remote_daemons_and_needs_all_three(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("no pem")
    with pytest.raises(errors.UsageError, match="on this machine"):
        sev.connect("/run/x", tls_ca="ca")
    with pytest.raises(errors.UsageError, match="--tls-key, --tls-ca"):
        sev.connect("dns:host:1", tls_cert="c")
    with pytest.raises(errors.UsageError, match="cannot read"):
        sev.connect("dns:host:1", tls_cert="/nonexistent", tls_key="k", tls_ca="a")
    with pytest.raises(errors.UsageError, match="not a PEM file"):
        sev.connect("dns:host:1", tls_cert=str(tmp_path / "ca"), tls_key="k", tls_ca="a")
