"""Keeps a program that holds secrets from leaving a core of its memory when it crashes."""

from __future__ import annotations


def no_core() -> None:
    """No core of this process and its children from now on.

    A limit of 0 keeps the kernel from writing a file, but it pipes the memory all the same where core_pattern names a
    program. At a limit of 1 byte it does neither: too little for a file, and the kernel's own mark for "to no program".

    Source: Linux, fs/coredump.c; core(5).
    """
    import contextlib
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = 0 if hard == 0 else 1
    # A filter around this process may forbid it; whoever made that has set the limit.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (limit, hard))
