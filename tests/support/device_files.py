"""A sevd-simulator with its device files for one test: started, waited for, ended, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.needs import need_fuse
from tests.support.simulated import template

START_SECONDS = 60
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DeviceFiles:
    """A running simulator.

    Attributes:
        devices: The folder with its files.
        process: The process.
        folder: Holds `dev`, `state` and `log`.
    """

    devices: Path
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def sev(self) -> Path:
        """Its /dev/sev."""
        return self.devices / "sev"

    def log(self) -> str:
        """What it said so far."""
        return (self.folder / "log").read_text()


def command(folder: Path, *options: str, product: str = "genoa") -> list[str]:
    """The command that serves a host's files in a folder."""
    paths = ["--state-dir", f"{folder}/state", "--device-dir", f"{folder}/dev"]
    return [sys.executable, "-m", "sevd.simulator.main", *paths, "--product", product, *options]


def prepare(folder: Path, product: str = "genoa") -> None:
    """Puts the state of a chip there that was made before; nothing if there is one."""
    state = folder / "state" / "simulator"
    if not state.exists():
        (folder / "state").mkdir(parents=True, mode=0o700)
        shutil.copytree(template(product), state)


def mounted(folder: Path) -> list[str]:
    """Mount points below a folder."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [point for line in lines if (point := line.split()[4]).startswith(f"{folder}/")]


@contextmanager
def device_files(folder: Path, *options: str, product: str = "genoa", new_chip: bool = False) -> Iterator[DeviceFiles]:
    """Serves a simulated host's files; skips where there is no FUSE. Fails if something is left mounted.

    Args:
        folder: An empty folder, or that of an earlier one, whose chip is used then.
        options: Of sevd-simulator.
        product: Processor line.
        new_chip: Make one with its own keys, which takes seconds; older firmware than the newest needs it.
    """
    need_fuse()
    if not new_chip:
        prepare(folder, product)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command(folder, *options, product=product), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
        )
    served = DeviceFiles(folder / "dev", process, folder)
    try:
        wait_for(served)
        yield served
    finally:
        crashed = process.poll() not in (None, 0)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        left = mounted(folder)
        for point in sorted(left, key=len, reverse=True):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    if not crashed:
        assert left == [], f"left mounted: {left}\n{served.log()}"
        assert process.returncode == 0, served.log()


def wait_for(served: DeviceFiles) -> None:
    """Waits until a simulator is ready: `sev` is there, and lies on another device."""
    until = time.monotonic() + START_SECONDS
    while not (os.path.exists(served.sev) and os.stat(served.sev).st_dev != os.stat(served.devices).st_dev):
        if served.process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"sevd-simulator does not serve: {served.log()[-2000:]}")
        time.sleep(0.02)
