"""One run connection on the worker's side: requests in, exits and states out."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
import threading

from sev.errors import InternalError, MalformedInput, SevError, UsageError
from sevd.worker.run_wire import ERROR, NO_CONTROL, POSTED_WRITES, REQUEST, START, STATE, decode_request
from sevd.worker.wire import PACKET_BYTES, error_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sevd.worker.vcpu_runner import Runner
    from sevd.worker.vcpus import Vcpus

WAIT_MS = 50
"""How often a send that finds no room looks whether it is still wanted."""

PART_SECONDS = 2.0
"""How long the other side may take to hang up after the last word."""

log = logging.getLogger(__name__)


class RunLink:
    """The connection. `send` and `tell` from any thread.

    Attributes:
        posted_writes: How many writes a vCPU may be ahead of their completion.
    """

    def __init__(self, sock: socket.socket, posted_writes: int) -> None:
        self._sock = sock
        self._open = True
        self._lock = threading.Lock()
        self.posted_writes = posted_writes

    def send(self, packet: bytes, runner: Runner) -> bool:
        """Sends an exit; False if the link is gone, or the runner is to park before there was room."""
        return self._send(packet, runner)

    def tell(self, vcpus: Vcpus) -> None:
        """Sends the state."""
        with self._lock:  # a state that was read first goes out first
            body = {"state": vcpus.state, "reason": vcpus.reason, "failed": vcpus.failed}
            self._send(STATE + json.dumps(body).encode(), None)

    def refuse(self, error: SevError) -> None:
        """Sends an error; the connection ends with it."""
        self._send(ERROR + json.dumps(error_document(error)).encode(), None)

    def end(self) -> None:
        """Nothing goes out any more."""
        self._open = False

    def _send(self, packet: bytes, runner: Runner | None) -> bool:
        while self._open:
            try:
                self._sock.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if runner is not None and runner.parking:
                    return False
                waiter = select.poll()
                waiter.register(self._sock, select.POLLOUT)
                waiter.poll(WAIT_MS)
            except OSError:
                self._open = False
            else:
                return True
        return False


def serve(sock: socket.socket, vcpus: Vcpus) -> None:
    """Serves a run connection whose first message (its role) was read; returns when it has ended.

    Whatever ends it, the guest pauses. The socket stays the caller's to close.
    """
    link = RunLink(sock, 0)
    try:
        first = _packet(sock)
        if first is None:
            return
        if first[:1] != START or len(first) != 5:
            raise MalformedInput("a run begins with START and a u32", field="start")
        link.posted_writes = int.from_bytes(first[1:], "little")
        if link.posted_writes > POSTED_WRITES:
            raise UsageError(
                f"posted_writes: {link.posted_writes}, expected at most {POSTED_WRITES}", field="posted_writes"
            )
        vcpus.attach(link)
        while (packet := _packet(sock)) is not None:
            if packet[:1] != REQUEST:
                raise MalformedInput(f"a packet of kind {packet[:1]!r}, expected a request", field="request")
            completions, control = decode_request(packet[1:])
            vcpus.complete(completions)
            if control != NO_CONTROL:
                vcpus.control(control)
    except SevError as error:
        link.refuse(error)
    except Exception as error:
        log.exception("a run failed")
        link.refuse(InternalError(f"unexpected {type(error).__name__} in the worker"))
    finally:
        link.end()
        vcpus.detach(link)


def start(sock: socket.socket, vcpus: Vcpus) -> None:
    """The same on a thread of its own, which closes the socket at the end."""

    def work() -> None:
        with sock:
            sock.setblocking(True)
            serve(sock, vcpus)
            _part(sock)

    threading.Thread(target=work, name="run", daemon=True).start()


def _part(sock: socket.socket) -> None:
    """Leaves the last word to be read: a socket closed with something unread takes it back."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(PART_SECONDS)
        while sock.recv(PACKET_BYTES):
            pass


def _packet(sock: socket.socket) -> bytes | None:
    """The next packet; None at the end."""
    try:
        return sock.recv(PACKET_BYTES) or None
    except OSError:
        return None
