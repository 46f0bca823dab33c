"""Worker processes: started, kept ready, and found again by a daemon that starts anew.

Each worker has a folder of its own with a random name: `sock`, where it listens, and `guest.json`, which tells whose
guest it has. A folder without the latter belongs to a guest that never came to be.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from sev.errors import RefusedError, SevError
from sevd.guests.port import Found, GuestMachine, Progress
from sevd.guests.worker_machine import Worker, WorkerMachine, dial
from sevd.worker import notes, wire
from sevd.worker.guest import CARD, boot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


START_SECONDS = 30.0
"""Seconds that a worker has to start: an interpreter on a machine that is very busy."""

ANSWER_SECONDS = 10.0
"""Seconds that a worker of an earlier daemon has to answer; one that does not is of no use any more."""

_CARD_BYTES = 64 << 10
_CREDENTIALS = struct.Struct("=iII")

log = logging.getLogger(__name__)


class Workers:
    """Machines in worker processes (sevd.guests.port.Machines).

    Args:
        folder: Where the workers' folders are: a directory that nobody else can enter.
        sev_path: The SEV device.
        kvm_path: The KVM device.
        module: What is started as a worker.
        settings: Further settings for it.
    """

    outlive = True

    def __init__(
        self,
        folder: Path,
        *,
        sev_path: str,
        kvm_path: str,
        module: str = "sevd.worker",
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._folder = folder
        self._module = module
        self._settings: dict[str, object] = {"sev": sev_path, "kvm": kvm_path, **(settings or {})}
        self._lock = threading.Lock()
        self._spare: Future[Worker] | None = None
        self._closed = False

    def make(self) -> GuestMachine:
        """A machine to be created, in the worker that was kept ready, or else in a new one.

        Once it is created, the next worker is made ready: not before, since that would slow this one down.

        Raises:
            RefusedError: It does not start.
        """
        with self._lock:
            spare, self._spare = self._spare, None
        return WorkerMachine(self._ready(spare), self._folder / secrets.token_hex(8), self.prepare)

    def prepare(self) -> None:
        """Starts a worker in the background, for the next guest: an interpreter's start is most of a creation."""
        with self._lock:
            if self._closed or self._spare is not None:
                return
            future = self._spare = Future()
        threading.Thread(target=self._start_spare, args=(future,), name="sevd-spare", daemon=True).start()

    def watch(self, machine: GuestMachine, lost: Callable[[str], None]) -> None:
        """Calls `lost` if the machine's process ends without having been told."""
        assert isinstance(machine, WorkerMachine)
        machine.watch(lost)

    def find(self) -> Iterator[Found]:
        """The guests of an earlier daemon, in the order of their creation; what is left of others is removed."""
        found = [one for folder in sorted(self._folder.iterdir()) if (one := self._look(folder)) is not None]
        yield from sorted(found, key=lambda one: one.card.create_time)

    def close(self) -> None:
        """Ends the worker that was kept ready."""
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, None
        if spare is not None:
            with contextlib.suppress(SevError):
                _dismiss(spare.result())

    def _start_spare(self, future: Future[Worker]) -> None:
        try:
            future.set_result(self._start())
        except SevError as error:
            future.set_exception(error)

    def _ready(self, spare: Future[Worker] | None) -> Worker:
        if spare is not None:
            with contextlib.suppress(SevError):
                worker = spare.result()  # one that is on its way is there before one that is started now
                if not worker.ended(0):
                    return worker
                log.warning("the worker that was kept ready is gone: %s", worker.reason())
                worker.close()
        return self._start()

    def _start(self) -> Worker:
        """A new worker, ready for its guest."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                child = subprocess.Popen(  # noqa: S603 # this very interpreter, and a number
                    [sys.executable, "-I", "-m", self._module, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise RefusedError(
                    f"a worker process cannot be started: {os.strerror(error.errno or 0)}", errno=error.errno
                ) from None
        worker = Worker(ours, child.pid, os.pidfd_open(child.pid), child)
        ours.settimeout(START_SECONDS)
        try:
            wire.call(ours, self._settings)
        except OSError:
            worker.kill()
            reason = worker.reason()
            worker.close()
            raise RefusedError(
                f"a worker process does not start: {reason}", remedy="Look in the daemon's log for what it said."
            ) from None
        except SevError:
            _dismiss(worker)
            raise
        return worker

    def _look(self, folder: Path) -> Found | None:
        """The guest in a folder; None if there is none, and then the folder is gone."""
        try:
            sock = dial(folder, "command", ANSWER_SECONDS)
        except RefusedError:
            return self._left(folder)
        pid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        try:
            worker = Worker(sock, pid, os.pidfd_open(pid), None)
        except OSError:
            sock.close()
            return self._left(folder)
        machine = WorkerMachine(worker, folder)
        try:
            answer, _ = worker.call({"op": "describe"}, seconds=ANSWER_SECONDS)
            progress = notes.progress_from(wire.table(answer, "progress"), _taken(worker))
            card = notes.card_from(wire.table(answer, "card"))
            machine.adopt()
        except SevError as error:
            log.error("the worker process %d is of no use, it is killed: %s", pid, error.message)
            worker.kill()
            machine.leave()
            return self._left(folder)
        return Found(card, progress, machine)

    def _left(self, folder: Path) -> Found | None:
        """What a worker that is gone left: its guest, if it had one."""
        found: Found | None = None
        try:
            with (folder / CARD).open("rb") as file:
                document = json.loads(file.read(_CARD_BYTES))
            same_boot = document.get("boot") == boot_id()
            reason = (
                "its worker process ended while no daemon watched it"
                if same_boot
                else "the machine was started again, and its guests ended"
            )
            found = Found(notes.card_from(document), Progress(), None, reason)
        except FileNotFoundError:
            pass  # it never came to be
        except (OSError, ValueError, AttributeError, RecursionError, SevError) as error:
            log.error("%s cannot be read, its guest is unknown: %s", folder / CARD, error)
        shutil.rmtree(folder, ignore_errors=True)
        return found


def _taken(worker: Worker) -> tuple[tuple[int, int], ...]:
    """All address ranges that updates took."""
    out: list[tuple[int, int]] = []
    more = True
    while more:
        answer, _ = worker.call({"op": "taken", "from": out[-1][1] if out else 0}, seconds=ANSWER_SECONDS)
        out += [(run[0], run[1]) for run in wire.runs(answer, "runs", 2)]
        more = answer.get("more") is True
    return tuple(out)


def _dismiss(worker: Worker) -> None:
    """Ends a worker without a guest: it ends with its connection."""
    worker.sock.close()
    if not worker.ended(START_SECONDS):
        worker.kill()
    worker.close()
