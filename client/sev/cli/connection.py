"""The daemon that a command talks to: which one is said with -v, and a simulated one is always called so."""

from __future__ import annotations

import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from sev.cli.output import Output
    from sev.client import Host

UNPROTECTED = "UNPROTECTED: a plain guest is an ordinary VM; its host can read and change all of it."

SIMULATED = "SIMULATED: this host is a simulation; nothing here protects anything."
"""The mark, on stderr."""


@contextmanager
def connected(args: Namespace, out: Output, *, mark: bool = True) -> Iterator[Host]:
    """The daemon that the options name; marks a simulated host unless the caller does it (`mark_simulated`).

    Raises:
        SevError: As of `sev.connect`; where `mark` is set, also if the daemon does not answer.
    """
    with dial(args, out) as host:
        if mark:
            mark_simulated(out, host.host().simulated)
        yield host


def dial(args: Namespace, out: Output) -> Host:
    """The daemon that the options name, which was not asked anything yet. Raises SevError as of `sev.connect`."""
    with _loading():
        from sev.client import connect

        host = connect(
            args.socket,
            timeout=args.timeout,
            tls_cert=args.tls_cert,
            tls_key=args.tls_key,
            tls_ca=args.tls_ca,
            request_id=name_of_calls(),
        )
    out.detail(f"sev: using {host.target.address} ({host.target.why})")
    return host


def name_of_calls() -> str:
    """The name that the user gave to all calls of this command; empty for none."""
    return os.environ.get("SEV_REQUEST_ID", "")


@contextmanager
def _loading() -> Iterator[None]:
    """Loads gRPC quietly and without looking for garbage in what stays; neither need the interpreter look at its end.

    Together that is a tenth of a short command's time.
    """
    import atexit
    import gc

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its log lines would land between ours on stderr
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def mark_simulated(out: Output, simulated: bool) -> None:
    """Says on stderr that an answer comes from a simulated host."""
    if simulated:
        out.note(SIMULATED)


def mark_unprotected(out: Output, guest_type: str) -> None:
    """Says on stderr that a guest is one that nothing protects."""
    if guest_type == "plain":
        out.note(UNPROTECTED)
