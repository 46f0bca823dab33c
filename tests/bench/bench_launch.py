"""A simulated SNP launch in process against the hashing that it cannot avoid: `python -m tests.bench.bench_launch`.

Floor: SHA-384 of every page of the firmware image, and of one 112-byte record for every measured page and vCPU. The
launch is everything from opening /dev/sev to closing the VM, with one vCPU. The two run in turn; ratios of each pair
are what counts, since the machine's speed changes under both alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from hashlib import sha384
from pathlib import Path

from sev.launch import Snp
from sev.measurement.plan import LaunchPlan, snp_plan
from sev.measurement.sample import sample_firmware
from sev.measurement.vcpu_types import signature
from sevd.simulator import Simulator

PAGE = 4096
OVMF = Path("/usr/share/ovmf/OVMF.fd")
VCPU_TYPE = "EPYC-v4"
RATIO_WANTED = 1.5


def floor(image: bytes, records: int) -> None:
    """The hashing alone."""
    for at in range(0, len(image), PAGE):
        sha384(image[at : at + PAGE]).digest()
    record = bytes(112)
    for _ in range(records):
        sha384(record).digest()


def launch(simulator: Simulator, plan: LaunchPlan, image: bytes, vcpus: int) -> bytes:
    """One whole launch; answers the firmware's digest."""
    process = simulator.process()
    with Snp(process, share_memory=False) as guest:
        guest.create(16 << 20, len(image), vcpus, signature(VCPU_TYPE), plan.ap_reset_address)
        for region in plan.regions:
            if region.data is not None:
                guest.memory(region.gpa, region.size)[:] = region.data
        guest.start(0x30000)
        for region in plan.regions:
            guest.update(region.gpa, region.size, region.page_type)
        guest.finish()
        digest = simulator.launch_digest(process, guest.vm_fd)
    process.exit()
    return digest


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    """Prints the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--vcpus", type=int, default=1)
    options.add_argument("--quick", action="store_true", help="five rounds")
    args = options.parse_args()
    rounds = 5 if args.quick else args.rounds
    image = OVMF.read_bytes() if OVMF.exists() else sample_firmware(2 << 20)
    plan = snp_plan(image, args.vcpus, vcpu_type=VCPU_TYPE)
    records = sum(region.size for region in plan.regions) // PAGE + args.vcpus
    with tempfile.TemporaryDirectory() as directory:
        simulator = Simulator.open(Path(directory), product="genoa", seed=1)
        if launch(simulator, plan, image, args.vcpus) != plan.digest():
            raise SystemExit("the launch digest is not the predicted one")
        pairs = [
            (seconds(lambda: launch(simulator, plan, image, args.vcpus)), seconds(lambda: floor(image, records)))
            for _ in range(rounds)
        ]
        simulator.close()
    ratio = statistics.median(ours / least for ours, least in pairs)
    best = min(ours for ours, _ in pairs) / min(least for _, least in pairs)
    print(f"{len(image) // PAGE} firmware pages, {records} records, {args.vcpus} vCPU(s), {rounds} rounds")
    print(f"floor   {1000 * statistics.median(least for _, least in pairs):7.2f} ms")
    print(f"launch  {1000 * statistics.median(ours for ours, _ in pairs):7.2f} ms")
    print(f"ratio   {ratio:7.2f} median, {best:.2f} best against best (wanted: at most {RATIO_WANTED})")


if __name__ == "__main__":
    main()
