"""What identity, limits, audit and metrics cost: for each call, under load, and for each idle connection.

    python -m tests.bench.bench_access [--rounds N] [--quick]

The same server with ever more of its parts takes turns with itself in one run; only ratios and differences within the
run mean anything, and the median over the rounds is shown. The call is one that is audited (DeleteGuest, which here
does nothing). Idle connections are those of a whole daemon, each after one call.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio

from sev.v1 import guest_pb2
from tests.bench.access_server import PARTS
from tests.support import http2

PATH = "/sev.v1.GuestService/DeleteGuest"
GET_HOST = "/sev.v1.HostService/GetHost"
REQUEST = guest_pb2.DeleteGuestRequest(guest_id="guest-0001", confirm=True).SerializeToString()
ROOT = Path(__file__).resolve().parents[2]


class Took(NamedTuple):
    """Quantiles of calls, in microseconds."""

    p50: float
    p99: float


@contextmanager
def server(parts: tuple[str, ...]) -> Iterator[str]:
    """The target of a server with these parts."""
    with tempfile.TemporaryDirectory(prefix="bench-access-") as folder:
        command = [sys.executable, "-m", "tests.bench.access_server", folder, *parts]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise SystemExit("the server does not start")
            try:
                yield f"unix:{folder}/s"
            finally:
                process.kill()


async def calls(target: str, clients: int, each: int) -> Took:
    """What calls take, `each` of so many clients after the other."""
    channels = [
        grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(clients)
    ]
    took: list[float] = []

    async def one(channel: grpc.aio.Channel) -> None:
        call: Any = channel.unary_unary(PATH)
        await call(REQUEST)
        for _ in range(each):
            begin = time.perf_counter()
            await call(REQUEST)
            took.append(time.perf_counter() - begin)

    await asyncio.gather(*[one(channel) for channel in channels])
    for channel in channels:
        await channel.close()
    took.sort()
    return Took(took[len(took) // 2] * 1e6, took[int(len(took) * 0.99)] * 1e6)


def layers(rounds: int, clients: int, each: int) -> list[list[Took]]:
    """Quantiles by part added and round."""
    sets = [PARTS[:count] for count in range(len(PARTS) + 1)]
    with ExitStack() as stack:
        targets = [stack.enter_context(server(parts)) for parts in sets]
        for target in targets:
            asyncio.run(calls(target, 1, 50))
        out: list[list[Took]] = [[] for _ in sets]
        for _ in range(rounds):
            for rows, target in zip(out, targets, strict=True):
                rows.append(asyncio.run(calls(target, clients, each)))
        return out


def report_layers(rounds: int, clients: int, each: int) -> Iterator[str]:
    """Lines on what each part adds."""
    found = layers(rounds, clients, each)
    bare = found[0]
    names = ["bare gRPC", *(f"+ {part}" for part in PARTS)]
    for index, (name, rows) in enumerate(zip(names, found, strict=True)):
        p50, p99 = (statistics.median(column) for column in zip(*rows, strict=True))
        before = found[max(index - 1, 0)]
        added = statistics.median(now.p50 - then.p50 for now, then in zip(rows, before, strict=True))
        ratio = statistics.median(now.p50 / then.p50 for now, then in zip(rows, bare, strict=True))
        tail = statistics.median(now.p99 / then.p99 for now, then in zip(rows, bare, strict=True))
        yield (
            f"{clients:2} clients, {name:11} p50 {p50:7.0f} us ({added:+6.0f} us; {ratio:.2f} x bare), "
            f"p99 {p99:7.0f} us ({tail:.2f} x bare)"
        )


def memory(pid: int) -> float:
    """Resident MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def connected(path: str) -> socket.socket:
    """A connection after one call."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(path)
    sock.sendall(http2.opening() + http2.frame(http2.SETTINGS, flags=http2.ACK) + http2.call(GET_HOST, 1))
    data = b""
    while True:  # up to the headers that end the call
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionResetError
        data += piece
        while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
            if data[3] == http2.HEADERS and data[4] & http2.END_STREAM:
                return sock
            data = data[9 + int.from_bytes(data[:3], "big") :]


def idle(count: int) -> str:
    """What idle connections hold."""
    with tempfile.TemporaryDirectory(prefix="bench-access-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "c.toml").write_text(f"[limits]\nconnections_per_identity = {count + 100}\n")
        command = [sys.executable, "-m", "sevd", "--simulate=genoa", "--config", f"{folder}/c.toml"]
        command += ["--socket", f"{folder}/s", "--state-dir", f"{folder}/state"]
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        while True:
            try:
                stack.enter_context(connected(f"{folder}/s"))
                break
            except OSError:
                if daemon.poll() is not None:
                    raise SystemExit("sevd does not start") from None
                time.sleep(0.1)
        for _ in range(20):
            stack.enter_context(connected(f"{folder}/s"))
        before = memory(daemon.pid)
        descriptors = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        for _ in range(count):
            stack.enter_context(connected(f"{folder}/s"))
        after = memory(daemon.pid)
        more = (len(os.listdir(f"/proc/{daemon.pid}/fd")) - descriptors) / count
        return (
            f"{count} idle connections: {before:.1f} to {after:.1f} MiB, {(after - before) / count * 1024:.1f} KiB and "
            f"{more:.1f} descriptors each"
        )


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="bench_access", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the calls")
    args = parser.parse_args()
    rounds, scale = (1, 10) if args.quick else (args.rounds, 1)
    for line in report_layers(rounds, 1, 2000 // scale):
        print(line)
    for line in report_layers(rounds, 64, 100 // scale):
        print(line)
    print(idle(1000 // scale))


if __name__ == "__main__":
    main()
