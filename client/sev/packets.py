"""Messages on the machine itself: one JSON object in one packet of a SOCK_SEQPACKET socket, descriptors beside it.

Descriptors travel with it (SCM_RIGHTS). Bytes are hexadecimal text. What failed comes back as `{"error": {…}}`, and
`call` raises the same class of sev.errors with the same fields.
"""

from __future__ import annotations

import array
import json
import os
import socket

from sev.errors import MAX_WAIT_SECONDS, InternalError, MalformedInput, SevError, from_reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PACKET_BYTES = 128 << 10
"""Largest message."""

DESCRIPTORS = 8
"""Most descriptors with one message."""

_FLAGS = socket.MSG_CMSG_CLOEXEC | socket.MSG_NOSIGNAL


class Closed(ConnectionError):
    """The other side is gone."""


def send(sock: socket.socket, message: dict[str, object], fds: Sequence[int] = ()) -> None:
    """Sends one message.

    Raises:
        InternalError: It is too large, or has too many descriptors.
        Closed: The other side is gone.
        BlockingIOError: The socket does not wait, and has no room.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > PACKET_BYTES or len(fds) > DESCRIPTORS:
        raise InternalError(f"a message of {len(data)} bytes and {len(fds)} descriptors is too large for its socket")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
        raise Closed("the other side is gone") from None


def receive(sock: socket.socket) -> tuple[dict[str, object], list[int]]:
    """The next message, with the descriptors that came with it: close-on-exec, and the caller's to close.

    Raises:
        Closed: The other side is gone.
        MalformedInput: It is no JSON object, or was cut off; its descriptors were closed.
        BlockingIOError: The socket does not wait, and nothing is there.
        TimeoutError: The socket's timeout passed.
    """
    room = socket.CMSG_SPACE(DESCRIPTORS * 4)
    try:
        data, rights, flags, _ = sock.recvmsg(PACKET_BYTES, room, _FLAGS)
    except ConnectionResetError:
        raise Closed("the other side is gone") from None
    fds = array.array("i")
    for level, kind, content in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    try:
        if not data:
            raise Closed("the other side is gone")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise MalformedInput(f"a message was cut off: expected at most {PACKET_BYTES} bytes", field="message")
        return _decode(data), list(fds)
    except BaseException:
        close_all(fds)
        raise


def call(
    sock: socket.socket, message: dict[str, object], fds: Sequence[int] = ()
) -> tuple[dict[str, object], list[int]]:
    """Sends a request and waits for its answer.

    Raises:
        SevError: What the other side answered.
        Closed: It is gone.
    """
    send(sock, message, fds)
    answer, received = receive(sock)
    error = answer.get("error")
    if error is not None:
        close_all(received)
        raise error_from(error)
    return answer, received


def ask(sock: socket.socket, message: dict[str, object]) -> dict[str, object]:
    """The same where an answer has no descriptors: those that come all the same are closed. Raises as `call`."""
    answer, received = call(sock, message)
    close_all(received)
    return answer


def close_all(fds: Sequence[int]) -> None:
    """Closes descriptors."""
    for fd in fds:
        os.close(fd)


def error_document(error: SevError) -> dict[str, object]:
    """An error as it travels; `error_from` makes it again."""
    return {
        "reason": error.reason,
        "message": error.message,
        "remedy": error.remedy,
        "field": error.field,
        "command": error.command,
        "firmware_status": error.firmware_status,
        "errno": error.errno,
        "request_id": error.request_id,
        "metadata": error.metadata,
        "retry_after": error.retry_after,
    }


def error_from(document: object) -> SevError:
    """The error that a document describes. What is missing or of another type is left out."""
    found = document if isinstance(document, dict) else {}

    def text(name: str) -> str:
        value = found.get(name)
        return value if isinstance(value, str) else ""

    def number(name: str) -> int | None:
        value = found.get(name)
        return value if isinstance(value, int) else None

    metadata, wait = found.get("metadata"), found.get("retry_after")
    error = _blank(from_reason(text("reason")))
    SevError.__init__(
        error,
        text("message") or "the worker failed and does not say how",
        remedy=text("remedy"),
        field=text("field"),
        command=text("command"),
        firmware_status=number("firmware_status"),
        errno=number("errno"),
        request_id=text("request_id"),
        metadata={str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else None,
        retry_after=float(wait) if isinstance(wait, (int, float)) and 0 <= wait < MAX_WAIT_SECONDS else None,
    )
    return error


def whole(message: dict[str, object], name: str) -> int:
    """A whole number of a message. Raises MalformedInput."""
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MalformedInput(f"{name}: {value!r:.40}, expected a whole number", field=name)
    return value


def text(message: dict[str, object], name: str) -> str:
    """A text of a message. Raises MalformedInput."""
    value = message.get(name)
    if not isinstance(value, str):
        raise MalformedInput(f"{name}: {value!r:.40}, expected a text", field=name)
    return value


def octets(message: dict[str, object], name: str) -> bytes:
    """Bytes of a message, which are hexadecimal text there. Raises MalformedInput."""
    try:
        return bytes.fromhex(text(message, name))
    except ValueError:
        raise MalformedInput(f"{name}: expected hexadecimal digits", field=name) from None


def table(message: dict[str, object], name: str) -> dict[str, object]:
    """An object of a message. Raises MalformedInput."""
    value = message.get(name)
    if not isinstance(value, dict):
        raise MalformedInput(f"{name}: {value!r:.40}, expected an object", field=name)
    return value


def runs(message: dict[str, object], name: str, width: int) -> list[tuple[int, ...]]:
    """A list of lists of `width` whole numbers. Raises MalformedInput."""
    value = message.get(name)
    good = isinstance(value, list) and all(
        isinstance(one, list) and len(one) == width and all(isinstance(n, int) for n in one) for one in value
    )
    if not good or not isinstance(value, list):
        raise MalformedInput(f"{name}: expected lists of {width} whole numbers", field=name)
    return [tuple(one) for one in value]


def _blank(kind: type[SevError]) -> SevError:
    """An instance whose own constructor, which may want other arguments, was not called."""
    return kind.__new__(kind)


def _decode(data: bytes) -> dict[str, object]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise MalformedInput("a message is no JSON object", field="message")
    return message
