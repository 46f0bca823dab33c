"""What a command costs over the device files: PLATFORM_STATUS through FUSE and in the simulator's own process.

    python -m tests.bench.bench_files [--quick]

Prints microseconds a call, and how many times the in-process call the file costs. Needs root and /dev/fuse.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sev.errors import SevError
from sev.launch.linux import LinuxKernel
from sev.launch.platform import SevDevice
from sevd.simulator.device_directory import DeviceDirectory
from tests.support.device_files import device_files
from tests.support.simulated import simulated_host


def measure(function: Callable[[], object], calls: int) -> tuple[float, float]:
    """(median, smallest) microseconds of a call."""
    for _ in range(calls // 10):
        function()
    took = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        function()
        took.append(time.perf_counter_ns() - start)
    took.sort()
    return took[len(took) // 2] / 1000, took[0] / 1000


def main() -> int:
    """Measures and prints."""
    calls = 500 if "--quick" in sys.argv else 5000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            with DeviceDirectory(folder / "probe") as probe:
                probe.start()
        except SevError as error:
            sys.stdout.write(f"device files: not measured: {error.message}\n")
            return 0
        with simulated_host(folder / "model") as simulator, SevDevice(simulator.process()) as device:
            inside, inside_min = measure(device.platform_status, calls)
        (folder / "files").mkdir()
        with device_files(folder / "files") as host, SevDevice(LinuxKernel(), str(host.sev)) as device:
            outside, outside_min = measure(device.platform_status, calls)
    sys.stdout.write(f"PLATFORM_STATUS in process      {inside:8.1f} us (smallest {inside_min:.1f})\n")
    sys.stdout.write(f"PLATFORM_STATUS over the file   {outside:8.1f} us (smallest {outside_min:.1f})\n")
    sys.stdout.write(f"file / in process               {outside / inside:8.1f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
