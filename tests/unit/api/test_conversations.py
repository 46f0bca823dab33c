"""Calls of which both sides are streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc.aio

from tests.support.serving import by_name, serving

RUN = by_name("GuestService/RunGuest")


async def test_the_id_comes_back_before_the_first_message(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, target), grpc.aio.insecure_channel(target) as channel:
        through: Any = channel
        run = through.stream_stream(RUN.path)(metadata=(("x-request-id", "mine"),), timeout=10)
        assert ("sevd-request-id", "mine") in list(await run.initial_metadata())
        await run.done_writing()
        assert await run.read() is grpc.aio.EOF
