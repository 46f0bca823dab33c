"""Guests in workers on the real /dev/kvm, through a real daemon: `python -m tests.bench.bench_workers`.

From CreateGuest to the first exit of a guest that runs, and what one that is idle costs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from sev.client import Host
from tests.support.plain_host import launch, plain_host
from tests.support.real_mode import HLT
from tests.support.workers import descriptors


def milliseconds(values: list[float]) -> str:
    return f"{1000 * statistics.median(values):8.1f} ms median, {1000 * min(values):.1f} best of {len(values)}"


def first_exit(host: Host) -> tuple[float, float, float]:
    """Seconds from the request to CREATED, to READY, and to the first exit."""
    begin = time.perf_counter()
    guest_id = launch(host, HLT)
    ready = time.perf_counter()
    with host.run_guest(guest_id) as run:
        next(iter(run))
        running = time.perf_counter()
    host.delete_guest(guest_id, confirm=True)
    return ready - begin, running - begin, running - ready


def created(host: Host) -> float:
    """Seconds of CreateGuest alone."""
    begin = time.perf_counter()
    guest = host.create_guest(
        guest_type="plain", memory_bytes=64 << 20, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0, vmsa_features=0
    )
    passed = time.perf_counter() - begin
    host.delete_guest(guest.guest_id, confirm=True)
    return passed


def memory_of(pid: int) -> tuple[int, int]:
    """(proportional, private) KiB of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    return found["Pss"], found["Private_Clean"] + found["Private_Dirty"]


def workers(folder: Path) -> list[int]:
    out = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if any(
                    target.startswith(f"{folder}/state/workers/") for target in descriptors(int(entry.name)).values()
                ):
                    out.append(int(entry.name))
            except OSError:
                continue
    return out


def main() -> None:
    """Prints the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--guests", type=int, default=10)
    options.add_argument("--quick", action="store_true", help="three rounds and guests")
    args = options.parse_args()
    rounds, count = (3, 3) if args.quick else (args.rounds, args.guests)
    with tempfile.TemporaryDirectory() as name, plain_host(Path(name) / "d") as daemon, daemon.connect() as host:
        first_exit(host)
        spaced: list[float] = []
        for _ in range(rounds):
            time.sleep(0.3)  # the next worker is ready by then
            spaced.append(created(host))
        print(f"create, a worker is ready   {milliseconds(spaced)}")
        print(f"create, one after another   {milliseconds([created(host) for _ in range(rounds)])}")
        times = []
        for _ in range(rounds):
            time.sleep(0.3)
            times.append(first_exit(host))
        print(f"create to READY             {milliseconds([one[0] for one in times])}")
        print(f"create to the first exit    {milliseconds([one[1] for one in times])}")
        ids = [launch(host, HLT) for _ in range(count)]
        sizes = [memory_of(pid) for pid in workers(daemon.folder)]
        print(
            f"memory of an idle worker    {statistics.mean(one[0] for one in sizes):8.0f} KiB proportional, "
            f"{statistics.mean(one[1] for one in sizes):.0f} KiB its own, with {len(sizes)} guests"
        )
        for guest_id in ids:
            host.delete_guest(guest_id, confirm=True)


if __name__ == "__main__":
    main()
