"""What TLS costs a caller: the same daemon over its Unix socket and over mutual TLS on the loopback interface.

    python -m tests.bench.bench_remote [--rounds N] [--quick]

Prints the p50 latency of GetHost at 1, 8 and 64 clients, the rate of a memory upload, and what a connection with its first
call takes, over TLS and as a multiple of the Unix socket. Both take turns in one run; the median over the rounds is shown.
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
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.bench.bench_rpc import CLIENTS, GET_HOST, Dial, channel, chunks, create_guest, unary, upload, wait_for
from tests.support.remote import channel_credentials
from tests.support.remote_daemon import RemoteDaemon

CONNECTIONS = 100
UPLOAD = "/sev.v1.GuestService/LoadGuestMemory"


async def connecting(target: str, dial: Dial, count: int) -> float:
    """Median seconds of a connection with one call."""
    took = []
    for _ in range(count):
        begin = time.perf_counter()
        async with dial(target) as through:
            call: Any = through.unary_unary(GET_HOST)
            await call(b"")
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def measure(rounds: int, clients: tuple[tuple[int, int], ...], connections: int) -> list[str]:
    """The lines of the report."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        remote = RemoteDaemon(folder)
        one = remote.client("admin")
        unix, port = f"unix:{folder}/s", f"dns:localhost:{remote.port}"
        credentials = channel_credentials(remote.setup, one)

        def secure(target: str) -> grpc.aio.Channel:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", 8 << 20)]
            return grpc.aio.secure_channel(target, credentials, options=options)

        command = [sys.executable, "-m", "sevd", "--simulate=genoa", "--config", str(remote.config)]
        paths = ["--socket", f"{folder}/s", "--state-dir", f"{folder}/state"]
        daemon = subprocess.Popen([*command, *paths], stderr=subprocess.DEVNULL)
        try:
            wait_for(unix, daemon, GET_HOST)
            lines = []
            for count, calls in clients:
                rows = []
                for _ in range(rounds):
                    over = asyncio.run(unary(port, GET_HOST, count, calls, secure))
                    plain = asyncio.run(unary(unix, GET_HOST, count, calls))
                    rows.append((over[0] / plain[0], over[1] / plain[1], over[0], plain[0]))
                p50, through, tls, here = (statistics.median(column) for column in zip(*rows, strict=True))
                lines.append(
                    f"GetHost, {count:2} clients: p50 {tls * 1e6:.0f} us, {p50:.2f} x Unix ({here * 1e6:.0f} us); "
                    f"throughput {through:.2f} x"
                )
            pairs = []
            for _ in range(rounds):
                tls = asyncio.run(connecting(port, secure, connections))
                pairs.append((tls, asyncio.run(connecting(unix, channel, connections))))
            tls, here = (statistics.median(column) for column in zip(*pairs, strict=True))
            lines.append(
                f"a connection and its first call: {tls * 1e3:.1f} ms, {tls / here:.1f} x Unix ({here * 1e3:.1f} ms)"
            )
            messages = chunks(create_guest(unix))
            there = chunks(guest_over(port, credentials))
            rates = []
            for _ in range(rounds):
                up = asyncio.run(upload(port, UPLOAD, there, secure))
                rates.append((up, asyncio.run(upload(unix, UPLOAD, messages))))
            up, down = (statistics.median(column) / 1e6 for column in zip(*rates, strict=True))
            lines.append(f"upload: {up:.0f} MB/s, {up / down:.2f} x Unix ({down:.0f} MB/s)")
            return lines
        finally:
            daemon.terminate()
            daemon.wait(20)


def guest_over(target: str, credentials: grpc.ChannelCredentials) -> str:
    """A guest of the remote caller's."""
    with grpc.secure_channel(target, credentials) as through:
        return create_guest(target, through)


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="bench_remote", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the calls")
    args = parser.parse_args()
    clients = tuple((count, max(calls // 10, 2)) for count, calls in CLIENTS) if args.quick else CLIENTS
    os.chdir(Path(__file__).resolve().parents[2])
    for line in measure(1 if args.quick else args.rounds, clients, 10 if args.quick else CONNECTIONS):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
