"""Simulated hosts for tests: the real daemon as a process, one for each product, started when first asked for.

Making a chip's RSA keys takes seconds; every daemon of a test run starts from a copy of the same chip.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import sev
from sev.client import Host

START_SECONDS = 120


@dataclass(frozen=True)
class Daemon:
    """A running daemon.

    Attributes:
        socket: Path of its socket.
        process: The process.
        folder: Where its state and log are.
    """

    socket: str
    process: subprocess.Popen[bytes]
    folder: Path

    def connect(self, *, timeout: float = 10.0) -> Host:
        """A client of it."""
        return sev.connect(self.socket, timeout=timeout)

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.folder / "log").read_text()

    def asids(self) -> int:
        """SEV-ES and SNP ASIDs in use."""
        with self.connect() as host:
            return host.host().sev_es_asids.in_use


@contextmanager
def running(folder: Path, *arguments: str, chip: Path | None = None, prefix: Sequence[str] = ()) -> Iterator[Daemon]:
    """Runs `sevd` with these arguments, its socket and state in `folder`; ready when it answers.

    `prefix` is a command that runs it, in its own process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state"
    if chip is not None and not state.exists():
        shutil.copytree(chip, state)
    socket = str(folder / "s")
    command = [*prefix, sys.executable, "-m", "sevd", *arguments, "--socket", socket, "--state-dir", str(state)]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    daemon = Daemon(socket, process, folder)
    try:
        until = time.monotonic() + START_SECONDS
        while not os.path.exists(socket):
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"sevd does not start: {daemon.log[-2000:]}")
            time.sleep(0.02)
        with daemon.connect(timeout=START_SECONDS) as host:  # it listens before it has made its keys
            host.host()
        yield daemon
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def chip(product: str, factory: pytest.TempPathFactory) -> Path:
    """State of a simulated chip of this product, made once in a test run."""
    folder = factory.getbasetemp() / f"chip-{product}"
    if not folder.exists():
        with running(folder / "made", f"--simulate={product}"):
            pass
    return folder / "made" / "state"


@pytest.fixture(scope="session")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Daemon]]:
    """Daemons by product, each shared by all tests: leave them as they were found."""
    with ExitStack() as stack:
        started: dict[str, Daemon] = {}

        def get(product: str) -> Daemon:
            if product not in started:
                folder = tmp_path_factory.mktemp(f"daemon-{product}")
                made = chip(product, tmp_path_factory)
                started[product] = stack.enter_context(running(folder, f"--simulate={product}", chip=made))
            return started[product]

        yield get


@pytest.fixture
def daemon(daemons: Callable[[str], Daemon]) -> Iterator[Daemon]:
    """The shared Genoa host; fails the test if it leaves an ASID in use."""
    shared = daemons("genoa")
    before = shared.asids()
    yield shared
    assert shared.asids() == before, "the test left a guest behind"
