"""Launch digests against the hashing floor and against sev-snp-measure, as ratios in one run.

    python -m tests.bench.bench_measure [--quick]

The floor hashes each distinct page once and one 112-byte record for every page: what no program can leave out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha384
from pathlib import Path
from statistics import median

from sevsnpmeasure import guest as peer
from sevsnpmeasure import vmm_types

from sev.measurement import snp_launch_digest
from sev.measurement.plan import snp_plan
from sev.measurement.sample import sample_firmware
from sev.measurement.vcpu_types import signature

OVMF = Path("/usr/share/ovmf/OVMF.fd")
PAGE = 4096
TYPE = "EPYC-v4"


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def ratio(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median ratio of pairs run in turn, and the median seconds of both."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return median(a / b for a, b in pairs), median(a for a, _ in pairs), median(b for _, b in pairs)


def show(what: str, result: tuple[float, float, float], goal: str) -> None:
    print(f"{what:52} {1000 * result[1]:8.2f} ms  against {1000 * result[2]:8.2f} ms  ratio {result[0]:.2f}  ({goal})")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="five rounds")
    rounds = 5 if options.parse_args().quick else 25
    if OVMF.exists():
        compare(OVMF, rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample-firmware.fd"
        path.write_bytes(sample_firmware(2 << 20))
        compare(path, rounds)


def compare(path: Path, rounds: int) -> None:
    """Prints every ratio for one firmware image."""
    image = path.read_bytes()
    mode = vmm_types.VMMType.QEMU

    def theirs(vcpus: int, known: str) -> bytes:
        digest: bytes = peer.snp_calc_launch_digest(
            vcpus, signature(TYPE), str(path), None, None, None, 1, known, mode, False
        )
        return digest

    pages = list({bytes(image[at : at + PAGE]) for at in range(0, len(image), PAGE)})
    known = snp_plan(image, 1, vcpu_type=TYPE)
    from sev.measurement import snp_ovmf_hash

    hashed = snp_ovmf_hash(image)
    for vcpus in (1, 512):
        plan = snp_plan(image, vcpus, vcpu_type=TYPE)
        records = sum(region.size for region in plan.regions) // PAGE + vcpus
        distinct = pages + list(set(plan.vmsas))

        def floor(distinct: list[bytes] = distinct, records: int = records) -> None:
            for page in distinct:
                sha384(page).digest()
            record = bytes(112)
            for _ in range(records):
                record = sha384(record).digest() + bytes(64)

        def ours(vcpus: int = vcpus) -> bytes:
            return snp_launch_digest(image, vcpus, vcpu_type=TYPE)

        def ours_known(vcpus: int = vcpus) -> bytes:
            return snp_launch_digest(image, vcpus, vcpu_type=TYPE, ovmf_hash=hashed)

        def peers(vcpus: int = vcpus) -> bytes:
            return theirs(vcpus, "")

        def peers_known(vcpus: int = vcpus) -> bytes:
            return theirs(vcpus, hashed.hex())

        if ours() != peers():
            raise SystemExit("the digests differ")
        show(f"{vcpus} vCPUs, against the hashing floor", ratio(ours, floor, rounds), "goal 1.1")
        show(f"{vcpus} vCPUs, against sev-snp-measure", ratio(ours, peers, rounds), "goal 0.5")
        show(f"{vcpus} vCPUs, firmware known, against its full run", ratio(ours_known, peers, rounds), "goal 0.1")
        show(f"{vcpus} vCPUs, both with the firmware known", ratio(ours_known, peers_known, rounds), "no goal")
    assert known.digest()
    bin_ = Path(sys.executable).parent
    command = shutil.which("sev-snp-measure", path=str(bin_))
    if command:
        words = ["--ovmf", str(path), "--vcpus", "4", "--vcpu-type", TYPE]
        processes([str(bin_ / "sev"), "measure", "snp", *words], [command, "--mode", "snp", *words], rounds)


def processes(mine: list[str], other: list[str], rounds: int) -> None:
    """Prints the ratio of two commands; both find their modules compiled, as after an installation."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(words: list[str]) -> bytes:
            return subprocess.run(words, check=True, stdout=subprocess.PIPE, env=environment).stdout

        if run(mine) != run(other):
            raise SystemExit("the commands' digests differ")
        result = ratio(lambda: run(mine), lambda: run(other), rounds)
    show("whole process, 4 vCPUs, against sev-snp-measure", result, "goal 0.6")


if __name__ == "__main__":
    main()
