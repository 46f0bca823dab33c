"""What running a guest through the daemon costs next to what it cannot avoid: `python -m tests.bench.bench_run`.

A guest that does nothing but OUT is run five ways: KVM_RUN in a bare loop; `Vcpu.run`; a worker of the daemon, asked
over its own socket; the RunGuest stream with every exit waiting for its completion, next to an echo of the same bytes
over a bare grpc.aio stream; and the stream with posted writes, next to a bare stream that only sends. Both sides of a
ratio take turns, and the median over the rounds is shown. Also: from CreateGuest to the first exit, and what a worker
with an idle guest holds of the machine's memory (PSS).
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

import sev
from sev.abi import kvm
from sev.client import Host
from sev.launch.vcpu import allow_interrupts
from sev.v1 import guest_pb2 as pb
from sevd.worker import run_wire, wire
from tests.support import real_mode as rm
from tests.support.daemon import Daemon
from tests.support.plain_host import descendants, launch, plain_host

SECONDS = 1.0
WINDOW = 64
RUN_GUEST = "/sev.v1.GuestService/RunGuest"

BARE = """
import asyncio, sys, grpc
answer = bytes.fromhex(sys.argv[2])
async def echo(requests, context):
    async for _ in requests: yield answer
async def pour(requests, context):
    while True: yield answer
handlers = {"/bare/echo": grpc.stream_stream_rpc_method_handler(echo), "/bare/pour": grpc.stream_stream_rpc_method_handler(pour)}
class Handlers(grpc.GenericRpcHandler):
    def service(self, details): return handlers.get(details.method)
async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(),))
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""


def rate(step: Callable[[], int], seconds: float) -> float:
    """Exits per second of something that makes a few of them."""
    done, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds:
        done += step()
    return done / (now - begin)


def in_process(seconds: float) -> tuple[float, float]:
    """Exits per second of bare KVM_RUN ioctls, and of Vcpu.run."""
    bare = rm.Bare(rm.counter(0x61))
    try:
        vcpu, fd = bare.vcpu(), bare.fds[0]
        ioctl = bare.kernel.ioctl

        def plain() -> int:
            for _ in range(100):
                ioctl(fd, kvm.KVM_RUN)
            return 100

        def decoded() -> int:
            for _ in range(100):
                vcpu.run()
            return 100

        return rate(plain, seconds), rate(decoded, seconds)
    finally:
        bare.close()


def in_worker(daemon: Daemon, host: Host, posted: int, seconds: float) -> float:
    """Exits per second over a worker's own socket."""
    guest = launch(host, rm.counter(0x61))
    (path,) = daemon.folder.glob("**/workers/*/sock")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(os.fspath(path))
            wire.send(sock, {"role": "run"})
            sock.send(run_wire.START + posted.to_bytes(4, "little"))
            sock.recv(4096)
            step = max(posted // 2, 1)

            def some() -> int:
                for _ in range(step):
                    packet = sock.recv(4096)
                (found,) = pb.RunGuestResponse.FromString(packet[1:]).exits
                sock.send(run_wire.REQUEST + completion(found))
                return step

            return rate(some, seconds)
    finally:
        host.delete_guest(guest, confirm=True)


def completion(found: pb.GuestExit) -> bytes:
    """The serialised request that completes a write."""
    one = pb.ExitCompletion(vcpu=found.vcpu, sequence=found.sequence)
    return pb.RunGuestRequest(completions=[one]).SerializeToString()


async def stream(target: str, guest: str, posted: int, seconds: float) -> tuple[float, int]:
    """Exits per second over RunGuest, and bytes of one answer."""
    async with grpc.aio.insecure_channel(target) as channel:
        call: Any = channel.stream_stream(RUN_GUEST)()
        await call.write(pb.RunGuestRequest(guest_id=guest, posted_writes=posted).SerializeToString())
        await call.read()
        done, begin, raw, open_exits = 0, time.perf_counter(), b"", 0
        while (now := time.perf_counter()) - begin < seconds:
            raw = await call.read()
            exits = pb.RunGuestResponse.FromString(raw).exits
            done += len(exits)
            open_exits += len(exits)
            if open_exits > posted // 2:
                open_exits = 0
                await call.write(completion(exits[-1]))
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
        return done / (now - begin), len(raw)


async def bare_stream(target: str, path: str, seconds: float) -> float:
    """Messages per second of a bare stream: echoes one by one, or one way."""
    async with grpc.aio.insecure_channel(target) as channel:
        call: Any = channel.stream_stream(path)()
        echo = path.endswith("echo")
        done, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) - begin < seconds:
            if echo:
                await call.write(bytes(8))
            await call.read()
            done += 1
        call.cancel()
        return done / (now - begin)


def create_to_running(host: Host) -> float:
    """Seconds from CreateGuest to the first exit."""
    begin = time.perf_counter()
    guest = launch(host, rm.out(0x61, 1) + rm.FOREVER)
    with host.run_guest(guest) as run:
        next(run)
        took = time.perf_counter() - begin
    host.delete_guest(guest, confirm=True)
    return took


def pss(daemon: Daemon, host: Host, *, run: bool) -> float:
    """KiB that the worker of an idle guest holds, launched, or also run once and paused; a worker that waits for its
    guest holds less."""
    guest = launch(host, rm.HLT)
    if run:
        with host.run_guest(guest) as running:
            next(running)
    found = 0.0
    for pid in descendants(daemon.process.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"sevd.worker" in command:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found = max(found, next(float(line.split()[1]) for line in lines if line.startswith("Pss:")))
    host.delete_guest(guest, confirm=True)
    return found


def measure(rounds: int, seconds: float) -> list[str]:
    """The lines of the report."""
    allow_interrupts()
    lines = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, plain_host(Path(folder) / "d") as daemon:
        target, bare = f"unix:{daemon.socket}", f"unix:{folder}/bare"
        server = subprocess.Popen([sys.executable, "-c", BARE, bare, bytes(20).hex()])
        try:
            with sev.connect(daemon.socket) as host:
                host.host()
                rows = []
                for _ in range(rounds):
                    plain, decoded = in_process(seconds)
                    each, ahead = in_worker(daemon, host, 0, seconds), in_worker(daemon, host, WINDOW, seconds)
                    rows.append((plain, decoded, each, ahead))
                plain, decoded, each, ahead = (statistics.median(column) for column in zip(*rows, strict=True))
                lines.append(
                    f"KVM_RUN in a bare loop: {plain:.0f} exits/s; Vcpu.run: {decoded:.0f} ({decoded / plain:.2f} x)"
                )
                lines.append(
                    f"worker's socket: {each:.0f} exits/s, each completed ({each / plain:.2f} x bare); "
                    f"{ahead:.0f} with {WINDOW} posted writes ({ahead / plain:.2f} x bare)"
                )
                for posted, path, what in ((0, "/bare/echo", "echo"), (WINDOW, "/bare/pour", "one-way stream")):
                    guest = launch(host, rm.counter(0x61))
                    pairs = []
                    for _ in range(rounds):
                        mine, _ = asyncio.run(stream(target, guest, posted, seconds))
                        pairs.append((mine, asyncio.run(bare_stream(bare, path, seconds))))
                    host.delete_guest(guest, confirm=True)
                    ratio = statistics.median(mine / other for mine, other in pairs)
                    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
                    lines.append(
                        f"RunGuest, {posted} posted writes: {mine:.0f} exits/s, {ratio:.2f} x a bare {what} ({other:.0f}/s)"
                    )
                took = statistics.median(create_to_running(host) for _ in range(3 * rounds))
                lines.append(f"create to the first exit: {took * 1e3:.0f} ms")
                idle, ran = (pss(daemon, host, run=run) for run in (False, True))
                lines.append(f"worker of an idle guest: {idle:.0f} KiB PSS; after it ran once: {ran:.0f} KiB")
        finally:
            server.terminate()
            server.wait(10)
    return lines


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="bench_run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round")
    args = parser.parse_args()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        sys.stdout.write("no /dev/kvm here: nothing to measure\n")
        return
    for line in measure(1 if args.quick else args.rounds, SECONDS / 5 if args.quick else SECONDS):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
