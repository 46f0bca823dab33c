"""What the daemon costs next to a bare grpc.aio server, both driven by the same raw-bytes client in one run.

    python -m tests.bench.bench_rpc [--rounds N] [--quick]

Prints, at 1, 8 and 64 clients, the p50 latency and the throughput of GetHost against an echo of the same bytes, and the
rate of a memory upload against a stream that throws its bytes away. Only the ratios mean anything: both sides take turns
in one run, and the median over the rounds is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sev.v1 import guest_pb2

GET_HOST = "/sev.v1.HostService/GetHost"
CLIENTS = ((1, 1000), (8, 150), (64, 30))
"""Clients, each with a connection of its own, and the calls that each makes."""

CHUNK = 1 << 20
UPLOAD_BYTES = 256 << 20
GUEST_BYTES = 256 << 20

Dial = Callable[[str], grpc.aio.Channel]

BARE = """
import asyncio, sys, grpc
answer = bytes.fromhex(sys.argv[2])
async def echo(request, context): return answer
async def sink(requests, context):
    async for _ in requests: pass
    return b""
handlers = {"/bare/echo": grpc.unary_unary_rpc_method_handler(echo), "/bare/sink": grpc.stream_unary_rpc_method_handler(sink)}
class Handlers(grpc.GenericRpcHandler):
    def service(self, details): return handlers[details.method]
async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(),))
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""


def channel(target: str) -> grpc.aio.Channel:
    """A connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", 8 << 20)]
    return grpc.aio.insecure_channel(target, options=options)


async def unary(target: str, path: str, clients: int, calls: int, dial: Dial = channel) -> tuple[float, float]:
    """(p50 in seconds, calls per second)."""
    channels = [dial(target) for _ in range(clients)]
    took: list[float] = []

    async def one(through: grpc.aio.Channel) -> None:
        call: Any = through.unary_unary(path)
        await call(b"")
        for _ in range(calls):
            begin = time.perf_counter()
            await call(b"")
            took.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*[one(each) for each in channels])
    total = time.perf_counter() - begin
    for each in channels:
        await each.close()
    return statistics.median(took), clients * calls / total


async def upload(target: str, path: str, messages: list[bytes], dial: Dial = channel) -> float:
    """Bytes per second of a client stream."""

    async def stream() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    async with dial(target) as through:
        call: Any = through.stream_unary(path)
        begin = time.perf_counter()
        await call(stream())
        return sum(map(len, messages)) / (time.perf_counter() - begin)


def create_guest(target: str, through: grpc.Channel | None = None) -> str:
    """A guest whose memory can be loaded; through a connection that is there, or one of its own."""
    request = guest_pb2.CreateGuestRequest(
        type=guest_pb2.GUEST_TYPE_SNP,
        memory_bytes=GUEST_BYTES,
        firmware_bytes=1 << 20,
        vcpu_count=1,
        cpuid_signature=0x00A10F11,
    )
    with through or grpc.insecure_channel(target) as plain:
        call = plain.unary_unary(
            "/sev.v1.GuestService/CreateGuest",
            request_serializer=guest_pb2.CreateGuestRequest.SerializeToString,
            response_deserializer=guest_pb2.CreateGuestResponse.FromString,
        )
        return str(call(request, timeout=20).guest.guest_id)


def chunks(guest_id: str) -> list[bytes]:
    """The messages of an upload, serialised."""
    data = os.urandom(CHUNK)
    out = [guest_pb2.LoadGuestMemoryRequest(guest_id=guest_id).SerializeToString()]
    for gpa in range(0, UPLOAD_BYTES, CHUNK):
        out.append(guest_pb2.LoadGuestMemoryRequest(gpa=gpa, data=data).SerializeToString())
    return out


def wait_for(target: str, process: subprocess.Popen[bytes], path: str) -> bytes:
    """The answer to the first call that succeeds."""
    until = time.monotonic() + 60
    with grpc.insecure_channel(target) as plain:
        call: Any = plain.unary_unary(path)
        while True:
            try:
                return bytes(call(b"", timeout=5))
            except grpc.RpcError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.05)


def measure(rounds: int, clients: tuple[tuple[int, int], ...]) -> list[str]:
    """The lines of the report."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        ours, bare = f"unix:{folder}/sevd", f"unix:{folder}/bare"
        command = [sys.executable, "-m", "sevd", "--simulate=genoa", "--socket", f"{folder}/sevd"]
        daemon = subprocess.Popen([*command, "--state-dir", f"{folder}/state"], stderr=subprocess.DEVNULL)
        server = None
        try:
            answer = wait_for(ours, daemon, GET_HOST)
            server = subprocess.Popen([sys.executable, "-c", BARE, bare, answer.hex()])
            wait_for(bare, server, "/bare/echo")
            lines = []
            for count, calls in clients:
                rows = []
                for _ in range(rounds):
                    a = asyncio.run(unary(ours, GET_HOST, count, calls))
                    b = asyncio.run(unary(bare, "/bare/echo", count, calls))
                    rows.append((a[0] / b[0], a[1] / b[1], a[0], b[0]))
                p50, through, mine, echo = (statistics.median(column) for column in zip(*rows, strict=True))
                lines.append(
                    f"GetHost, {count:2} clients: p50 {p50:.2f} x echo ({mine * 1e6:.0f} / {echo * 1e6:.0f} us), "
                    f"throughput {through:.2f} x"
                )
            messages = chunks(create_guest(ours))
            rates = []
            for _ in range(rounds):
                mine = asyncio.run(upload(ours, "/sev.v1.GuestService/LoadGuestMemory", messages))
                rates.append((mine, asyncio.run(upload(bare, "/bare/sink", messages))))
            ratio = statistics.median(mine / plain for mine, plain in rates)
            mine, plain = (statistics.median(column) / 1e6 for column in zip(*rates, strict=True))
            lines.append(f"upload: {ratio:.2f} x bare stream ({mine:.0f} / {plain:.0f} MB/s)")
            return lines
        finally:
            for process in (server, daemon):
                if process is not None:
                    process.terminate()
                    process.wait(20)


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="bench_rpc", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the calls")
    args = parser.parse_args()
    clients = tuple((count, max(calls // 10, 2)) for count, calls in CLIENTS) if args.quick else CLIENTS
    os.chdir(Path(__file__).resolve().parents[2])
    for line in measure(1 if args.quick else args.rounds, clients):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
