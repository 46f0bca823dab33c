"""The id of a call: whence it comes, and where it is found again."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from sev.errors import NotFound
from sev.v1 import guest_pb2, host_pb2
from sevd.calling import is_request_id
from sevd.devices.scheduler import Scheduler
from sevd.logs import JsonFormatter
from tests.support.serving import by_name, call, details, serving

CREATE = by_name("GuestService/CreateGuest")
GET = by_name("GuestService/GetGuest")
WATCH = by_name("HostService/WatchEvents")
LOAD = by_name("GuestService/LoadGuestMemory")
OWN = re.compile(r"[0-9a-f]{8}-[0-9a-f]+")

log = logging.getLogger("sevd.test_request_ids")


class Lines(logging.Handler):
    """Keeps what the daemon would write."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


def last_record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "audit.jsonl").read_text().splitlines()[-1])
    return found


async def none(caller: Any, request: Any) -> Message:
    raise NotFound("no such guest")


@pytest.mark.parametrize(
    ("metadata", "field", "expected"),
    [
        pytest.param("deploy-42", "", "deploy-42", id="metadata"),
        pytest.param("deploy-42", "field", "field", id="the field wins"),
        pytest.param("", "field", "field", id="field alone"),
        pytest.param("", "", None, id="neither"),
        pytest.param("a b", "", None, id="with a space"),
        pytest.param("x" * 65, "", None, id="too long"),
        pytest.param("x" * 64, "", "x" * 64, id="as long as it may be"),
        pytest.param('"quoted"', "", None, id="other characters"),
        pytest.param("", "two words", "two words", id="a field has more characters"),
    ],
)
async def test_the_id_is_in_the_error_and_in_the_audit(
    tmp_path: Path, metadata: str, field: str, expected: str | None
) -> None:
    request = guest_pb2.CreateGuestRequest(request_id=field)
    more: dict[str, Any] = {"metadata": (("x-request-id", metadata),)} if metadata else {}
    async with serving(tmp_path, behaviours={"create_guest": none}) as (_, target):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(target, CREATE, request, **more)
    info, _ = details(caught.value)
    found = info.metadata["requestId"]
    assert found == expected if expected is not None else OWN.fullmatch(found)
    assert last_record(tmp_path)["request_id"] == found


async def test_ids_made_here_differ(tmp_path: Path) -> None:
    found = set()
    async with serving(tmp_path, behaviours={"get_guest": none}) as (_, target):
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(target, GET)
            found.add(details(caught.value)[0].metadata["requestId"])
    assert len(found) == 3


async def test_the_same_metadata_may_name_many_changes(tmp_path: Path) -> None:
    """Metadata is a name; only the field has a call act once."""
    times = []

    async def create(caller: Any, request: Any) -> Message:
        times.append(1)
        return guest_pb2.CreateGuestResponse()

    async with serving(tmp_path, behaviours={"create_guest": create}) as (_, target):
        for _ in range(2):
            await call(target, CREATE, metadata=(("x-request-id", "one"),))
    assert len(times) == 2
    assert last_record(tmp_path)["request_id"] == "one"


async def test_it_comes_back_with_every_kind_of_call(tmp_path: Path) -> None:
    metadata = (("x-request-id", "mine"),)

    def watch(caller: Any, request: Any) -> AsyncIterator[Message]:
        async def one() -> AsyncIterator[Message]:
            yield host_pb2.WatchEventsResponse()

        return one()

    async with serving(tmp_path, behaviours={"watch_events": watch}) as (_, target):
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(target, options=options) as dialled:
            channel: Any = dialled
            read: Any = channel.unary_unary(GET.path)(b"", metadata=metadata)
            await read
            stream: Any = channel.unary_stream(WATCH.path)(b"", metadata=metadata)
            upload: Any = channel.stream_unary(LOAD.path)(iter([b""]), metadata=metadata)
            await upload
            assert ("sevd-request-id", "mine") in list(await read.trailing_metadata())
            assert ("sevd-request-id", "mine") in list(await stream.initial_metadata())
            assert ("sevd-request-id", "mine") in list(await upload.trailing_metadata())


async def test_every_log_line_of_a_call_has_its_id(tmp_path: Path) -> None:
    scheduler = Scheduler()

    async def create(caller: Any, request: Any) -> Message:
        log.warning("in the call")
        await asyncio.to_thread(log.warning, "on a thread")
        await scheduler.run("lane", log.warning, "on the device's thread")
        raise RuntimeError("a bug")

    lines = Lines()
    logging.getLogger().addHandler(lines)
    try:
        async with serving(tmp_path, behaviours={"create_guest": create}) as (_, target):
            request = guest_pb2.CreateGuestRequest(request_id="deploy-42")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(target, CREATE, request)
            with pytest.raises(grpc.aio.AioRpcError):
                await call(target, CREATE, metadata=(("x-request-id", "deploy-43"),))
    finally:
        logging.getLogger().removeHandler(lines)
        scheduler.close()
    ours = [line for line in lines.lines if line["logger"] in ("sevd.test_request_ids", "sevd.api.frame")]
    told = ["in the call", "on a thread", "on the device's thread"]
    for request_id, part in (("deploy-42", ours[:4]), ("deploy-43", ours[4:])):
        assert [line["message"] for line in part[:3]] == told
        assert "unexpected failure" in part[3]["message"]
        assert {line["request_id"] for line in part} == {request_id}
        assert {line["method"] for line in part} == {"GuestService/CreateGuest"}
        assert all(line["caller"].startswith("uid:") for line in part)


@pytest.mark.parametrize(
    ("text", "good"),
    [("a", True), ("A.b_c-9", True), ("", False), ("a\n", False), ("é", False), (b"a", False), ("x" * 65, False)],
)
def test_what_can_be_an_id(text: object, good: bool) -> None:
    assert is_request_id(text) is good
