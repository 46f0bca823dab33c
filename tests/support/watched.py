"""Runs a module as a program, with no umask, and writes down which files it creates and what it changes the mode of.

    python -m tests.support.watched LOG MODULE[:FUNCTION] [ARGUMENT…]

Without a umask a file has the mode that it was created with, unless it was changed afterwards: what the log says.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import stat
import sys
from typing import Any


def main() -> None:
    """The program."""
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    module = sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    os.umask(0)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.chmod":
            path, mode, folder = arguments
            kind = stat.S_IFMT(os.stat(path, dir_fd=None if folder == -1 else folder).st_mode)
            note(
                event,
                path,
                {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFSOCK: "socket"}.get(kind, ""),
                mode,
            )
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT:
            note(event, arguments[0], "", 0)

    def note(event: str, path: Any, kind: str, mode: int) -> None:
        name = str(path) if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
        os.write(log, json.dumps([event, name, kind, mode]).encode() + b"\n")

    sys.addaudithook(hook)
    name, _, function = module.partition(":")
    if function:
        sys.exit(getattr(importlib.import_module(name), function)())
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
