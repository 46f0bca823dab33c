"""The same programs in the simulator's process and through its files: the same bytes, errnos and results."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sevd.simulator import Simulator
from tests.support.device_files import device_files
from tests.support.needs import need_fuse
from tests.support.programs import Programmer
from tests.support.simulated import template
from tests.support.two_faces import InProcess, Step, ThroughFiles

SEED = 20_260_819


@contextmanager
def two_faces(tmp_path: Path, era: str = "C") -> Iterator[tuple[InProcess, ThroughFiles]]:
    """Two hosts of the same chip with the same seed."""
    need_fuse()
    folder, other_state = tmp_path / "own", tmp_path / "state" / "simulator"
    shutil.copytree(template("genoa"), folder)
    maker = Simulator.open(folder, product="genoa", seed=SEED)
    maker.endorsements()  # certificates are made once, and stored
    maker.close()
    other_state.parent.mkdir(mode=0o700)
    shutil.copytree(folder, other_state)
    with device_files(tmp_path, "--seed", str(SEED), "--kernel-era", era) as served:
        simulator = Simulator.open(folder, product="genoa", seed=SEED, kernel_era_name=era)
        one = InProcess(simulator)
        other = ThroughFiles(served.devices)
        try:
            yield one, other
        finally:
            other.close()
            one.close()
            simulator.close()


def compare(faces: tuple[InProcess, ThroughFiles], programs: int, seed: int) -> Counter[tuple[str, str]]:
    """Runs programs of some twenty steps on both; what was done, and how it ended."""
    one, other = faces
    counted: Counter[tuple[str, str]] = Counter()
    for number in range(programs):
        programmer = Programmer(seed + number)
        done: list[Step] = []
        for _ in range(20):
            step = programmer.next()
            done.append(step)
            here, there = one.do(step), other.do(step)
            if here != there:
                at = next((i for i, (a, b) in enumerate(zip(here.arena, there.arena, strict=True)) if a != b), None)
                pytest.fail(
                    f"program {seed + number}, step {len(done)}: {step}\nin process: errno {here.errno}, {here.value}"
                    f"\nby files:   errno {there.errno}, {there.value}\nfirst byte that differs: {at}"
                )
            programmer.learn(step, here)
            counted[step.kind, "refused" if here.errno else "ok"] += 1
        end = Step("drop")
        assert one.do(end) == other.do(end)
    return counted


def test_a_thousand_steps(tmp_path: Path) -> None:
    with two_faces(tmp_path) as faces:
        counted = compare(faces, 50, 1)
    assert sum(counted.values()) == 1000
    # Programs that only fail would compare nothing.
    assert min(counted[kind, "ok"] for kind in ("open", "ioctl", "name", "close")) > 0
    assert counted["ioctl", "ok"] > 300


@pytest.mark.parametrize("era", ["A", "B"])
def test_other_kernels(tmp_path: Path, era: str) -> None:
    with two_faces(tmp_path, era) as faces:
        compare(faces, 20, 500)


@pytest.mark.long
def test_ten_thousand_programs(tmp_path: Path) -> None:
    with two_faces(tmp_path) as faces:
        counted = compare(faces, 10_000, 1_000_000)
    assert sum(counted.values()) == 200_000
