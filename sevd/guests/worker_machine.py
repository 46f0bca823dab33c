"""A guest's machine in a worker process, as the daemon holds it: its socket, its memory mapped, its process watched.

Requests block and run on the device worker. Memory does not: the daemon writes through a mapping of its own, which is
the guest's memory itself, so that nothing is copied twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import mmap
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

from sev.errors import RefusedError, SevError, UsageError
from sev.launch.memory import SEALS, layout
from sevd.guests import remains
from sevd.guests.port import Piece, SharedMemory
from sevd.guests.sev_launch import Measured
from sevd.guests.worker_travel import WorkerTravel
from sevd.worker import notes, wire
from sevd.worker.guest import CARD, DEBUG_BYTES
from sevd.worker.server import PLATFORM_GONE, SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sevd.guests.machine import Finish, KeyRequest
    from sevd.guests.port import Card

ANSWER_SECONDS = 120.0
"""Seconds that a worker has for a step: longer than the slowest firmware command takes to be given up (100 s)."""

ADOPT_SECONDS = 10.0
"""Seconds that a worker of an earlier daemon has to hand its guest's memory over."""

RUN_SECONDS = 10.0
"""Seconds that a worker has to take a run connection."""

END_SECONDS = 120.0
"""Seconds that a worker has to be gone once it ended its guest: a terabyte of memory takes its time to be freed."""

KILL_SECONDS = 5.0
"""Seconds that a killed process has to be gone."""

log = logging.getLogger(__name__)


class Worker:
    """A worker process and the daemon's connection to it.

    Args:
        sock: The connection, blocking.
        pid: Its process id.
        pidfd: A descriptor that pins the process. Ours to close.
        child: The process, where it is a child of this daemon: then its end must be waited for.
    """

    def __init__(self, sock: socket.socket, pid: int, pidfd: int, child: subprocess.Popen[bytes] | None) -> None:
        self.sock = sock
        self.pid = pid
        self.pidfd = pidfd
        self._child = child
        self._lock = threading.Lock()

    def call(
        self, message: dict[str, object], fds: tuple[int, ...] = (), *, seconds: float = ANSWER_SECONDS
    ) -> tuple[dict[str, object], list[int]]:
        """One request. Raises what the worker answers; RefusedError where it is gone, or killed since it is stuck."""
        with self._lock:
            try:
                self.sock.settimeout(seconds)
                return wire.call(self.sock, message, fds)
            except OSError as error:
                if isinstance(error, TimeoutError):
                    log.error("the worker process %d does not answer: it is killed", self.pid)
                    self.kill()
                raise RefusedError(
                    "the guest's worker process is gone",
                    remedy="The guest is lost: delete it and create another one.",
                ) from None

    def ask(
        self, message: dict[str, object], fds: tuple[int, ...] = (), *, seconds: float = ANSWER_SECONDS
    ) -> dict[str, object]:
        """One request whose answer has no descriptors: those that come all the same are closed. Raises as `call`."""
        answer, strange = self.call(message, fds, seconds=seconds)
        wire.close_all(strange)
        return answer

    def ended(self, seconds: float) -> bool:
        """Whether the process ends within so many seconds."""
        return readable(self.pidfd, seconds)

    def kill(self) -> None:
        """Kills it, and waits until it is gone."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if not self.ended(KILL_SECONDS):
            log.error("the worker process %d was killed and does not end", self.pid)

    def reason(self) -> str:
        """Why it ended, as far as that can be told."""
        code = self.reap()
        if code == PLATFORM_GONE:
            return "the simulator ended, and the guest with it"
        if code is not None and code < 0:
            return f"its worker process was killed by {signal.Signals(-code).name}"
        return "its worker process ended" + (f" with code {code}" if code else "")

    def reap(self) -> int | None:
        """Its exit code, where it was our child and has ended."""
        return self._child.poll() if self._child is not None else None

    def close(self) -> None:
        """Gives up what the daemon holds of it; once more does nothing."""
        self.sock.close()
        if self.pidfd >= 0:
            self.reap()
            if self._child is not None and self._child.returncode is None:
                # It outlives this daemon: nothing is to be waited for, and no warning to be given.
                self._child.returncode = 0
            os.close(self.pidfd)
            self.pidfd = -1


def readable(fd: int, seconds: float) -> bool:
    """Whether there is something to read, or the end of it, within so many seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class WorkerMachine:
    """One VM in a worker (sevd.guests.port.GuestMachine).

    Args:
        worker: The process.
        folder: A folder of its own, which need not be there yet.
        created: Called when it was created, or could not be.
    """

    def __init__(self, worker: Worker, folder: Path, created: Callable[[], None] = lambda: None) -> None:
        self._created = created
        self._worker = worker
        self._folder = folder
        self._memory: SharedMemory | None = None
        self._maps: list[tuple[Piece, mmap.mmap]] = []
        self._asid = 0
        self._watch: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._closed = False

    @property
    def asid(self) -> int:
        """The ASID, where the platform tells it."""
        return self._asid

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._worker.pid

    def create(self, card: Card) -> None:
        """Makes the VM with its memory and vCPUs. Whatever fails, nothing is left behind."""
        try:
            os.mkdir(self._folder, 0o700)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with _bound(folder) as listener:
                    request: dict[str, object] = {"op": "create", "card": notes.card_document(card)}
                    self._take(card, *self._worker.call(request, (listener.fileno(), folder)))
            finally:
                os.close(folder)
        except BaseException:
            self.close()
            raise
        finally:
            self._created()

    def adopt(self, card: Card) -> None:
        """Takes the machine of a worker over that has its guest already. Raises SevError."""
        self._take(card, *self._worker.call({"op": "memory"}, seconds=ADOPT_SECONDS))

    def memory(self, gpa: int, size: int) -> memoryview:
        """The writable bytes of an address range. Raises UsageError outside of memory."""
        for piece, pages in self._maps:
            if size >= 0 and piece.gpa <= gpa and gpa + size <= piece.gpa + piece.size:
                return memoryview(pages)[gpa - piece.gpa : gpa - piece.gpa + size]
        raise UsageError(f"0x{gpa:x} and {size} bytes are not inside one region of guest memory", field="gpa")

    def share(self) -> SharedMemory:
        """The guest's memfd and what lies where in it."""
        assert self._memory is not None, "create comes first"
        return self._memory

    def start(self, policy: int, gosvw: bytes, certificate: bytes = b"", session: bytes = b"") -> None:
        """LAUNCH_START."""
        owner: dict[str, object] = {"certificate": certificate.hex(), "session": session.hex()}
        self._worker.ask({"op": "start", "policy": policy, "gosvw": gosvw.hex(), **owner})

    def update(self, gpa: int, size: int, page_type: int) -> None:
        """LAUNCH_UPDATE of whole pages of one type, or of a run of bytes."""
        self._worker.ask({"op": "update", "gpa": gpa, "size": size, "page_type": page_type})

    def measure(self) -> Measured:
        """LAUNCH_MEASURE."""
        answer = self._worker.ask({"op": "measure"})
        return Measured(wire.octets(answer, "measurement"), wire.octets(answer, "digest"))

    def secret(self, gpa: int, header: bytes, payload: bytes) -> None:
        """LAUNCH_SECRET."""
        self._worker.ask({"op": "secret", "gpa": gpa, "header": header.hex(), "payload": payload.hex()})

    def attestation(self, mnonce: bytes) -> bytes:
        """GET_ATTESTATION_REPORT."""
        return wire.octets(self._worker.ask({"op": "attestation", "mnonce": mnonce.hex()}), "report")

    def debug_read(self, gpa: int, size: int) -> bytes:
        """DBG_DECRYPT, so much at a time as fits in an answer."""
        out = bytearray()
        for at in range(0, size, DEBUG_BYTES):
            piece: dict[str, object] = {"gpa": gpa + at, "size": min(DEBUG_BYTES, size - at)}
            out += wire.octets(self._worker.ask({"op": "debug-read", **piece}), "data")
        return bytes(out)

    def debug_write(self, gpa: int, data: bytes) -> None:
        """DBG_ENCRYPT."""
        for at in range(0, len(data), DEBUG_BYTES):
            self._worker.ask({"op": "debug-write", "gpa": gpa + at, "data": data[at : at + DEBUG_BYTES].hex()})

    def finish(self, finish: Finish) -> bytes:
        """LAUNCH_FINISH; answers the launch digest."""
        request: dict[str, object] = {
            "op": "finish",
            "id_block": finish.id_block.hex(),
            "id_auth": finish.id_auth.hex(),
            "author_key_enabled": finish.author_key_enabled,
            "vcek_disabled": finish.vcek_disabled,
            "host_data": finish.host_data.hex(),
        }
        return wire.octets(self._worker.ask(request), "digest")

    def report(self, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
        """Plays the guest: MSG_REPORT_REQ."""
        request: dict[str, object] = {"op": "report", "report_data": report_data.hex(), "vmpl": vmpl}
        request["key_selection"] = key_selection
        return wire.octets(self._worker.ask(request), "report")

    def key(self, request: KeyRequest) -> bytes:
        """Plays the guest: MSG_KEY_REQ."""
        return wire.octets(self._worker.ask({"op": "key", **request._asdict()}), "key")

    @property
    def travel(self) -> WorkerTravel:
        """The guest's way to another host, or from one."""
        return WorkerTravel(self._worker.ask)

    def run_connection(self) -> socket.socket:
        """A connection that runs vCPUs (sevd.worker.vcpus)."""
        return dial(self._folder, "run", RUN_SECONDS)

    def watch(self, lost: Callable[[str], None]) -> None:
        """Calls `lost` on the running event loop if the process ends without `close`."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            self._unwatch()
            if not self._closed:
                lost(self._worker.reason())

        self._watch = loop, self._worker.pidfd
        loop.add_reader(self._worker.pidfd, ended)

    def close(self, lost: str = "") -> None:
        """Ends the VM; returns when the process is gone, and with it everything that it held."""
        if self._closed:
            return
        self._closed = True
        worker = self._worker
        if not lost:
            # First: if this daemon is killed meanwhile, the next one does not take for lost what was to end.
            with contextlib.suppress(OSError):
                os.unlink(self._folder / CARD)
        with contextlib.suppress(RefusedError):
            worker.ask({"op": "end"})
        if not worker.ended(END_SECONDS):
            log.error("the worker process %d does not end its guest: it is killed", worker.pid)
            worker.kill()
        self._let_go()
        if lost:
            remains.keep(self._folder, lost)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def leave(self) -> None:
        """The daemon ends; the worker goes on."""
        self._closed = True
        self._let_go()

    def _take(self, card: Card, answer: dict[str, object], fds: list[int]) -> None:
        """Maps the memory that a worker handed over, once it is sure that nobody can cut it off under this process."""
        try:
            wanted = layout(card.request.memory_bytes, card.request.firmware_bytes)
            good = len(fds) == 1 and wire.runs(answer, "layout", 3) == wanted
            good = good and fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & SEALS == SEALS
            good = good and os.fstat(fds[0]).st_size >= sum(size for _, size, _ in wanted)
            asid = wire.whole(answer, "asid")
        except OSError:
            good = False  # no memfd at all
        except SevError:
            wire.close_all(fds)
            raise
        if not good:
            wire.close_all(fds)
            raise RefusedError("the guest's worker handed over what is not the guest's memory")
        self._asid = asid
        pieces = tuple(Piece(*run) for run in wanted)
        self._memory = SharedMemory(fds[0], pieces)
        for piece in pieces:
            pages = mmap.mmap(
                fds[0], piece.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=piece.offset
            )
            self._maps.append((piece, pages))

    def _let_go(self) -> None:
        maps, self._maps = self._maps, []
        for _, pages in maps:
            with contextlib.suppress(BufferError):  # a write is under way: the mapping goes with its view
                pages.close()
        memory, self._memory = self._memory, None
        if memory is not None:
            os.close(memory.fd)
        watch = self._watch
        if watch is not None and watch[0].is_running():
            # The loop looks at the descriptor: it must have stopped before the number can mean another one.
            watch[0].call_soon_threadsafe(self._forget)
        else:
            self._worker.close()

    def _forget(self) -> None:
        self._unwatch()
        self._worker.close()

    def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch[0].remove_reader(watch[1])


def dial(folder: Path, role: str, seconds: float | None = None) -> socket.socket:
    """A connection to the worker in a folder, its first message sent.

    Raises:
        RefusedError: Nobody is there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(seconds)
        # By way of the directory's descriptor: its path may be longer than a socket's can be.
        directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        finally:
            os.close(directory)
        wire.send(sock, {"role": role})
    except OSError as error:
        sock.close()
        raise RefusedError("the guest's worker process is gone", errno=error.errno) from None
    return sock


def _bound(folder: int) -> socket.socket:
    """A socket bound in a folder that nobody else can enter; the worker is to listen on it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.bind(f"/proc/self/fd/{folder}/{SOCKET}")
        os.chmod(SOCKET, 0o600, dir_fd=folder)
    except BaseException:
        sock.close()
        raise
    return sock
