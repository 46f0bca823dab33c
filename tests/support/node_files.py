"""A tree of the simulator's file nodes as the small files of configfs, used in this process (sev.guest.tsm_files)."""

from __future__ import annotations

import errno
import os

from sevd.simulator.fuse.nodes import Caller, Directory, FileNode

ROOT = Caller(1, 0, 0)


class NodeFiles:
    """What the kernel would do between a program and the nodes: look up, open, read to the end, flush, release.

    Args:
        folder: The `report` folder.
    """

    def __init__(self, folder: Directory) -> None:
        self.folder = folder
        self.calls: list[tuple[str, str]] = []

    def mkdir(self, name: str) -> None:
        self.calls.append(("mkdir", name))
        self.folder.mkdir(name, 0o700, ROOT)

    def rmdir(self, name: str) -> None:
        self.calls.append(("rmdir", name))
        self.folder.rmdir(name, ROOT)

    def names(self, name: str = "") -> list[str]:
        folder = self.folder if not name else self._find(name)
        assert isinstance(folder, Directory)
        return folder.names()

    def read(self, name: str, limit: int) -> bytes:
        self.calls.append(("read", name.partition("/")[2]))
        handle = self._file(name).open(os.O_RDONLY, ROOT)
        try:
            out = b""
            while piece := handle.read(len(out), 4096):
                out += piece
                if len(out) > limit:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            return out
        finally:
            handle.flush()
            handle.release()

    def write(self, name: str, data: bytes) -> None:
        self.calls.append(("write", name.partition("/")[2]))
        handle = self._file(name).open(os.O_WRONLY, ROOT)
        try:
            assert handle.write(0, data) == len(data)
        finally:
            handle.flush()
            handle.release()

    def _file(self, name: str) -> FileNode:
        node = self._find(name)
        if not isinstance(node, FileNode):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return node

    def _find(self, name: str) -> object:
        node: object = self.folder
        for part in name.split("/"):
            node = node.lookup(part) if isinstance(node, Directory) else None
        return node
