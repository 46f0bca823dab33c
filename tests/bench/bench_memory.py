"""A guest of 1 GiB that is launched from memory its owner has mapped: who copies what (`python -m tests.bench.bench_memory`).

The owner reads an image from a file straight into the guest's pages, and launches: a plain guest on the real /dev/kvm,
and an SNP guest on a running sevd-simulator, which measures a part of them. Next to it the same bytes go through the
API's stream, in the same run.

How the copies of daemon and worker are seen: whoever copies a page touches it, and a page touched for the first time is a
fault of that process (at most 16 pages at once). So its faults, times 64 KiB, are a bound; and processor time is needed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sev.abi.page_info import NORMAL
from sev.client import Host
from tests.support.daemon import Daemon, running
from tests.support.device_files import device_files
from tests.support.plain_host import end_workers, plain_host
from tests.support.workers import descriptors

GIB = 1 << 30
_BASE = 0
_FAULT_BYTES = 16 * 4096


@dataclass
class Cost:
    """What some step cost.

    Attributes:
        seconds: How long it took.
        faults: Minor faults of daemon and worker.
        busy: Processor seconds of daemon and worker.
        own: Processor seconds of this process in its own code.
    """

    seconds: float = 0
    faults: int = 0
    busy: float = 0
    own: float = 0


def workers(daemon: Daemon) -> list[int]:
    """Processes of workers that have a guest."""
    out = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                held = descriptors(int(name)).values()
            except OSError:
                continue
            if any(target.startswith(f"{daemon.folder}/state/workers/") for target in held):
                out.append(int(name))
    return out


def used(pids: list[int]) -> tuple[int, float]:
    """(minor faults, processor seconds) of some processes until now."""
    faults, ticks = 0, 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        faults += int(fields[7])
        ticks += int(fields[11]) + int(fields[12])
    return faults, ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def counted(pids: list[int]) -> Iterator[Cost]:
    """Fills in what the block cost."""
    cost = Cost()
    faults, busy = used(pids)
    own, begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime, time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - begin
    cost.own = resource.getrusage(resource.RUSAGE_SELF).ru_utime - own
    after, busy_after = used(pids)
    cost.faults, cost.busy = after - faults, busy_after - busy


def create(host: Host, kind: str) -> str:
    """A guest of 1 GiB."""
    plain = kind == "plain"
    guest = host.create_guest(
        guest_type=kind,
        memory_bytes=GIB,
        firmware_bytes=4096,
        vcpu_count=1,
        cpuid_signature=0 if plain else 0xA10F11,
        vmsa_features=0 if plain else 1,
    )
    return guest.guest_id


def launch(host: Host, guest: str, measured: int) -> None:
    """From memory that is filled to READY."""
    host.start_launch(guest, policy=0x30000 if measured else 0)
    if measured:
        host.update_launch(guest, [(_BASE, measured, NORMAL)])
    host.finish_launch(guest)


def mapped(daemon: Daemon, host: Host, image: int, kind: str, measured: int) -> tuple[Cost, Cost]:
    """What it costs to fill a guest through its mapping, and to launch it."""
    guest = create(host, kind)
    pids = [daemon.process.pid, *workers(daemon)]
    with host.map_memory(guest) as memory, memory.view(_BASE, GIB) as view:
        with counted(pids) as filling:
            done = 0
            while done < GIB:
                done += os.preadv(image, [view[done:]], done)
        with counted(pids) as launching:
            launch(host, guest, measured)
    host.delete_guest(guest, confirm=True)
    return filling, launching


def streamed(daemon: Daemon, host: Host, image: int, size: int) -> Cost:
    """What it costs to fill so many bytes of a guest through the API."""
    guest = create(host, "plain")
    content = os.pread(image, size, 0)
    with counted([daemon.process.pid, *workers(daemon)]) as cost:
        host.load_memory(guest, [(_BASE, content)])
    host.delete_guest(guest, confirm=True)
    return cost


def show(what: str, runs: list[Cost]) -> None:
    """One line."""
    seconds, busy, own = (statistics.median(getattr(run, name) for run in runs) for name in ("seconds", "busy", "own"))
    most = max(run.faults for run in runs)
    bound = f"so at most {most * _FAULT_BYTES / GIB:.4f} GiB" if most * _FAULT_BYTES < GIB else "no bound below 1 GiB"
    sys.stdout.write(
        f"{what:34} {seconds * 1e3:8.0f} ms; daemon and worker: {busy * 1e3:5.0f} ms busy, {most} faults, {bound} touched; "
        f"client's own code: {own * 1e3:.0f} ms\n"
    )


@contextmanager
def simulated_host(folder: Path) -> Iterator[Daemon]:
    """A daemon on a running sevd-simulator."""
    (folder / "host").mkdir(parents=True)
    with device_files(folder / "host") as files:
        try:
            with running(folder / "d", "--simulator", str(files.devices)) as daemon:
                yield daemon
        finally:
            end_workers(folder / "d")


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="bench_memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, and fewer pages measured")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    measured = (16 if args.quick else 256) << 20
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        image = os.memfd_create("image")
        stack.callback(os.close, image)
        os.ftruncate(image, GIB)
        block = bytes(range(256)) * 4096
        for offset in range(0, GIB, len(block)):
            os.pwrite(image, block, offset)
        try:
            daemon = stack.enter_context(plain_host(folder / "plain"))
            host = stack.enter_context(daemon.connect(timeout=120))
            runs = [mapped(daemon, host, image, "plain", 0) for _ in range(rounds)]
            through = [streamed(daemon, host, image, GIB) for _ in range(rounds)]
            simulated = stack.enter_context(simulated_host(folder / "snp"))
            host = stack.enter_context(simulated.connect(timeout=600))
            snp = [mapped(simulated, host, image, "snp", measured) for _ in range(rounds)]
        except pytest.skip.Exception as lacking:
            sys.stdout.write(f"memory of guests: not measured: {lacking}\n")
            return 0
    show("plain, 1 GiB filled in place", [fill for fill, _ in runs])
    show("plain, launched", [start for _, start in runs])
    show("plain, 1 GiB by stream", through)
    ratio = statistics.median(cost.seconds for cost in through) / statistics.median(fill.seconds for fill, _ in runs)
    sys.stdout.write(f"by stream / in place               {ratio:8.1f}\n")
    show("SNP, 1 GiB filled in place", [fill for fill, _ in snp])
    show(f"SNP, launched, {measured >> 20} MiB measured", [start for _, start in snp])
    return 0


if __name__ == "__main__":
    sys.exit(main())
