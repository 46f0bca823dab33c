"""Serves a tree of nodes at a mount point: threads that read requests from /dev/fuse and write the answers.

There is always a thread left to read the next request, up to a limit: an operation that hangs (a firmware command
whose processor does not answer) holds up nobody who does not need the same thing.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sev.errors import KernelError
from sevd.simulator.fuse import mount, wire
from sevd.simulator.fuse.nodes import Caller, Directory
from sevd.simulator.fuse.operations import Operations

log = logging.getLogger(__name__)

THREADS_MAX = 128
IDLE_MAX = 4
"""Threads that wait for requests; one that is through with its request and finds so many others waiting ends."""
_ENDED = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})
_AGAIN = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOENT})


class FileServer:
    """One mount and the threads that answer for it.

    Args:
        target: A directory: an absolute path without symbolic links.
        root: What appears there.

    Attributes:
        ended: Called when the mount is gone and nobody has closed it; on one of the server's threads.
    """

    def __init__(self, target: Path, root: Directory) -> None:
        self.target = target
        self.operations = Operations(root)
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._descriptor = -1
        self._closing = False
        self.ended: Callable[[], None] | None = None

    def start(self) -> None:
        """Mounts and begins to answer; the files are there when this returns.

        Raises:
            CannotServeFiles, NotPermitted, KernelError: See sevd.simulator.fuse.mount.
        """
        self._descriptor = mount.mount(self.target)
        try:
            self._greet()
        except BaseException:
            mount.unmount_quietly(self.target)
            os.close(self._descriptor)
            raise
        with self._lock:
            self._spawn()

    def device(self) -> int:
        """The device number (st_dev) of the mount."""
        return os.stat(self.target).st_dev

    def close(self, seconds: float = 2.0) -> None:
        """Unmounts, lets go of every open file, and ends the threads; once more does nothing.

        What others still have open, or mounted elsewhere, answers ENOTCONN from then on; an operation that hangs is
        given up, and its caller gets ECONNABORTED.
        """
        if self._descriptor < 0 or self._closing:
            return
        root = self._open_root()
        self._closing = True
        mount.unmount_quietly(self.target)
        if root >= 0:
            threading.Thread(target=self._wake, args=(root,), name="fuse-wake", daemon=True).start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with self._lock:
                waiting, working = self._idle, len(self._threads) - self._idle
            if not waiting and (not working or time.monotonic() > until - seconds / 2):
                break
            time.sleep(0.001)
        if not waiting:
            self._disconnect()
        self.operations.handles.clear()

    def _open_root(self) -> int:
        """A descriptor of the mount's root, through which the threads are woken; -1 if it was taken away already."""
        if mount.FILE_SYSTEM not in mount.mounts(self.target):
            return -1
        return os.open(self.target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _wake(self, root: int) -> None:
        """Sends requests until no thread waits for one: a thread that has answered sees that it is to end.

        A request that finds no thread any more ends when the descriptor of /dev/fuse does.
        """
        try:
            while self._idle:
                os.fstatvfs(root)
        except OSError:
            return  # ECONNABORTED: there was no thread for it
        finally:
            os.close(root)

    def _disconnect(self) -> None:
        """Gives the descriptor of /dev/fuse up, which ends all that is under way.

        No thread reads from it any more. The number stays taken, by /dev/null, for one that works still and will want
        to write its answer.
        """
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, self._descriptor, inheritable=False)
        os.close(null)
        with self._lock:
            ended = not self._threads
        if ended:
            os.close(self._descriptor)
            self._descriptor = -1

    def _greet(self) -> None:
        """The first exchange, INIT: who speaks which version."""
        for _ in range(2):
            data = memoryview(os.read(self._descriptor, wire.READ_BUFFER))
            _, opcode, unique, *_ = wire.HEADER.unpack_from(data)
            major, minor, readahead, offered = wire.INIT_IN.unpack_from(data, wire.HEADER.size)
            if opcode != wire.INIT or major < wire.MAJOR or (major, minor) < (wire.MAJOR, wire.MINOR_MIN):
                self._write(unique, errno.EPROTO, b"")
                raise KernelError(
                    errno.EPROTO, command="FUSE_INIT", message=f"the kernel speaks FUSE {major}.{minor}: 7.12 is needed"
                )
            if major == wire.MAJOR:
                self._write(unique, 0, wire.init_out(minor, readahead, offered))
                return
            # A newer kernel comes down to our version when it hears it.
            self._write(unique, 0, struct.pack("=II", wire.MAJOR, wire.MINOR) + bytes(56))
        raise KernelError(errno.EPROTO, command="FUSE_INIT")

    def _spawn(self) -> None:
        """One more thread, which counts as waiting; the lock is held."""
        thread = threading.Thread(target=self._serve, name="fuse", daemon=True)
        self._threads.add(thread)
        self._idle += 1
        thread.start()

    def _serve(self) -> None:
        buffer = bytearray(wire.READ_BUFFER)
        view = memoryview(buffer)
        try:
            while True:
                try:
                    size = os.readv(self._descriptor, [buffer])
                except OSError as error:
                    if error.errno in _AGAIN:
                        continue  # the request was taken back before it was read
                    if error.errno not in _ENDED:
                        log.error("/dev/fuse: %s", error)
                    return
                with self._lock:
                    self._idle -= 1
                    if not self._idle and len(self._threads) < THREADS_MAX and not self._closing:
                        self._spawn()
                try:
                    self._request(view[:size])
                finally:
                    with self._lock:
                        self._idle += 1
                        surplus = self._idle > IDLE_MAX
                if surplus or self._closing:
                    return
        finally:
            with self._lock:
                self._idle -= 1
                self._threads.discard(threading.current_thread())
                last = not self._threads and not self._closing
            if last and self.ended is not None:
                self.ended()

    def _request(self, data: memoryview) -> None:
        _, opcode, unique, nodeid, uid, gid, pid, _, _ = wire.HEADER.unpack_from(data)
        error, answer = 0, None
        try:
            answer = self.operations.answer(opcode, nodeid, Caller(pid, uid, gid), data[wire.HEADER.size :])
        except OSError as refused:
            error = refused.errno or errno.EIO
            if error > 511:
                error = errno.EIO  # the header carries no others
        except Exception:
            log.exception("FUSE operation %d failed", opcode)
            error = errno.EIO
        if error or answer is not None:
            self._write(unique, error, answer or b"")

    def _write(self, unique: int, error: int, answer: bytes) -> None:
        reply = wire.REPLY.pack(wire.REPLY.size + len(answer), -error, unique)
        try:
            os.writev(self._descriptor, [reply, answer])
        except OSError as failure:
            # ENOENT: whoever asked is gone; the others: so is the mount.
            if failure.errno not in _ENDED and failure.errno != errno.ENOENT:
                log.error("/dev/fuse does not take an answer: %s", failure)
