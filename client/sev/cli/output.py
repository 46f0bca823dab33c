"""How commands speak: results on stdout, everything else on stderr, one JSON document with --json."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sev.errors import SevError


class Output:
    """Where a command puts its results, notes and progress."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose

    def result(self, document: Mapping[str, object], text: str) -> None:
        """The result: the document with --json, the text otherwise."""
        if self.json:
            from json import dumps

            sys.stdout.write(dumps(document, indent=2) + "\n")
        else:
            sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def line(self, document: Mapping[str, object], text: str) -> None:
        """One result of many (watching commands): a JSON line with --json, the text otherwise. Flushed."""
        if self.json:
            from json import dumps

            sys.stdout.write(dumps(document) + "\n")
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Something the person should know, on stderr; silent with -q."""
        if not self.quiet:
            sys.stderr.write(text + "\n")

    def detail(self, text: str) -> None:
        """Something only -v asks for, on stderr."""
        if self.verbose:
            sys.stderr.write(text + "\n")

    def progress(self, label: str, done: int, total: int) -> None:
        """Progress of long work, on a terminal only."""
        if self.quiet or self.json or not sys.stderr.isatty():
            return
        percent = 100 * done // total if total else 100
        sys.stderr.write(f"\r\x1b[K{label} {percent:3d} %" + ("\n" if done >= total else ""))
        sys.stderr.flush()

    def error(self, error: SevError) -> None:
        """A failure: on stderr for people; as the document with --json."""
        if self.json:
            from json import dumps

            sys.stdout.write(dumps({"error": error.document()}, indent=2) + "\n")
        sys.stderr.write(f"sev: {error.message}\n")
        if error.remedy:
            sys.stderr.write(f"     {error.remedy}\n")
