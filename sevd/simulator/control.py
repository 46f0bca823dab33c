"""The socket beside the simulated device files: KVM for processes elsewhere, and the simulator's own switches.

SOCK_SEQPACKET; each request and each answer is one JSON object in one packet (sev.packets). A connection is one
process of the simulated host: its memory is the peer's (by the process id that connected), its descriptors are numbers
from 1 << 20 on, and when it ends, or the process dies, everything that it held is closed. A VM that another connection
made does not exist for it.

    open {path: "/dev/kvm", flags} → {fd}              ioctl {fd, request, argument} → {result}
    close {fd}                                         discard {fd, offset, size}
    name {fd, guest_id}         digest {fd}            asid {fd}
    report {fd, report_data, vmpl, key_selection}      key {fd, root_key, key_selection, guest_field_select, …}
    vmsa {fd}                   of a vCPU: its save area as it was measured
    memory {fd, change, …}      of an SEV or SEV-ES guest (sevd.simulator.control_memory)
    host {}    committed {}    endorsements {}         what the host says of itself
    fault {spec}    faults {}    power-loss {}         for root, or for the user that runs the simulator
    firmware-update {version, tcb, commit}             the same: another firmware (sevd.simulator.firmware_update)

The answer to KVM_CREATE_GUEST_MEMFD carries a descriptor: the memory itself. A refusal of the kernel is {errno}, any
other is {error: {…}}. What cannot be understood is answered, and harms nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from sev import packets
from sev.abi import kvm
from sev.errors import InternalError, LimitReached, MalformedInput, SevError
from sevd.simulator.control_operations import OPERATIONS, Session
from sevd.simulator.kvm_memory import MemfdFile
from sevd.simulator.process import File, Process
from sevd.simulator.remote import DescriptorsOf, RemoteProcess
from sevd.simulator.simulator import KVM_PATH, SEV_PATH, Simulator

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 1024
BACKLOG = 128
SEND_SECONDS = 10.0
"""How long an answer waits for a peer that does not read."""

SO_PEERPIDFD = 77

_CREDENTIALS = struct.Struct("=iII")


class ControlledProcess(RemoteProcess):
    """The process behind a connection."""

    SHARES_MEMORY = True


class ControlServer:
    """The server of one simulated host.

    Args:
        simulator: The host.
        path: The socket; what lies there is replaced.
        sev: (st_dev, st_ino) of the served `sev` file, to know its descriptors by; None: there is none, and no launch
            finds a secure processor.
        mode: Permission bits of the socket. Who may connect can make VMs, as who may open /dev/kvm.
        gid: Its group; -1: as it comes.
    """

    def __init__(
        self, simulator: Simulator, path: Path, sev: tuple[int, int] | None = None, *, mode: int = 0o666, gid: int = -1
    ) -> None:
        self._simulator = simulator
        self._path = path
        self._mode = mode
        self._gid = gid
        known = DescriptorsOf(sev, simulator.devices[SEV_PATH]) if sev is not None else None
        self._own = _OwnDescriptors(known)
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._connections: set[_Connection] = set()
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Listens, and serves in threads of its own. Raises OSError if the socket cannot be made."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        new = self._path.with_name(f".{self._path.name}.new")
        try:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            # By way of the folder's descriptor: its path may be longer than a socket's can be.
            folder = os.open(new.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                listener.bind(f"/proc/self/fd/{folder}/{new.name}")
            finally:
                os.close(folder)
            os.chown(new, -1, self._gid)
            new.chmod(self._mode)
            listener.listen(BACKLOG)
            new.rename(self._path)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._simulator.on_power_loss(self._drop_guests)
        self._accepting = threading.Thread(target=self._accept, name="control", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Ends every connection, which frees all they hold, and removes the socket; once more does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections)
        if self._listener is not None:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.end()
        if self._accepting is not None:
            self._accepting.join()
        if self._listener is not None:
            self._listener.close()

    def join(self, seconds: float) -> bool:
        """Waits until the connections have freed what they held; False if one still works on a request then."""
        with self._lock:
            connections = list(self._connections)
        return all(connection.join(seconds) for connection in connections)

    def __len__(self) -> int:
        """Connections that are open."""
        with self._lock:
            return len(self._connections)

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if self._closed or error.errno not in (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    return
                threading.Event().wait(0.1)
                continue
            self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        try:
            connection = _Connection(self._simulator, sock, self._own, self._gone)
        except OSError as error:
            log.info("control: a connection was refused: %s", error.strerror)
            sock.close()
            return
        with self._lock:
            full = self._closed or len(self._connections) >= CONNECTIONS_MAX
            if not full:
                self._connections.add(connection)
        if full:
            connection.refuse(LimitReached(f"{CONNECTIONS_MAX} connections to the simulator are open already"))
            return
        connection.start()

    def _gone(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _drop_guests(self) -> None:
        """The power failed: every process of the host that had anything is gone."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            if connection.holds_something:
                connection.end()


class _OwnDescriptors:
    """What a peer's own descriptors are to the model: the `sev` file, or a file of no meaning, or nothing."""

    def __init__(self, known: DescriptorsOf | None) -> None:
        self._known = known

    def __call__(self, pid: int, fd: int) -> File | None:
        found = self._known(pid, fd) if self._known is not None else None
        if found is None and os.path.lexists(f"/proc/{pid}/fd/{fd}"):
            return File()
        return found


class _Connection:
    """One connection, served on a thread of its own."""

    def __init__(
        self,
        simulator: Simulator,
        sock: socket.socket,
        own: Callable[[int, int], File | None],
        gone: Callable[[_Connection], None],
    ) -> None:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(credentials)
        # A process that this one cannot see, or that is gone, cannot be served: its memory is not there.
        self._alive = _pinned(sock, pid)
        try:
            self._image = _image(pid, uid)
        except BaseException:
            os.close(self._alive)
            raise
        self._sock = sock
        self._gone = gone
        devices = {KVM_PATH: simulator.devices[KVM_PATH]}
        self._process: Process = ControlledProcess(pid, devices, own=own, pidfd=self._alive, image=self._image)
        self._session = Session(simulator, self._process, uid)
        self._thread = threading.Thread(target=self._run, name=f"control-{pid}", daemon=True)

    @property
    def holds_something(self) -> bool:
        """It has descriptors open."""
        return bool(self._process.descriptors())

    def start(self) -> None:
        """Serves it."""
        self._thread.start()

    def refuse(self, error: SevError) -> None:
        """Says why it is not served, and closes it."""
        with contextlib.suppress(OSError):
            self._sock.setblocking(False)
            packets.send(self._sock, {"error": packets.error_document(error)})
        self._close()

    def end(self) -> None:
        """Ends it, from any thread. A request that is under way is finished first."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def join(self, seconds: float) -> bool:
        """Waits for its end."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._serve()
        except (OSError, packets.Closed):
            pass  # the peer is gone, or does not read its answers
        except Exception:
            log.exception("control: a connection failed")
        finally:
            try:
                self._process.exit()
            finally:
                self._gone(self)
                self._close()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._alive, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._alive in ready:
                return  # the process died, though another one may have inherited its socket
            try:
                message, fds = packets.receive(self._sock)
            except MalformedInput as error:
                self._answer({"error": packets.error_document(error)})
                continue
            packets.close_all(fds)
            self._answer(*self._reply(message))

    def _reply(self, message: dict[str, object]) -> tuple[dict[str, object], tuple[int, ...]]:
        try:
            answer = self._perform(message)
        except SevError as error:
            return {"error": packets.error_document(error)}, ()
        except OSError as error:
            return {"errno": error.errno or errno.EIO}, ()
        except Exception as error:
            log.exception("control: a request failed")
            return {"error": packets.error_document(InternalError(f"unexpected {type(error).__name__}"))}, ()
        if message.get("op") == "ioctl" and message.get("request") == kvm.KVM_CREATE_GUEST_MEMFD:
            return answer, self._memory_of(answer)
        return answer, ()

    def _perform(self, message: dict[str, object]) -> dict[str, object]:
        name = packets.text(message, "op")
        operation = OPERATIONS.get(name)
        if operation is None:
            raise MalformedInput(f"op: {name!r:.40}, expected one of {', '.join(OPERATIONS)}", field="op")
        return operation(self._session, message)

    def _memory_of(self, answer: dict[str, object]) -> tuple[int, ...]:
        """The memfd of a guest_memfd that was just made."""
        file = self._process.take(packets.whole(answer, "result"))
        try:
            return (file.memory.fd,) if isinstance(file, MemfdFile) else ()
        finally:
            file.drop()

    def _answer(self, message: dict[str, object], fds: tuple[int, ...] = ()) -> None:
        self._sock.settimeout(SEND_SECONDS)
        try:
            packets.send(self._sock, message, fds)
        finally:
            self._sock.settimeout(None)

    def _close(self) -> None:
        self._sock.close()
        for fd in (self._alive, self._image):
            if fd >= 0:
                os.close(fd)
        self._alive = self._image = -1


def _pinned(sock: socket.socket, pid: int) -> int:
    """A descriptor of the process that connected (SO_PEERPIDFD, Linux 6.5; before that of whoever has its number now).

    Raises:
        OSError: It is gone, or cannot be seen.
    """
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    return os.pidfd_open(pid)


def _image(pid: int, uid: int) -> int:
    """The memory of a user's process as it is now: /proc/PID/mem. -1 where the kernel itself keeps this process from
    more than the user may, and for root.

    A process that has connected can still turn into a program with more rights (execve of a set-user-ID file), and have
    another one go on with the connection. What root reads and writes for it must not be that program's memory.

    Raises:
        OSError: It has turned into such a program already, or cannot be looked into.
    """
    if uid == 0 or os.geteuid() != 0:
        return -1
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    if os.stat(f"/proc/{pid}").st_uid != uid:
        os.close(fd)
        raise PermissionError(errno.EACCES, "the peer is no longer the user's who connected")
    return fd
