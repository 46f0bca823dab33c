"""Pages of a guest on its way, between the daemon and its worker: in a memfd that goes with the daemon's message.

Each page takes a row: 4096 bytes, then its header in 64. The message tells how many rows there are, their addresses and
how long their headers are.
"""

from __future__ import annotations

import os

from sev.errors import InternalError, MalformedInput
from sevd.guests.model import PAGE
from sevd.guests.sev_travel import Carried
from sevd.worker import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ROOM = 64
MOST = 1024
"""Pages of one message."""

_ROW = PAGE + ROOM
_PIECES = 512
"""Pages of one system call: two pieces each, of which Linux takes 1024."""


def put(fd: int, pages: Sequence[Carried]) -> list[list[int]]:
    """Writes pages from the file's start on; answers what the message says of them: [address, bytes of header] each.

    Raises:
        InternalError: The file does not take them all.
        OSError: It takes none.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    for at in range(0, len(pages), _PIECES):
        group = pages[at : at + _PIECES]
        parts = [part for one in group for part in (one.data, one.header.ljust(ROOM, b"\0"))]
        if os.writev(fd, parts) != len(group) * _ROW:
            raise InternalError("the memory for pages on their way is too small")
    return [[one.gpa, len(one.header)] for one in pages]


def get(fd: int, message: dict[str, object]) -> list[Carried]:
    """The pages of a message that came with a file.

    Raises:
        MalformedInput: It does not say what they are, or they are not there.
    """
    rows = wire.runs(message, "pages", 2)
    if len(rows) > MOST or any(gpa < 0 or not 0 <= header <= ROOM for gpa, header in rows):
        raise MalformedInput(f"pages: expected at most {MOST} addresses, each with the size of a header", field="pages")
    os.lseek(fd, 0, os.SEEK_SET)
    data = bytearray(len(rows) * _ROW)
    left = memoryview(data)
    while left:
        count = os.readv(fd, [left])
        if not count:
            raise MalformedInput(
                f"pages: {len(rows)} pages were said to come, and {len(left)} bytes lack", field="pages"
            )
        left = left[count:]
    out = []
    for index, (gpa, header) in enumerate(rows):
        at = index * _ROW
        out.append(Carried(gpa, bytes(data[at + PAGE : at + PAGE + header]), bytes(data[at : at + PAGE])))
    return out
