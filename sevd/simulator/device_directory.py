"""The folder in which the simulated host's files appear: one FUSE mount, and the links and plain files around it.

    DIR/.files            the mount; everything that is more than bytes lies in it
    DIR/sev               a link into it, the last thing that appears, and the first that goes
    DIR/msr, …            links, like it
    DIR/roots/, platform.json    plain files

One server has a folder at a time (flock on the folder itself). What a server that was killed has left is removed by the
next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType

from sev.errors import UsageError
from sevd.simulator.fuse import mount
from sevd.simulator.fuse.nodes import Node, StaticDirectory
from sevd.simulator.fuse.server import FileServer

FILES = ".files"
LAST = "sev"
PLAIN = ("platform.json", "control.sock")
FOLDERS = ("roots",)
LINKS = ("msr", "guest-msr", "parameters", "sev-guest", "tsm", LAST)


class DeviceDirectory:
    """A device folder that this process has.

    Args:
        path: Where it is; made if it is not there.

    Raises:
        UsageError: It cannot be made, others may write there, another simulator has it, or it holds files that no
            simulator has made.
        NotPermitted: What an earlier simulator has left mounted there cannot be removed.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.path = path.resolve(strict=True)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(
                f"{path}: {os.strerror(error.errno or 0)}",
                field="device_dir",
                remedy="Name a directory that this user may write with --device-dir.",
            ) from None
        try:
            self._claim()
            self._sweep()
        except BaseException:
            os.close(self._lock)
            raise
        self.root = StaticDirectory()
        self._server = FileServer(self.path / FILES, self.root)
        self._made: list[Path] = []

    def start(self) -> None:
        """Mounts the files, still without a name in the folder.

        Raises:
            CannotServeFiles, NotPermitted, KernelError: See sevd.simulator.fuse.mount.
            UsageError: The folder cannot be written.
        """
        files = self.path / FILES
        try:
            files.mkdir(mode=0o755)
        except OSError as error:
            raise _cannot_write(files, error) from None
        try:
            self._server.start()
        except BaseException:
            files.rmdir()
            raise

    @property
    def server(self) -> FileServer:
        """What serves the files."""
        return self._server

    def serve(self, name: str, node: Node) -> None:
        """Serves a node and gives it its name in the folder, at once. Raises UsageError if it cannot be written."""
        self.root.put(name, node)
        link = self.path / name
        new = self.path / f".{name}.new"
        try:
            new.unlink(missing_ok=True)
            new.symlink_to(f"{FILES}/{name}")
            new.rename(link)
        except OSError as error:
            raise _cannot_write(link, error) from None
        self._made.append(link)

    def write(self, name: str, data: bytes) -> None:
        """Puts a plain file there, at once, to be read by everybody; `name` may have a folder before it.

        Raises:
            UsageError: It cannot be written.
        """
        path = self.path / name
        new = path.with_name(f".{path.name}.new")
        try:
            if path.parent != self.path and not path.parent.is_dir():
                path.parent.mkdir(mode=0o755)
                self._made.append(path.parent)
            new.write_bytes(data)
            new.chmod(0o644)
            new.rename(path)
        except OSError as error:
            raise _cannot_write(path, error) from None
        self._made.append(path)

    def identity(self, node: Node) -> tuple[int, int]:
        """(st_dev, st_ino) of a served node, whatever path a process has opened it by."""
        return self._server.device(), node.ino

    def withdraw(self, name: str) -> None:
        """Takes a name away; who has the file open keeps it. Nothing if it is not there."""
        self.root.remove(name)
        path = self.path / name
        if path in self._made:
            self._made.remove(path)
            _remove(path)

    def close(self) -> None:
        """Takes everything away, the latest first, and gives the folder up; once more does nothing."""
        if self._lock < 0:
            return
        while self._made:
            _remove(self._made.pop())
        self._server.close()
        with contextlib.suppress(OSError):
            (self.path / FILES).rmdir()
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> DeviceDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _claim(self) -> None:
        found = os.fstat(self._lock)
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            raise UsageError(
                f"{self.path}: another user may write there (owner {found.st_uid}, mode {found.st_mode & 0o7777:04o})",
                field="device_dir",
                remedy=f"Make it this user's alone: chown and chmod 0755 {self.path}.",
            )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{self.path}: another simulator serves its files there",
                field="device_dir",
                remedy="Stop it, or name another directory with --device-dir.",
            ) from None

    def _sweep(self) -> None:
        """Removes what a killed simulator has left, and refuses a folder that holds others' files."""
        mount.remove_stale(self.path / FILES)
        ours = os.path.lexists(self.path / FILES)
        for name in (*LINKS, *PLAIN, *FOLDERS):
            path = self.path / name
            if not os.path.lexists(path):
                continue
            linked = path.is_symlink() and os.readlink(path) == f"{FILES}/{name}"
            if not linked and (name in LINKS or not ours):
                raise UsageError(
                    f"{path} exists, and no simulator has made it",
                    field="device_dir",
                    remedy="Name an empty directory with --device-dir.",
                )
        try:
            for name in reversed((*PLAIN, *LINKS)):
                (self.path / name).unlink(missing_ok=True)
            for folder in FOLDERS:
                if (self.path / folder).is_dir():
                    for file in (self.path / folder).iterdir():
                        file.unlink()
                    (self.path / folder).rmdir()
            if ours:
                (self.path / FILES).rmdir()
        except OSError as error:
            raise _cannot_write(self.path, error) from None


def _remove(path: Path) -> None:
    """Removes what was made; nothing if somebody else has done so, or has put something into a folder."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            path.rmdir()


def _cannot_write(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{path}: {os.strerror(error.errno or 0)}",
        field="device_dir",
        remedy="Name a directory that this user may write with --device-dir.",
    )
