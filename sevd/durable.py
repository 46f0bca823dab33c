"""Files that are there whole or not at all, also after a power loss: temporary name, fsync, rename, sync of the folder.

(rename(2), fsync(2).) What must not become a new inode, such as the certificate table that others hold locks on, is not
written this way.

Whatever outlives the process goes through `disk`, one method for each kind of system call that changes a file system.
So a test can put another disk in its place that loses what was not synced, and cut the power at every call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

_OURS = os.O_CLOEXEC | os.O_NOFOLLOW


class Disk:
    """The kernel's file systems. Every method raises OSError."""

    def create(self, path: Path, mode: int) -> int:
        """Makes an empty file that was not there, and opens it to be written; its mode, less the umask, at once."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OURS, mode)

    def append(self, path: Path, mode: int) -> int:
        """Opens a file to be read and appended to; makes it if it is not there."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _OURS, mode)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Writes some of the data where the descriptor stands, or at the end; answers how much."""
        return os.write(descriptor, data)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cuts a file off."""
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Returns when the content of a file would outlive a power loss; its name may not."""
        os.fsync(descriptor)

    def sync_data(self, descriptor: int) -> None:
        """The same for content alone, without times: for what is appended to."""
        os.fdatasync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Gives a file or folder another name, in place of what has it."""
        os.rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Gives a file one more name."""
        os.link(old, new, follow_symlinks=False)

    def remove(self, path: Path) -> None:
        """Takes a file's name away."""
        os.unlink(path)

    def make_directory(self, path: Path, mode: int) -> None:
        """Makes a folder."""
        os.mkdir(path, mode)

    def sync_directory(self, path: Path) -> None:
        """Returns when the names in a folder would outlive a power loss."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


disk = Disk()
"""Where everything durable goes."""


def write(path: Path, data: bytes, mode: int) -> None:
    """Puts `data` in place of the file at once; its mode, less the umask, is so from the start.

    Raises:
        OSError: It could not be written; what was there before still is, and no temporary file is left.
    """
    temporary = temporary_name(path)
    descriptor = disk.create(temporary, mode)
    try:
        try:
            write_all(descriptor, data)
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            disk.remove(temporary)
        raise
    disk.sync_directory(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of the data. Raises OSError: ENOSPC where nothing goes in any more."""
    view = memoryview(data)
    while view:
        done = disk.write(descriptor, view)
        if not done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = view[done:]


def temporary_name(path: Path) -> Path:
    """A name beside a file, under which it grows: `.NAME.` and twelve hexadecimal digits."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def sweep(directory: Path) -> None:
    """Removes what a power loss left growing in a folder. Raises OSError."""
    for entry in os.scandir(directory):
        name, dot, digits = entry.name.rpartition(".")
        if dot and name.startswith(".") and len(digits) == 12 and set(digits) <= set("0123456789abcdef"):
            disk.remove(Path(entry.path))


def sync_directory(path: Path) -> None:
    """Makes renames inside a directory last. Raises OSError."""
    disk.sync_directory(path)


def make_directories(path: Path, mode: int) -> None:
    """Makes a folder and those above it that are not there, to last. Raises OSError."""
    if path.is_dir():
        return
    make_directories(path.parent, mode)
    try:
        disk.make_directory(path, mode)
    except FileExistsError:
        return
    disk.sync_directory(path.parent)
