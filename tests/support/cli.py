"""Runs `sev` in this process, as fast as a function call, with its streams and exit code as a shell would see them."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from typing import Any

from sev.cli.main import main

COMMAND = (sys.executable, "-c", "import sys; from sev.cli.main import main; sys.exit(main())")
"""The same as a process of its own; words follow."""


@dataclass(frozen=True)
class Done:
    """What a command did.

    Attributes:
        code: Exit code.
        data: stdout, bytes.
        err: stderr.
    """

    code: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        """stdout as text."""
        return self.data.decode()

    def json(self) -> Any:
        """stdout as one JSON document."""
        return json.loads(self.out)


def sev(*words: object) -> Done:
    """Runs `sev` with these words."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    before = sys.stdout, sys.stderr, sys.stdin
    sys.stdout, sys.stderr, sys.stdin = out, err, io.StringIO()
    try:
        code = main([str(word) for word in words])
    finally:
        sys.stdout, sys.stderr, sys.stdin = before
    out.flush()
    data = out.buffer.getvalue()
    done = Done(code, data, err.getvalue())
    assert "Traceback" not in done.err
    return done
