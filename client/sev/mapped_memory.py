"""A guest's memory in this process: the very pages that the launch takes, without a copy on the way.

The daemon passes the guest's memfd over `fd.sock`, to the guest's owner alone. What is written here is what a launch
update measures, until it takes the page: from then on the guest has its own.
"""

from __future__ import annotations

import mmap
import os
import socket
from typing import TYPE_CHECKING

from sev import packets
from sev.calls import fresh_id
from sev.errors import MalformedInput, NotPermitted, Unreachable, UsageError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from sev.target import Target


class MappedMemory:
    """Mapped guest memory; close it, or use it as a context manager.

    Args:
        fd: The guest's memfd; taken over.
        layout: (guest physical address, bytes, offset in the memfd) of every range.

    Attributes:
        layout: The same.

    Raises:
        MalformedInput: It cannot be mapped so.
    """

    def __init__(self, fd: int, layout: tuple[tuple[int, int, int], ...]) -> None:
        self.layout = layout
        self._maps: list[tuple[int, int, mmap.mmap]] = []
        try:
            for gpa, size, offset in layout:
                pages = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
                self._maps.append((gpa, size, pages))
        except (OSError, ValueError, OverflowError) as error:
            self.close()
            raise MalformedInput(f"the guest's memory cannot be mapped: {error}", field="layout") from None
        finally:
            os.close(fd)

    def view(self, gpa: int, size: int) -> memoryview:
        """The writable bytes of an address range; release it before `close`. Raises UsageError outside of memory."""
        for start, length, pages in self._maps:
            if size >= 0 and start <= gpa and gpa + size <= start + length:
                return memoryview(pages)[gpa - start : gpa - start + size]
        raise UsageError(f"0x{gpa:x} and {size} bytes are not inside one range of guest memory", field="gpa")

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Writes data at a guest physical address. Raises UsageError outside of memory."""
        with self.view(gpa, len(data)) as target:
            target[:] = data

    def close(self) -> None:
        """Gives the mapping back; once more does nothing. Raises BufferError while a view is in use."""
        while self._maps:
            self._maps[-1][2].close()
            self._maps.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def map_memory(target: Target, guest_id: str, *, timeout: float, request_id: str = "") -> MappedMemory:
    """Asks the daemon for a guest's memory and maps it.

    Args:
        target: The daemon; its descriptor socket lies beside its own (`fd.sock`, or its path and ".fd").
        guest_id: A guest of the caller's own.
        timeout: Seconds to wait for the answer.
        request_id: The id of the call; one is made if empty.

    Raises:
        UsageError: The daemon is not one of this machine.
        Unreachable: It passes no descriptors, or does not answer.
        NotFound, NotPermitted, NotOffered: It refuses.
    """
    if target.path is None:
        raise UsageError(
            f"{target.address}: memory can be mapped on the daemon's own machine only",
            field="socket",
            remedy="Name the daemon by the path of its socket.",
        )
    with _dial(target.path, timeout) as sock:
        try:
            question: dict[str, object] = {"op": "memory", "guest_id": guest_id, "request_id": request_id or fresh_id()}
            answer, fds = packets.call(sock, question)
        except TimeoutError:
            raise Unreachable(f"the daemon does not answer within {timeout:g} s", field="socket") from None
        except OSError:
            raise NotPermitted(
                "the daemon closed the connection: this user may have no descriptors",
                field="socket",
                remedy="Ask for membership of the group that may use this daemon (usually sev).",
            ) from None
    if len(fds) != 1:
        packets.close_all(fds)
        raise MalformedInput(f"the daemon answers with {len(fds)} descriptors, expected one", field="layout")
    try:
        layout = tuple((run[0], run[1], run[2]) for run in packets.runs(answer, "layout", 3))
    except MalformedInput:
        packets.close_all(fds)
        raise
    return MappedMemory(fds[0], layout)


def _dial(path: str, timeout: float) -> socket.socket:
    beside = (f"{path}.fd", os.path.join(os.path.dirname(path), "fd.sock"))
    last = 0
    for name in beside:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(timeout)
        try:
            sock.connect(name)
        except OSError as error:
            sock.close()
            if isinstance(error, PermissionError):
                raise NotPermitted(f"{name}: permission denied", errno=error.errno, field="socket") from None
            last = error.errno or last
        else:
            return sock
    raise Unreachable(
        f"the daemon passes no descriptors: neither {beside[0]} nor {beside[1]} answers ({os.strerror(last)})",
        errno=last,
        field="socket",
    )
