"""Client, daemon and worker killed at random moments while guests run: nothing leaks, nothing hangs, who is left works.

A few kills here; `SEVD_KILLS=500` asks for more.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sev.abi.kvm_run import PortWrite
from sev.client import Host
from sev.errors import SevError
from tests.support import real_mode as rm
from tests.support.daemon import Daemon, running
from tests.support.plain_host import launch, plain_host

KILLS = int(os.environ.get("SEVD_KILLS", "18"))
ENTRY = "from sev.cli.main import entry; entry()"


class Scene:
    """A daemon that is started again whenever it was killed, and one guest that counts."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.daemon: Daemon = stack.enter_context(plain_host(folder))
        self.guest = ""

    def restart(self) -> None:
        config = str(self.folder / "sevd.toml")
        self.daemon = self._stack.enter_context(running(self.folder, "--config", config))

    def host(self) -> Host:
        return self.daemon.connect()

    def client(self) -> subprocess.Popen[bytes]:
        """`sev guest run`, which has printed something already."""
        words = [sys.executable, "-c", ENTRY, "guest", "run", self.guest, "--socket", self.daemon.socket]
        client = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert client.stdout is not None
        assert client.stdout.read(1), "the guest does not run"
        return client

    def workers(self) -> list[int]:
        """Workers with a guest, whoever started them: they know their folder's socket."""
        out = []
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                with suppress(OSError):
                    command = Path(f"/proc/{entry}/cmdline").read_bytes()
                    tasks = len(os.listdir(f"/proc/{entry}/task"))
                    if b"sevd.worker" in command and tasks > 1 and self._mine(int(entry)):
                        out.append(int(entry))
        return out

    def _mine(self, pid: int) -> bool:
        cards = self.folder.glob("**/workers/*/guest.json")
        return any(json.loads(card.read_text())["pid"] == pid for card in cards)


def kill_client(scene: Scene, client: subprocess.Popen[bytes]) -> None:
    client.kill()


def kill_daemon(scene: Scene, client: subprocess.Popen[bytes]) -> None:
    scene.daemon.process.kill()
    scene.daemon.process.wait()


def stop_daemon(scene: Scene, client: subprocess.Popen[bytes]) -> None:
    scene.daemon.process.send_signal(signal.SIGTERM)
    scene.daemon.process.wait(20)


def kill_worker(scene: Scene, client: subprocess.Popen[bytes]) -> None:
    (worker,) = scene.workers()
    os.kill(worker, signal.SIGKILL)


ACTS: tuple[Callable[[Scene, subprocess.Popen[bytes]], None], ...] = (
    kill_client,
    kill_daemon,
    stop_daemon,
    kill_worker,
)


def test_kills_at_random_moments(tmp_path: Path) -> None:
    generator = random.Random(20)
    with ExitStack() as stack:
        scene = Scene(tmp_path / "d", stack)
        for number in range(KILLS):
            act = ACTS[number % len(ACTS)]
            if not scene.guest:
                with scene.host() as host:
                    scene.guest = launch(host, rm.counter(0x3F8))
            client = scene.client()
            time.sleep(generator.uniform(0, 0.05))
            act(scene, client)
            client.communicate(timeout=40)
            if scene.daemon.process.poll() is not None:
                scene.restart()
            _check(scene, lost=act is kill_worker)
        with scene.host() as host:
            for guest in host.guests():
                host.delete_guest(guest.guest_id, confirm=True)
            assert not host.guests()
        until = time.monotonic() + 10
        while scene.workers() and time.monotonic() < until:
            time.sleep(0.05)
        assert scene.workers() == []


def _check(scene: Scene, *, lost: bool) -> None:
    """The guest is what it must be, and either goes on where it stood or is replaced."""
    expected = ("lost",) if lost else ("paused",)
    with scene.host() as host:
        until = time.monotonic() + 15
        while (state := host.guest(scene.guest).state) not in expected:
            assert time.monotonic() < until, state
            time.sleep(0.02)
        if lost:
            with pytest.raises(SevError):
                host.run_guest(scene.guest)
            host.delete_guest(scene.guest, confirm=True)
            scene.guest = ""
            return
        with host.run_guest(scene.guest, posted_writes=8) as run:
            for _ in range(20):
                found = next(run)
                assert isinstance(found.what, PortWrite)
                assert found.what.data[0] == found.sequence - 1 & 0xFF
                run.complete(found)
