"""What the client costs: `sev host show` as a whole process, and an upload of memory through both clients.

    python -m tests.bench.bench_client [--rounds N] [--quick]

Prints the time of `sev host show` next to a bare `import grpc`, and the rate of load_memory of the sync and the asyncio
client next to a raw stream of ready messages to the same daemon. Both sides take turns; medians over the rounds.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

import sev.aio
from sev.guest_operations import memory_message
from sev.v1 import guest_pb2
from tests.support.daemon import running

UPLOAD_BYTES = 128 << 20
RAW_CHUNK = 1 << 20

SHOW = "import sys; from sev.cli.main import main; sys.exit(main())"


def process(command: list[str], environment: dict[str, str]) -> float:
    """Seconds that a process takes from start to end."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def seconds(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def start(socket: str, rounds: int) -> None:
    """`sev host show` against `import grpc`."""
    environment = {**os.environ, "SEVD_SOCKET": socket}
    pairs = [
        (
            process([sys.executable, "-c", SHOW, "host", "show"], environment),
            process([sys.executable, "-c", "import grpc"], environment),
        )
        for _ in range(rounds)
    ]
    ours, bare = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
    print(f"sev host show      {ours * 1000:7.0f} ms   import grpc {bare * 1000:7.0f} ms   ratio {ratio:.2f} (<= 1.40)")


def upload(socket: str, rounds: int, size: int) -> None:
    """load_memory of both clients against a raw stream."""
    content = os.urandom(size)
    with sev.connect(socket) as host, grpc.insecure_channel(f"unix:{socket}") as channel:
        guest = host.create_guest(memory_bytes=size, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0x00800F12)
        name = guest_pb2.LoadGuestMemoryRequest(guest_id=guest.guest_id).SerializeToString()
        view = memoryview(content)
        ready = [memory_message(at, view[at : at + RAW_CHUNK]) for at in range(0, size, RAW_CHUNK)]
        raw: Any = channel.stream_unary("/sev.v1.GuestService/LoadGuestMemory")

        async def load() -> None:
            async with sev.aio.connect(socket) as other:
                await other.load_memory(guest.guest_id, [(0, content)])

        ways: dict[str, Callable[[], object]] = {
            "sync": lambda: host.load_memory(guest.guest_id, [(0, content)]),
            "asyncio": lambda: asyncio.run(load()),
        }
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, function in ways.items():
                taken[way].append((seconds(function), seconds(lambda: raw(iter([name, *ready])))))
        host.delete_guest(guest.guest_id)
    for way, pairs in taken.items():
        rate, bare = (statistics.median(size / pair[side] / (1 << 20) for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
        print(f"upload, {way:<10} {rate:7.0f} MiB/s   raw {bare:7.0f} MiB/s   ratio {ratio:.2f}")


def main() -> None:
    """Runs both comparisons."""
    parser = argparse.ArgumentParser(prog="bench_client", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="how often each side is measured")
    parser.add_argument("--quick", action="store_true", help="three rounds, a smaller upload")
    args = parser.parse_args()
    rounds = 3 if args.quick else args.rounds
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "host", "--simulate=genoa") as daemon:
        start(daemon.socket, rounds)
        upload(daemon.socket, rounds, UPLOAD_BYTES // 4 if args.quick else UPLOAD_BYTES)


if __name__ == "__main__":
    main()
