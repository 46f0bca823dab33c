"""Worker processes: started, kept ready, and found again by a daemon that starts anew.

Each worker has a folder of its own with a random name: `sock`, where it listens, and `guest.json`, which tells whose
guest it has. A folder without the latter belongs to a guest that never came to be.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from sev.errors import InternalError, LimitReached, MalformedInput, RefusedError, SevError
from sev.records import record
from sevd.guests import remains
from sevd.guests.port import Card, Found, GuestMachine, Progress
from sevd.guests.worker_machine import Worker, WorkerMachine, dial, readable
from sevd.worker import notes, wire
from sevd.worker.guest import CARD, boot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping


START_SECONDS = 30.0
"""Seconds that a worker has to start: an interpreter on a machine that is very busy."""

BUSY_SECONDS = 1.0
"""Seconds that a worker has to answer a daemon that starts; one that does not is in the middle of something."""

LOOK_SECONDS = 0.2
"""How long one look at such a worker takes."""

LATE_SECONDS = 110.0
"""Seconds that it has then: the kernel's driver gives a firmware command up after 100 s."""

ANSWER_SECONDS = 10.0
"""Seconds that a worker of an earlier daemon has to answer; one that does not is of no use any more."""

DESCRIPTORS = 8
"""Descriptors that must be free before a worker is looked for: without them its guest would be taken for lost."""

_GONE = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ENOTDIR, errno.ECONNRESET, errno.EPIPE})
"""What connecting to the socket of a worker that has ended answers."""

TAKEN_RUNS = 1 << 18
"""Most separate address ranges that are believed to have been measured."""

_FULL = "Raise LimitNOFILE= of the daemon's unit (ulimit -n): each guest takes about five descriptors."
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
        self._busy: list[_Busy] = []

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
        try:
            threading.Thread(target=self._start_spare, args=(future,), name="sevd-spare", daemon=True).start()
        except RuntimeError as error:  # no thread is to be had: the next guest starts its own
            future.set_exception(LimitReached(f"no worker can be kept ready: {error}"))

    def watch(self, machine: GuestMachine, lost: Callable[[str], None]) -> None:
        """Calls `lost` if the machine's process ends without having been told."""
        assert isinstance(machine, WorkerMachine)
        machine.watch(lost)

    def find(self) -> Iterator[Found]:
        """The guests of an earlier daemon, in the order of their creation; what is left of others is removed."""
        found = [one for folder in sorted(self._folder.iterdir()) if (one := self._look(folder)) is not None]
        yield from sorted(found, key=lambda one: one.card.create_time)

    def awaited(self) -> Collection[Card]:
        """The guests of workers that did not answer `find`."""
        return [busy.card for busy in self._busy]

    def find_late(self) -> Iterator[Found]:
        """The guests of workers that did not answer `find`, as they do; what does not in LATE_SECONDS is killed."""
        until = time.monotonic() + LATE_SECONDS
        while self._busy and not self._closed:
            patient = time.monotonic() < until
            for busy in list(self._busy):
                if readable(busy.worker.sock.fileno(), LOOK_SECONDS) or not patient:
                    self._busy.remove(busy)
                    if (found := self._adopt(busy.folder, busy.worker, busy.machine)) is not None:
                        yield found
        for busy in self._busy:
            busy.machine.leave()
        self._busy.clear()

    def forget(self, owner: str, guest_id: str) -> None:
        """Removes what tells of a guest that was lost."""
        for folder in self._folder.iterdir():
            with contextlib.suppress(OSError, ValueError, RecursionError, SevError):
                document = remains.read(folder)
                if remains.LOST in document and (document["owner"], document["guest_id"]) == (owner, guest_id):
                    shutil.rmtree(folder, ignore_errors=True)

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
        except Exception as error:  # whoever waits for it must hear of it
            log.exception("no worker can be kept ready")
            future.set_exception(InternalError(f"unexpected {type(error).__name__}"))

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
        try:
            worker = self._spawn()
        except OSError as error:
            what = f"a worker process cannot be started: {os.strerror(error.errno or 0)}"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise LimitReached(what, errno=error.errno, remedy=_FULL) from None
            raise RefusedError(what, errno=error.errno) from None
        worker.sock.settimeout(START_SECONDS)
        try:
            wire.ask(worker.sock, self._settings)
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

    def _spawn(self) -> Worker:
        """The process, and our end of its socket. Raises OSError; nothing is left then."""
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(ours.close)
            with theirs:
                child = subprocess.Popen(  # noqa: S603 # this very interpreter, and a number
                    [sys.executable, "-I", "-m", self._module, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            stack.callback(child.wait)  # it ends with our end of the socket, which is closed by then
            stack.callback(child.kill)
            pidfd = os.pidfd_open(child.pid)
            stack.pop_all()
            return Worker(ours, child.pid, pidfd, child)

    def _look(self, folder: Path) -> Found | None:
        """The guest in a folder; None if there is none, and then the folder is gone.

        What a worker says is checked: since its guest ran, it may not be ours any more. Whose guest it is stands in
        the folder, where the worker itself can write nothing since then.

        Raises:
            LimitReached: This process has too few descriptors left to tell.
        """
        _check_room()
        try:
            sock = dial(folder, "command", ANSWER_SECONDS)
        except RefusedError as error:
            if error.errno in _GONE:
                return self._left(folder)
            log.error("%s: the worker there cannot be asked, its guest is left alone: %s", folder, error.message)
            return None
        pid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        try:
            worker = Worker(sock, pid, os.pidfd_open(pid), None)
        except OSError:
            sock.close()
            return self._left(folder)
        machine = WorkerMachine(worker, folder)
        with contextlib.suppress(OSError):  # one that is gone has an end to read
            wire.send(sock, {"op": "describe"})
        if not readable(sock.fileno(), BUSY_SECONDS):
            with contextlib.suppress(OSError, ValueError, RecursionError, SevError):
                card = notes.card_from(remains.read(folder))
                self._busy.append(_Busy(folder, worker, machine, card))
                log.warning("the worker process %d is busy, its guest is taken over when it answers", pid)
                return None
        return self._adopt(folder, worker, machine)

    def _adopt(self, folder: Path, worker: Worker, machine: WorkerMachine) -> Found | None:
        """The guest of a worker that was asked to describe it; its guest as one that is lost if it makes no sense."""
        pid = worker.pid
        try:
            worker.sock.settimeout(ANSWER_SECONDS)
            answer = _answer(worker.sock)
            card = notes.card_from(remains.read(folder))
            progress = notes.progress_from(wire.table(answer, "progress"), _taken(worker))
            machine.adopt(card)
        except notes.NewerCard as error:
            log.error("the worker process %d is left alone: %s", pid, error)
            machine.leave()
            return None
        except (OSError, ValueError, RecursionError, SevError) as error:
            if isinstance(error, FileNotFoundError):
                log.info("the worker process %d was to end with its guest: it is killed", pid)
            else:
                log.error("the worker process %d is of no use, it is killed: %s", pid, error)
            worker.kill()
            machine.leave()
            return self._left(folder, "its worker process was of no use any more, and was killed")
        return Found(card, progress, machine)

    def _left(self, folder: Path, killed: str = "") -> Found | None:
        """What a worker that is gone left: its guest, if it had one. `killed` says why it did not end by itself."""
        try:
            document = remains.read(folder)
            same_boot = document.get("boot") == boot_id()
            reason = (
                document.get(remains.LOST)
                or killed
                or (
                    "its worker process ended while no daemon watched it"
                    if same_boot
                    else "the machine was started again, and its guests ended"
                )
            )
            found = Found(notes.card_from(document), Progress(), None, str(reason))
        except notes.NewerCard as error:
            log.error("%s is left as it is: %s", folder / CARD, error)
            return None
        except FileNotFoundError:
            pass  # it never came to be
        except (OSError, ValueError, AttributeError, RecursionError, SevError) as error:
            log.error("%s cannot be read, its guest is unknown: %s", folder / CARD, error)
        else:
            remains.keep(folder, found.reason)
            return found
        shutil.rmtree(folder, ignore_errors=True)
        return None


@record
class _Busy:
    """A worker that has not answered yet.

    Attributes:
        folder: Its folder.
        worker: Its process.
        machine: Its machine, not adopted yet.
        card: Whose guest it has.
    """

    folder: Path
    worker: Worker
    machine: WorkerMachine
    card: Card


def _answer(sock: socket.socket) -> dict[str, object]:
    """The answer to what was sent. Raises OSError, and what the worker answers."""
    answer, strange = wire.receive(sock)
    wire.close_all(strange)
    if "error" in answer:
        raise wire.error_from(answer["error"])
    return answer


def _check_room() -> None:
    """Raises LimitReached unless some descriptors are free."""
    with contextlib.ExitStack() as held:
        try:
            for _ in range(DESCRIPTORS):
                held.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise LimitReached(
                f"the guests of an earlier daemon cannot be taken over: {os.strerror(error.errno or 0)}",
                errno=error.errno,
                remedy=_FULL,
            ) from None


def _taken(worker: Worker) -> tuple[tuple[int, int], ...]:
    """All address ranges that updates took.

    Raises:
        MalformedInput: They are not in order, or far too many.
    """
    out: list[tuple[int, int]] = []
    more = True
    while more:
        end = out[-1][1] if out else -1
        answer = worker.ask({"op": "taken", "from": max(end, 0)}, seconds=ANSWER_SECONDS)
        runs = wire.runs(answer, "runs", 2)
        for first, last in runs:
            if not end < first < last:
                raise MalformedInput(f"runs: 0x{first:x} to 0x{last:x} after 0x{end:x}", field="runs")
            out.append((first, last))
            end = last
        more = answer.get("more") is True and bool(runs)
        if len(out) > TAKEN_RUNS:
            raise MalformedInput(f"runs: more than {TAKEN_RUNS}", field="runs")
    return tuple(out)


def _dismiss(worker: Worker) -> None:
    """Ends a worker without a guest: it ends with its connection."""
    worker.sock.close()
    if not worker.ended(START_SECONDS):
        worker.kill()
    worker.close()
