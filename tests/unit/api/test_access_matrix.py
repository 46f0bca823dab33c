"""Every method, from every role and from none, on every socket, called for real; and the page that says so."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from sevd import access_matrix
from sevd.access.listeners import KINDS, MTLS, Kind
from sevd.access.roles import Role
from sevd.access_matrix import Row, granted, may
from tests.support.remote import serving_remotely
from tests.support.serving import METHODS, by_name, call_on, details, filled, serving

ROOT = Path(__file__).resolve().parents[3]
ROLES: tuple[Role | None, ...] = (None, *Role)
FOREIGN = [row for row in access_matrix.rows() if not row.path.startswith("/sev.v1.")]


def word(role: Role | None) -> str:
    return "none" if role is None else role.text


@contextlib.asynccontextmanager
async def dialling(folder: Path, role: Role | None, kind: Kind) -> AsyncIterator[Callable[[], grpc.aio.Channel]]:
    """A server, and how a caller of a role dials one of its sockets."""
    if kind is MTLS:
        async with serving_remotely(folder) as one:
            certificate = one.of(role)
            yield lambda: one.channel(certificate)
        return
    async with serving(folder, role=role, kind=kind) as (_, target):
        options = [("grpc.use_local_subchannel_pool", 1)]
        yield lambda: grpc.aio.insecure_channel(target, options=options)


async def call(channel: grpc.aio.Channel, row: Row) -> None:
    """One call of a method, whosever it is. Raises grpc.aio.AioRpcError."""
    if row.path.startswith("/sev.v1."):
        method = by_name(f"{row.service}/{row.name}")
        assert isinstance(await call_on(channel, method, filled(method)), method.response)
        return
    through: Any = channel
    if row.name == "Watch":
        watch = through.unary_stream(row.path)(b"", timeout=20)
        await watch.read()
        watch.cancel()
    elif row.name == "ServerReflectionInfo":
        talk = through.stream_stream(row.path)(iter([b"\x3a\x01*"]), timeout=20)  # list_services: "*"
        await talk.read()
        talk.cancel()
    else:
        await through.unary_unary(row.path)(b"", timeout=20)


@pytest.mark.parametrize("kind", access_matrix.KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("role", ROLES, ids=word)
async def test_every_method_from_every_role_on_every_socket(tmp_path: Path, role: Role | None, kind: Kind) -> None:
    rows = access_matrix.rows()
    there = granted(role, kind)
    async with dialling(tmp_path, role, kind) as dial:
        if there is None:
            for row in rows:
                async with dial() as channel:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call(channel, row)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, row.path
            rows = []
        channel = dial()
        for row in rows:
            if may(role, kind, row):
                await call(channel, row)
                continue
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, row)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, row.path
            info, _ = details(caught.value)
            assert info.reason == "NOT_PERMITTED"
            if not row.local:
                assert row.role is not None
                assert there is not None
                assert (info.metadata["needed"], info.metadata["role"]) == (row.role.text, there.text)
        await channel.close()
    found = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    refused = [one for one in found if one["result"] == "refused"]
    if there is not None:
        names = {one["method"].rpartition("/")[2] for one in refused}
        assert names == {row.name for row in rows if not may(role, kind, row)}
        return
    assert {one["what"] for one in refused} == {"connection"}
    reasons = {one["reason"] for one in refused}
    if kind is MTLS:
        assert reasons <= {"IDENTITY_NOT_ALLOWED", "HANDSHAKE_LOST", "NOT_RECORDED"}
    else:
        assert reasons == {"NOT_PERMITTED"}
        assert {one["caller"]["uid"] for one in refused} == {os.geteuid()}
        assert len(refused) >= len(access_matrix.rows())


def test_the_matrix_knows_every_method_of_ours_and_every_socket_that_serves_calls() -> None:
    ours = {row.path for row in access_matrix.rows() if row not in FOREIGN}
    assert ours == {method.path for method in METHODS}
    assert {kind.name for kind in KINDS.values()} - {kind.name for kind in access_matrix.KINDS} == {"fd", "metrics"}


def test_nobody_is_let_in_without_a_role() -> None:
    for kind in access_matrix.KINDS:
        assert granted(None, kind) is None
        assert not any(may(None, kind, row) for row in access_matrix.rows())


def test_the_page_is_what_the_methods_declare() -> None:
    assert (ROOT / "docs" / "access-matrix.md").read_text() == access_matrix.text(), (
        "write it anew: python -m sevd.access_matrix > docs/access-matrix.md"
    )
