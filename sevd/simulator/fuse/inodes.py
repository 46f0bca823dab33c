"""Which nodes and open handles the kernel knows, by the numbers it knows them by."""

from __future__ import annotations

import errno
import itertools
import threading

from sevd.simulator.errnos import fail
from sevd.simulator.fuse import wire
from sevd.simulator.fuse.nodes import Directory, Handle, Node


class Inodes:
    """The kernel's references to nodes: a node stays as long as the kernel has not forgotten it.

    Args:
        root: Always known, as number 1.
    """

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._known: dict[int, tuple[Node, int]] = {}
        self._lock = threading.Lock()

    def remember(self, node: Node) -> int:
        """One more reference: the kernel is about to be told of the node. Answers its number."""
        if node is self._root:
            return wire.ROOT_ID
        with self._lock:
            _, count = self._known.get(node.ino, (node, 0))
            self._known[node.ino] = (node, count + 1)
        return node.ino

    def forget(self, nodeid: int, count: int) -> None:
        """The kernel gives references up."""
        with self._lock:
            node, have = self._known.get(nodeid, (self._root, 0))
            if have > count:
                self._known[nodeid] = (node, have - count)
            else:
                self._known.pop(nodeid, None)

    def node(self, nodeid: int) -> Node:
        """The node of a number. Raises OSError(ESTALE) for one that the kernel was not told of."""
        if nodeid == wire.ROOT_ID:
            return self._root
        with self._lock:
            known = self._known.get(nodeid)
        return known[0] if known is not None else fail(errno.ESTALE)

    def directory(self, nodeid: int) -> Directory:
        """The directory of a number. Raises OSError(ENOTDIR, ESTALE)."""
        node = self.node(nodeid)
        return node if isinstance(node, Directory) else fail(errno.ENOTDIR)

    def __len__(self) -> int:
        """How many nodes the kernel knows beside the root."""
        return len(self._known)


class Listing(Handle):
    """An opened directory: its entries as they were when it was opened.

    Args:
        entries: (name, inode number, type bits as DT_*), "." and ".." included.
    """

    def __init__(self, entries: list[tuple[bytes, int, int]]) -> None:
        self._entries = entries

    def read(self, offset: int, size: int) -> bytes:
        """Whole entries from number `offset` on, in at most `size` bytes."""
        out = bytearray()
        for index in range(offset, len(self._entries)):
            name, ino, kind = self._entries[index]
            entry = wire.directory_entry(name, ino, kind, index + 1)
            if len(out) + len(entry) > size:
                break
            out += entry
        return bytes(out)


class Handles:
    """Open handles by number. Numbers are not used again."""

    def __init__(self) -> None:
        self._open: dict[int, Handle] = {}
        self._numbers = itertools.count(1)

    def add(self, handle: Handle) -> int:
        """The number of a new one."""
        number = next(self._numbers)
        self._open[number] = handle
        return number

    def get(self, number: int) -> Handle:
        """Raises OSError(EBADF) if there is no such handle."""
        handle = self._open.get(number)
        return handle if handle is not None else fail(errno.EBADF)

    def release(self, number: int) -> None:
        """Releases a handle; nothing if there is none."""
        handle = self._open.pop(number, None)
        if handle is not None:
            handle.release()

    def clear(self) -> None:
        """Releases all of them."""
        for number in list(self._open):
            self.release(number)

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)
