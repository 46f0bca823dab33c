"""The socket that passes descriptors: who gets what, and what everybody else hears."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sev import packets
from sev.errors import LimitReached, MalformedInput, NotFound
from sevd.access import descriptors, refusals
from sevd.access.accounts import Account
from sevd.access.descriptors import Descriptors, Shared
from sevd.access.identity import Caller
from sevd.access.listeners import FD, bind
from sevd.access.policy import AccessPolicy
from sevd.access.roles import Role
from sevd.audit import Audit

OWN = AccessPolicy({os.geteuid(): Role.LAUNCHER}, {})
NOBODY = AccessPolicy({}, {})


@asynccontextmanager
async def serving(
    folder: Path, memory: Callable[[Caller, str], Shared], policy: AccessPolicy = OWN
) -> AsyncIterator[tuple[Descriptors, Path]]:
    audit = Audit(folder / "audit")
    served = Descriptors(policy, audit, memory)
    served.open(bind(folder / "fd.sock", FD))
    try:
        yield served, folder / "fd.sock"
    finally:
        served.close()
        audit.close()
        assert not (folder / "fd.sock").exists()


def dial(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(5)
    sock.connect(str(path))
    return sock


async def ask(path: Path, message: dict[str, object]) -> tuple[dict[str, object], list[int]]:
    def work() -> tuple[dict[str, object], list[int]]:
        with dial(path) as sock:
            return packets.call(sock, message)

    return await asyncio.to_thread(work)


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "audit").read_text().splitlines()]


async def test_the_memory_arrives_with_its_layout(tmp_path: Path) -> None:
    memfd = os.memfd_create("test")
    os.write(memfd, b"content")
    asked: list[tuple[str, str]] = []

    def memory(caller: Caller, guest_id: str) -> Shared:
        asked.append((caller.owner, guest_id))
        return Shared(memfd, ((0, 4096, 0),))

    async with serving(tmp_path, memory) as (_, path):
        answer, fds = await ask(path, {"op": "memory", "guest_id": "my-guest-1"})
        assert answer == {"layout": [[0, 4096, 0]]}
        assert asked == [(f"uid:{os.geteuid()}", "my-guest-1")]
        assert os.pread(fds[0], 7, 0) == b"content"
        packets.close_all(fds)
    os.close(memfd)
    (record,) = records(tmp_path)
    assert record["method"] == "Descriptors/Memory"
    assert record["target"] == "my-guest-1"
    assert record["result"] == "done"
    assert record["socket"] == "fd"


async def test_a_refusal_arrives_as_what_it_is_and_is_recorded(tmp_path: Path) -> None:
    def memory(caller: Caller, guest_id: str) -> Shared:
        raise NotFound(f"there is no guest {guest_id!r}", field="guest_id", remedy="Look for it.")

    async with serving(tmp_path, memory) as (_, path):
        with pytest.raises(NotFound, match="no guest 'x'") as refused:
            await ask(path, {"op": "memory", "guest_id": "x"})
        assert refused.value.field == "guest_id"
        assert refused.value.remedy == "Look for it."
    assert [record["result"] for record in records(tmp_path)] == ["refused"]


@pytest.mark.parametrize("given", ["deploy-42", "", "no good", 7])
async def test_the_id_of_a_request_is_in_its_error_and_its_record(tmp_path: Path, given: object) -> None:
    def memory(caller: Caller, guest_id: str) -> Shared:
        raise NotFound("there is no such guest")

    async with serving(tmp_path, memory) as (_, path):
        with pytest.raises(NotFound) as refused:
            await ask(path, {"op": "memory", "guest_id": "x", "request_id": given})
    (record,) = records(tmp_path)
    assert refused.value.request_id == record["request_id"]
    assert record["request_id"] == given or given != "deploy-42"
    assert record["request_id"]


@pytest.mark.parametrize("message", [{}, {"op": "open"}, {"op": "memory"}, {"op": "memory", "guest_id": 1}], ids=str)
async def test_what_cannot_be_meant(tmp_path: Path, message: dict[str, object]) -> None:
    async with serving(tmp_path, lambda caller, guest: Shared(0, ())) as (_, path):
        with pytest.raises(MalformedInput):
            await ask(path, message)


async def test_bytes_that_are_no_message_harm_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda caller, guest: Shared(0, ())) as (_, path):

        def work() -> list[str]:
            out = []
            with dial(path) as sock:
                for data in (b"{", b"[]", b"\xff" * 100, b"[" * 100_000, b'{"op":' + b"1" * 5000 + b"}"):
                    sock.send(data)
                    document = packets.receive(sock)[0]
                    out.append(str(packets.error_from(document["error"]).reason))
            return out

        assert set(await asyncio.to_thread(work)) == {"MALFORMED"}


async def test_who_has_no_role_is_not_served(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda caller, guest: Shared(0, ()), NOBODY) as (_, path):
        with pytest.raises(ConnectionError):
            await ask(path, {"op": "memory", "guest_id": "x"})
    (record,) = records(tmp_path)
    assert (record["what"], record["reason"]) == ("connection", "NOT_PERMITTED")


async def test_connections_of_one_identity_are_limited_and_given_back(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda caller, guest: (_ for _ in ()).throw(LimitReached("no"))) as (served, path):

        def fill() -> list[socket.socket]:
            return [dial(path) for _ in range(descriptors.CONNECTIONS_PER_IDENTITY)]

        held = await asyncio.to_thread(fill)
        with pytest.raises(ConnectionError):
            await ask(path, {"op": "memory", "guest_id": "x"})
        for sock in held:
            sock.close()
        with pytest.raises(LimitReached, match="no"):
            await ask(path, {"op": "memory", "guest_id": "x"})
        served.reload(NOBODY)
        with pytest.raises(ConnectionError):
            await ask(path, {"op": "memory", "guest_id": "x"})


async def test_who_says_nothing_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "IDLE_SECONDS", 0.05)
    async with serving(tmp_path, lambda caller, guest: Shared(0, ())) as (_, path):
        with dial(path) as sock, pytest.raises(packets.Closed):
            await asyncio.to_thread(packets.receive, sock)


async def test_refusals_are_recorded_so_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "RECORDED", 3)

    def memory(caller: Caller, guest_id: str) -> Shared:
        raise NotFound("there is no such guest")

    def work(path: Path) -> list[str]:
        kinds = []
        with dial(path) as sock:
            for _ in range(10):
                with pytest.raises(NotFound) as caught:
                    packets.call(sock, {"op": "memory", "guest_id": "none"})
                kinds.append(caught.value.kind)
        return kinds

    async with serving(tmp_path, memory) as (_, path):
        assert len(await asyncio.to_thread(work, path)) == 10
        assert [record["reason"] for record in records(tmp_path)] == ["NOT_FOUND"] * 3


async def test_who_asks_without_end_waits_for_his_turn_and_is_answered(tmp_path: Path) -> None:
    memfd = os.memfd_create("test")

    def work(path: Path) -> float:
        with dial(path) as sock:
            begin = time.monotonic()
            for _ in range(100):
                _, fds = packets.call(sock, {"op": "memory", "guest_id": "mine"})
                packets.close_all(fds)
            return time.monotonic() - begin

    async with serving(tmp_path, lambda caller, guest_id: Shared(memfd, ((0, 4096, 0),))) as (served, path):
        served._turns.allowance(Account("uid:other"))
        assert await asyncio.to_thread(work, path) > 100 * served._turns.call_seconds
    os.close(memfd)


async def test_who_is_refused_may_come_again(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda caller, guest_id: Shared(-1, ()), NOBODY) as (_, path):
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await ask(path, {"op": "memory", "guest_id": "mine"})
        assert [record["reason"] for record in records(tmp_path)] == ["NOT_PERMITTED"] * 3
