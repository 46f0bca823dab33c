"""A simulated SEV launch in process against the cryptography it cannot avoid: `python -m tests.bench.bench_sev_launch`.

Floor: SHA-256 of the memory, and AES-128-XTS of it in one piece for each 64 KiB. The launch is LAUNCH_START to
LAUNCH_FINISH, with 64 MiB that are in place before. The two run in turn; the ratio of each pair is what counts, since
the machine's speed changes under both alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sev.launch.sev import Sev
from sev.measurement.vcpu_types import signature
from sevd.simulator import Simulator

UNIT = 64 << 10
VCPU_TYPE = "EPYC-v4"
RATIO_WANTED = 1.5


def floor(data: bytes) -> None:
    """Hashing and encryption alone."""
    sha256(data).digest()
    key, view = algorithms.AES(bytes(range(32))), memoryview(data)
    for at in range(0, len(data), UNIT):
        Cipher(key, modes.XTS((at // UNIT).to_bytes(16, "little"))).encryptor().update(view[at : at + UNIT])


def launch(simulator: Simulator, data: bytes) -> float:
    """One whole launch of this memory; the seconds from LAUNCH_START to LAUNCH_FINISH."""
    process = simulator.process()
    with Sev(process) as guest:
        guest.create(len(data), 0, 1, signature(VCPU_TYPE))
        guest.memory(0, len(data))[:] = data
        begin = time.perf_counter()
        guest.start(1)
        guest.update(0, len(data))
        guest.measure()
        guest.finish()
        took = time.perf_counter() - begin
    process.exit()
    return took


def seconds(function: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    """Prints throughput and ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    data = os.urandom(arguments.mib << 20)
    with tempfile.TemporaryDirectory() as folder:
        simulator = Simulator.open(Path(folder), product="rome", seed=1)
        try:
            launch(simulator, data[: 1 << 20])
            pairs = [(seconds(lambda: floor(data)), launch(simulator, data)) for _ in range(rounds)]
        finally:
            simulator.close()
    lowest, launched = (min(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(after / before for before, after in pairs)
    size = len(data) / 1e9
    print(f"floor   {size / lowest:6.2f} GB/s  SHA-256 and AES-128-XTS of {arguments.mib} MiB")
    print(f"launch  {size / launched:6.2f} GB/s  {launched * 1e3:.1f} ms")
    print(f"ratio   {ratio:6.2f}       wanted: below {RATIO_WANTED}")


if __name__ == "__main__":
    main()
