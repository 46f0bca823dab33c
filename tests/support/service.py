"""A daemon with workers whose guests outlive it: killed, started again, and ended with nothing left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sev
from sev.client import Host
from sev.errors import SevError
from tests.support.device_files import device_files
from tests.support.workers import descriptors

START_SECONDS = 30


class Service:
    """A daemon that admits plain guests, and is started again as often as one likes, on the same state."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = str(folder / "s")
        self._options = options
        (folder / "sevd.toml").write_text("[guests]\nplain = true\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        paths = ["--config", f"{self.folder}/sevd.toml", "--socket", self.socket, "--state-dir", f"{self.folder}/state"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sevd", *paths, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(SevError), self.connect(timeout=0.5) as host:
                host.host()
                return
            if time.monotonic() > until or self.process.poll() is not None:
                pytest.fail(f"sevd does not start: {self.log()[-2000:]}")
            time.sleep(0.02)

    def connect(self, *, timeout: float = 10) -> Host:
        return sev.connect(self.socket, timeout=timeout)

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(20)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def workers(self) -> list[int]:
        """Processes of workers that have a guest: each has its folder open."""
        out = []
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError):
                    if any(
                        target.startswith(f"{self.folder}/state/workers/") for target in descriptors(int(name)).values()
                    ):
                        out.append(int(name))
        return out

    def end(self) -> None:
        """Deletes every guest, stops, and fails if anything is left."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.start()
        with self.connect() as host:
            for guest in host.guests():
                host.delete_guest(guest.guest_id, confirm=True)
        self.kill(signal.SIGTERM)
        assert self.workers() == []
        assert os.listdir(self.folder / "state" / "workers") == []


@contextlib.contextmanager
def served_service(folder: Path, product: str) -> Iterator[Service]:
    """One on a simulated host of its own, whose files another process serves."""
    (folder / "sim").mkdir()
    with device_files(folder / "sim", product=product) as files:
        service = Service(folder, "--simulator", str(files.devices))
        service.start()
        try:
            yield service
        finally:
            service.end()
