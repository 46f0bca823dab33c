"""What a tree of served files is made of: directories, files, and handles of opened files.

Everything may be called from several threads at once. A refusal is an OSError with the errno that the caller gets;
any other exception becomes EIO and is logged. A directory should answer the same object for the same name as long as
it means the same file: identity is the inode.
"""

from __future__ import annotations

import errno
import itertools
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sevd.simulator.errnos import fail

_inodes = itertools.count(2)


class Caller(NamedTuple):
    """Who asks.

    Attributes:
        pid: Thread or process id as this process sees it; 0 for one of a PID namespace that it cannot see.
        uid: Effective user id.
        gid: Effective group id.
    """

    pid: int
    uid: int
    gid: int


class Handle:
    """An opened file. The defaults answer as a driver does that lacks the operation."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; empty at the end."""
        del offset, size
        return fail(errno.EINVAL)

    def write(self, offset: int, data: bytes) -> int:
        """Takes bytes; answers how many it took."""
        del offset, data
        return fail(errno.EINVAL)

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        """An ioctl: `argument` as the caller gave it, a value or an address in its memory. Answers the result."""
        del caller, request, argument
        return fail(errno.ENOTTY)

    def flush(self) -> None:
        """A descriptor of the file is closed; the closing process waits for this."""

    def release(self) -> None:
        """The last descriptor was closed. Comes some time after it, exactly once."""


class Node:
    """A file or directory.

    Attributes:
        ino: Inode number: unique in this process, never used again.
        mode: Type and permission bits (st_mode).
        uid: Owner.
        gid: Group.
        size: What stat shows; files are read to their end whatever it says.
        time_ns: When it was made, nanoseconds since 1970.
    """

    is_directory = False

    def __init__(self, mode: int, *, uid: int = 0, gid: int = 0, size: int = 0) -> None:
        self.ino = next(_inodes)
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.time_ns = time.time_ns()

    def change(self, *, mode: int | None, uid: int | None, gid: int | None) -> None:
        """chmod or chown, which the kernel has allowed: permission bits, owner, group; None leaves as it is."""
        if mode is not None:
            self.mode = stat.S_IFMT(self.mode) | stat.S_IMODE(mode)
        if uid is not None:
            self.uid = uid
        if gid is not None:
            self.gid = gid


class Directory(Node):
    """A directory. Subclasses say what is in it."""

    is_directory = True

    def __init__(self, mode: int = 0o755, *, uid: int = 0, gid: int = 0) -> None:
        super().__init__(stat.S_IFDIR | stat.S_IMODE(mode), uid=uid, gid=gid)

    def lookup(self, name: str) -> Node | None:
        """The node of a name; None if there is none."""
        del name
        return None

    def names(self) -> list[str]:
        """All names, without "." and ".."."""
        return []

    def mkdir(self, name: str, mode: int, caller: Caller) -> Node:
        """Makes a directory that does not exist yet; answers it."""
        del name, mode, caller
        return fail(errno.EPERM)

    def rmdir(self, name: str, caller: Caller) -> None:
        """Removes a directory."""
        del name, caller
        fail(errno.EPERM)

    def unlink(self, name: str, caller: Caller) -> None:
        """Removes a file."""
        del name, caller
        fail(errno.EPERM)


class StaticDirectory(Directory):
    """A directory whose entries this process puts and removes."""

    def __init__(self, mode: int = 0o755) -> None:
        super().__init__(mode)
        self._entries: dict[str, Node] = {}
        self._lock = threading.Lock()

    def put(self, name: str, node: Node) -> None:
        """Gives a node a name; another one of that name loses it."""
        with self._lock:
            self._entries[name] = node

    def remove(self, name: str) -> None:
        """Takes a name away; nothing if there is none."""
        with self._lock:
            self._entries.pop(name, None)

    def lookup(self, name: str) -> Node | None:
        """The node of a name."""
        return self._entries.get(name)

    def names(self) -> list[str]:
        """The names in the order in which they were put."""
        with self._lock:
            return list(self._entries)


class FileNode(Node):
    """A file. Subclasses say what opening it gives. It is read and written directly, never through the page cache."""

    def __init__(self, mode: int = 0o444, *, uid: int = 0, gid: int = 0, size: int = 0) -> None:
        super().__init__(stat.S_IFREG | stat.S_IMODE(mode), uid=uid, gid=gid, size=size)

    def open(self, flags: int, caller: Caller) -> Handle:
        """Opens it with flags of open(2); permissions were checked."""
        del flags, caller
        return fail(errno.EACCES)


class _Text(Handle):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class TextFile(FileNode):
    """A file to read, whose content is made when it is opened.

    Args:
        content: Makes it.
        mode: Permission bits.
    """

    def __init__(self, content: Callable[[], bytes], mode: int = 0o444) -> None:
        super().__init__(mode)
        self._content = content

    def open(self, flags: int, caller: Caller) -> Handle:
        """Opens it: the content is that of now."""
        del flags, caller
        return _Text(self._content())


def children(directory: Directory) -> Iterator[tuple[str, Node]]:
    """The entries of a directory; what vanishes meanwhile is left out."""
    for name in directory.names():
        try:
            node = directory.lookup(name)
        except OSError:
            continue
        if node is not None:
            yield name, node
