"""A simulated host for one command: a daemon of our own, in a directory of our own, gone when the command is.

Making a chip's keys takes seconds, so the chip is kept in the user's cache and every run works on a copy of it: runs
at the same time do not meet, and a copy that a newer daemon does not take is made anew.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sev.errors import InternalError, NotNow, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Self

    from sev.client import Host

START_SECONDS = 120.0
"""How long a first start may take: two RSA-4096 keys on a slow machine."""

STOP_SECONDS = 5.0
CALL_SECONDS = 5.0
_POLL_SECONDS = 0.02


class PrivateHost:
    """A simulated host as a context manager; `connect` waits for its daemon.

    Args:
        product: Processor line to simulate.
        note: Called with a sentence when something takes long.
    """

    def __init__(self, product: str, note: Callable[[str], None]) -> None:
        self._product = product
        self._note = note
        self._kept = _cache_directory(product)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._before: object = signal.SIG_DFL
        self.directory = Path()
        self.socket = ""

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="sev-demo-"))  # 0700
        self.socket = str(self.directory / "sevd.sock")
        try:
            self._before = signal.signal(signal.SIGTERM, _terminated)
            self._start(self._take_kept())
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._clean()

    def connect(self) -> Host:
        """A connection to the host, as soon as it answers.

        Raises:
            InternalError: Its daemon ended, or does not answer within two minutes.
        """
        host = self._connect()
        if host is None and self._kept is not None and self._kept.exists():
            # the kept chip may be of another version: once more, with a new one
            self._stop()
            shutil.rmtree(self._kept, ignore_errors=True)
            shutil.rmtree(self.directory / "state", ignore_errors=True)
            self._start(False)
            host = self._connect()
        if host is None:
            raise InternalError(f"the simulated host did not start: {self._last_words()}")
        self._ready = True
        return host

    def _start(self, has_chip: bool) -> None:
        if not has_chip:
            self._note("Making the keys of a simulated chip; this is done once and takes some seconds.")
        command = [
            sys.executable,
            "-m",
            "sevd",
            f"--simulate={self._product}",
            "--socket",
            self.socket,
            "--state-dir",
            str(self.directory / "state"),
        ]
        environment = {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "LISTEN_FDS")}
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own words
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours; we end the daemon when we are done
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - no thread runs yet
            )

    def _connect(self) -> Host | None:
        """A connection that was answered once; None if the daemon ended. (It listens before it is ready to answer.)"""
        from sev.client import connect

        until = time.monotonic() + START_SECONDS
        while self._process is not None and self._process.poll() is None and time.monotonic() < until:
            if not os.path.exists(self.socket):
                time.sleep(_POLL_SECONDS)
                continue
            host = connect(self.socket, timeout=CALL_SECONDS)
            try:
                host.host()
            except (Unreachable, NotNow):
                host.close()
            except BaseException:
                host.close()
                raise
            else:
                return host
        return None

    def _last_words(self) -> str:
        try:
            lines = (self.directory / "log").read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"

    def _take_kept(self) -> bool:
        """Copies the chip that was kept; answers whether there was one."""
        if self._kept is None or not self._kept.is_dir():
            return False
        try:
            shutil.copytree(self._kept, self.directory / "state")
        except (OSError, shutil.Error):
            shutil.rmtree(self.directory / "state", ignore_errors=True)
            return False
        return True

    def _keep(self) -> None:
        """Keeps the chip for the next run, if none is kept yet; a cache that cannot be written is no failure."""
        if self._kept is None or self._kept.exists() or not self._ready:
            return
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = Path(tempfile.mkdtemp(dir=self._kept.parent, prefix="new-"))
            try:
                shutil.copytree(self.directory / "state", fresh, dirs_exist_ok=True)
                fresh.chmod(0o700)
                fresh.rename(self._kept)
            except (OSError, shutil.Error):
                shutil.rmtree(fresh, ignore_errors=True)
        except OSError:
            pass

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _clean(self) -> None:
        try:
            self._stop()
            self._keep()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]


def _cache_directory(product: str) -> Path | None:
    """Where the chip of this product and version is kept; None without a home directory."""
    from sev import __version__

    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        return None
    return Path(base) / "sev" / f"demo-{product}-{__version__}"


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _die_with_parent() -> Callable[[], None] | None:
    """A function for the child that has the kernel end it if we are killed outright."""
    import ctypes

    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None

    def ask() -> None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    return ask
