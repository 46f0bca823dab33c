"""The server of `bench_access`: the daemon's own, with the parts that are asked for, around functions that do nothing.

    python -m tests.bench.access_server FOLDER [PART…]

Parts: identity (sockets, accept loop, relay, roles), limits, audit, metrics. Without identity there is a bare gRPC
server on the same path. Prints "ready".
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sevd.access import accounts
from sevd.access.accounts import Account, GateLimits
from sevd.access.listeners import CLIENT, bind
from sevd.access.policy import AccessPolicy
from sevd.access.roles import Role
from sevd.access.turns import Turns
from sevd.api.server import Server, ServerLimits
from sevd.audit import Audit
from sevd.journal import Journal
from sevd.metrics.tally import Tally
from tests.support.serving import METHODS, SERVICES, EasySkin

PARTS = ("identity", "limits", "audit", "metrics")


class NoAudit(Audit):
    """Writes nothing."""

    def call(self, *args: Any, **more: Any) -> None: ...


class NoTally(Tally):
    """Counts nothing."""

    def call(self, *args: Any, **more: Any) -> None: ...


class NoTurns(Turns):
    """Everybody may do everything."""

    def allowance(self, account: Account) -> tuple[float, int]:
        return 1e9, 1 << 30

    def charge(self, account: Account, seconds: float, calls: int) -> None: ...


def without_limits(server: Server) -> None:
    """Takes the limits out."""

    def admit(self: Account, *args: object) -> None:
        self.calls += 1

    def hold(self: Account, size: int, *args: object) -> None:
        self.held += size

    patched: Any = accounts.Account
    patched.admit_call, patched.hold = admit, hold
    server.gate.turns = NoTurns()


class Bare(grpc.GenericRpcHandler):
    """The same methods, and nothing around them."""

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}
        for method in METHODS:
            if not (method.uploads or method.streams):
                self._handlers[method.path] = grpc.unary_unary_rpc_method_handler(self._behave(method.response))

    def _behave(self, response: Any) -> Any:
        async def behave(raw: bytes, context: object) -> bytes:
            return bytes(response().SerializeToString())

        return behave

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


async def serve(folder: Path, parts: Sequence[str]) -> None:
    """Until it is killed."""
    if "identity" not in parts:
        bare = grpc.aio.server()
        bare.add_generic_rpc_handlers((Bare(),))
        bare.add_insecure_port(f"unix:{folder}/s")
        await bare.start()
    else:
        private = folder / "private"
        private.mkdir(mode=0o700)
        server = Server(
            private,
            {service: EasySkin(service) for service in SERVICES},
            policy=AccessPolicy({os.geteuid(): Role.ADMIN}),
            audit=(Audit if "audit" in parts else NoAudit)(folder / "audit.jsonl"),
            journal=Journal(folder / "journal.jsonl"),
            limits=ServerLimits(GateLimits(), 256, 4 << 20),
            missing=lambda service: (),
            tally=(Tally if "metrics" in parts else NoTally)(),
        )
        if "limits" not in parts:
            without_limits(server)
        await server.start()
        server.open([bind(folder / "s", CLIENT)])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2:]))
