"""How commands speak: results on stdout, everything else on stderr, one JSON document with --json."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from sev.errors import SevError


class Output:
    """Where a command puts its results, notes and progress.

    A reader who closes stdout early (`sev … | head`) ends nothing but the printing: the exit code stays the command's.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self._progress_shown = False
        self._lined = False

    def result(self, document: Mapping[str, object], text: str) -> None:
        """The result: the document with --json, the text otherwise."""
        if self.json:
            from json import dumps

            self.text(dumps(document, indent=2))
        else:
            self.text(text)

    def text(self, text: str) -> None:
        """Text on stdout whatever the options say (digests alone, help, completion scripts); ends with one newline."""
        self._write(sys.stdout, text if text.endswith("\n") else text + "\n")

    def data(self, data: bytes) -> None:
        """Bytes on stdout."""
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            self.silence()

    def line(self, document: Mapping[str, object], text: str) -> None:
        """One result of many (watching commands): a JSON line with --json, the text otherwise. Flushed.

        Raises:
            BrokenPipeError: Nobody reads any more; the command is to stop.
        """
        self._lined = True
        if self.json:
            from json import dumps

            text = dumps(document)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Something the person should know, on stderr; silent with -q."""
        if not self.quiet:
            self._write(sys.stderr, text + "\n")

    def detail(self, text: str) -> None:
        """Something only -v asks for, on stderr."""
        if self.verbose:
            self._write(sys.stderr, text + "\n")

    def progress(self, label: str, done: int, total: int) -> None:
        """Progress of long work, on a terminal only: one line, rewritten until done reaches total."""
        if self.quiet or self.json or not sys.stderr.isatty():
            return
        percent = min(100, 100 * done // total) if total else 100
        self._progress_shown = done < total
        self._write(sys.stderr, f"\r\x1b[K{label} {percent:3d} %" + ("" if self._progress_shown else "\n"))
        sys.stderr.flush()

    def write_file(self, path: str, data: bytes, *, secret: bool = False) -> None:
        """Writes a whole file, or stdout for `-`; see `sev.cli.files.write_file`. Says so with -v."""
        if path == "-":
            self.data(data)
            return
        from sev.cli.files import write_file

        write_file(path, data, secret=secret)
        self.detail(f"sev: wrote {path} ({len(data)} bytes{', readable by its owner only' if secret else ''})")

    def error(self, error: SevError) -> None:
        """A failure: on stderr for people; with --json also as the document on stdout."""
        self._end_progress()
        if self.json:
            from json import dumps

            self.text(dumps({"error": error.document()}, indent=None if self._lined else 2))
        self._write(sys.stderr, f"sev: {error.message}\n" + (f"     {error.remedy}\n" if error.remedy else ""))
        if error.request_id:
            self._write(sys.stderr, f"     Request id: {error.request_id}\n")
        if error.retry_after is not None and error.retry_after >= 0:
            self._write(sys.stderr, f"     Try again in {_duration(error.retry_after)}.\n")
        self._flush_quietly()

    def interrupted(self) -> None:
        """The person pressed Ctrl-C."""
        self._end_progress()
        if self.json:
            from json import dumps

            document = {"error": {"kind": "interrupted", "message": "interrupted", "remedy": ""}}
            self.text(dumps(document, indent=None if self._lined else 2))
        self._write(sys.stderr, "sev: interrupted\n")
        self._flush_quietly()

    def flush(self) -> None:
        """Hands everything to the system, so that a full disk is an error of the command and not of its exit.

        Raises:
            OSError: stdout could not take it all.
        """
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            self.silence()

    def silence(self) -> None:
        """Points stdout at nothing, so that neither we nor the interpreter at its exit write to a closed pipe."""
        import os

        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())
            os.close(nothing)
        except (OSError, ValueError):  # stdout is no file (in tests) or closed
            pass

    def _end_progress(self) -> None:
        if self._progress_shown:
            self._progress_shown = False
            self._write(sys.stderr, "\n")

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except OSError:  # the failure is already on stderr, and that is the one to report
            self.silence()

    def _write(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except BrokenPipeError:
            if stream is sys.stdout:
                self.silence()
        except UnicodeEncodeError:  # a name in the text that this terminal cannot show
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _duration(seconds: float) -> str:
    """Seconds as people say them, never too few."""
    whole = max(1, int(-(-seconds // 1)))
    return f"{whole} s" if whole < 120 else f"{-(-whole // 60)} min"
