"""The report folder of configfs-tsm, as a program inside a guest uses it."""

from __future__ import annotations

import errno
import os

from sevd.simulator.fuse.nodes import Caller, Directory, FileNode, Handle
from sevd.simulator.guest_device import SevGuestDevice
from sevd.simulator.tsm_nodes import ReportFolder

ROOT = Caller(1, 0, 0)


class Tree:
    """A report folder as a program uses it."""

    def __init__(self, device: SevGuestDevice) -> None:
        self.folder = ReportFolder(device)
        self.mkdir("e")

    def mkdir(self, name: str) -> Directory:
        made = self.folder.mkdir(name, 0o700, ROOT)
        assert isinstance(made, Directory)
        return made

    def file(self, name: str, entry: str = "e") -> FileNode:
        folder = self.folder.lookup(entry)
        assert isinstance(folder, Directory)
        node = folder.lookup(name)
        assert isinstance(node, FileNode)
        return node

    def open(self, name: str, flags: int, entry: str = "e") -> Handle:
        return self.file(name, entry).open(flags, ROOT)

    def write(self, name: str, data: bytes, entry: str = "e") -> None:
        """Opens, writes, closes."""
        handle = self.open(name, os.O_WRONLY, entry)
        try:
            assert handle.write(0, data) == len(data)
        finally:
            handle.flush()
            handle.release()

    def read(self, name: str, entry: str = "e") -> bytes:
        """Opens, reads to the end in small pieces, closes."""
        handle = self.open(name, os.O_RDONLY, entry)
        out = b""
        try:
            while piece := handle.read(len(out), 1000):
                out += piece
            return out
        finally:
            handle.flush()
            handle.release()

    def error(self, name: str, data: bytes | None = None) -> str:
        """The errno's name of reading, or with data of writing; "ok"."""
        try:
            self.read(name) if data is None else self.write(name, data)
        except OSError as refused:
            return errno.errorcode[refused.errno or 0]
        return "ok"

    @property
    def generation(self) -> int:
        return int(self.read("generation"))
