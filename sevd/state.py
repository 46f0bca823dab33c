"""The state directory: made if need be, private, and locked for the daemon's life."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from sev.errors import UsageError


class StateDirectory:
    """A locked state directory.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        """Makes and locks the directory.

        Raises:
            UsageError: It cannot be made or written, somebody else may write there, or another daemon has it.
        """
        self.path = path
        self._lock = -1
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = os.stat(path)
            if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
                raise UsageError(
                    f"{path}: another user may write there (owner {found.st_uid}, mode {found.st_mode & 0o7777:04o})",
                    field="state_dir",
                    remedy=f"Make it private: chown and chmod 0700 {path}.",
                )
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = os.open(path / "lock", flags, 0o600)
        except OSError as error:
            raise UsageError(
                f"{path}: {os.strerror(error.errno or 0)}",
                field="state_dir",
                remedy="Name a directory that this user may write with --state-dir.",
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise UsageError(
                f"{path}: another daemon uses this state directory",
                field="state_dir",
                remedy="Stop it, or name another directory with --state-dir.",
            ) from None

    def folder(self, name: str) -> Path:
        """A private folder in it. Raises UsageError if it cannot be made."""
        path = self.path / name
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            os.chmod(path, 0o700)
        except OSError as error:
            raise UsageError(f"{path}: {os.strerror(error.errno or 0)}", field="state_dir") from None
        return path

    def close(self) -> None:
        """Gives the lock up."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> StateDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
