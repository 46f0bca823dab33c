"""The real daemon as a process: started, waited for, and always ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Running:
    """A daemon.

    Attributes:
        process: The process.
        folder: Holds `s` (its socket), `state` and `log`.
    """

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def target(self) -> str:
        """What clients dial."""
        return f"unix:{self.folder}/s"

    def log(self) -> str:
        """What it said so far."""
        return (self.folder / "log").read_text()


def command(folder: Path, *options: str) -> list[str]:
    """The command that starts a daemon in a folder."""
    paths = ["--socket", f"{folder}/s", "--state-dir", f"{folder}/state"]
    return [sys.executable, "-m", "sevd", *paths, *options]


@contextlib.contextmanager
def running(
    folder: Path, *options: str, environ: Mapping[str, str] | None = None, seconds: float = 60
) -> Iterator[Running]:
    """A daemon that says it is ready; terminated at the end, if it still runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (folder / "log").open("ab") as log:
        notify = f"sevd-test-{os.getpid()}-{time.monotonic_ns()}"
        manager.bind(f"\0{notify}")
        manager.settimeout(0.2)
        env = {**os.environ, **(environ or {}), "NOTIFY_SOCKET": f"@{notify}"}
        process = subprocess.Popen(command(folder, *options), stderr=log, stdout=log, env=env, cwd=ROOT)
        try:
            _wait_ready(manager, process, folder, seconds)
            yield Running(process, folder)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait_ready(manager: socket.socket, process: subprocess.Popen[bytes], folder: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if b"READY=1" in manager.recv(4096):
                return
        except TimeoutError:
            if process.poll() is not None:
                break
    pytest.fail(f"sevd does not start (exit {process.poll()}): {(folder / 'log').read_text()[-2000:]}")


def fails(folder: Path, *options: str, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and stderr of a daemon that does not start."""
    done = subprocess.run(
        command(folder, *options),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **(environ or {})},
        check=False,
    )
    return done.returncode, done.stderr


def copy_state(template: Path, folder: Path) -> None:
    """A daemon's state as another one left it: a first start, with its keys, is paid for once."""
    shutil.copytree(template / "state", folder / "state", ignore=shutil.ignore_patterns("backend", "lock"))


def make_template(folder: Path, options: Sequence[str] = ("--simulate=genoa",)) -> Path:
    """A folder with the state of a daemon that ran once."""
    with running(folder, *options):
        pass
    return folder
