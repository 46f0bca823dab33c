"""`sev guest run` and `sev guest pause`: a launched guest executes, and what it prints is shown."""

from __future__ import annotations

import sys
from contextlib import contextmanager

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterator

    from sev.cli.output import Output
    from sev.client_run import GuestRun
    from sev.running import GuestExit, RunState

_RUN = """\
Runs a launched guest of yours. What it prints over its serial port (0x3f8) or a debug
port (0xe9, 0x402) goes to stdout as it is; reads of ports and addresses where nothing
is answer all ones. There are no other devices.

Ends with 0 when the guest shuts down, or when every vCPU has halted: nothing here could
wake it. A guest that only halted, or that you leave with Ctrl-C (130), is paused: run it
again and it goes on. A guest that cannot be run on ends with 6; it is stopped, and can
only be deleted.
"""

_PAUSE = """\
Halts the vCPUs of a guest that runs. `sev guest run`, wherever it runs the guest, ends;
run it again and the guest goes on.
"""

POSTED = 64
"""Writes that a vCPU may be ahead of what was printed."""


def build_run(parser: ArgumentParser) -> None:
    """Adds the options of `run`."""
    parser.description = _RUN
    parser.add_argument("guest_id", metavar="ID", help="the guest")
    parser.add_argument("-i", "--input", action="store_true", help="what comes on stdin goes to the serial port")
    examples(
        parser,
        ("sev guest run snp-0f3a5c7e9b1d", "what the guest prints"),
        ("sev guest run snp-0f3a5c7e9b1d -v", "its other exits too, on stderr"),
        notes='JSON Lines: exits ({"vcpu", "sequence", "exit", ...}) and states ({"state", "reason", "failed"}).',
    )
    parser.set_defaults(run=run)


def build_pause(parser: ArgumentParser) -> None:
    """Adds the options of `pause`."""
    parser.description = _PAUSE
    parser.add_argument("guest_id", metavar="ID", help="the guest")
    examples(
        parser, ("sev guest pause snp-0f3a5c7e9b1d", "halt it"), notes="JSON: the guest, as sev guest show has it."
    )
    parser.set_defaults(run=pause)


def pause(args: Namespace, out: Output) -> int:
    """Halts a guest's vCPUs."""
    from sev.cli.connection import connected, mark_simulated

    with connected(args, out, mark=False) as host:
        guest = host.pause_guest(args.guest_id)
    mark_simulated(out, guest.simulated)
    out.result(guest.document(), f"{guest.guest_id} is {guest.state}")
    return 0


def run(args: Namespace, out: Output) -> int:
    """Runs a guest until it ends, halts, or is left."""
    from sev.cli.connection import connected, mark_simulated, mark_unprotected
    from sev.cli.guest_console import Console

    console = Console(_printer(out), _keyboard() if args.input else lambda: None)
    with connected(args, out, mark=False) as host:
        guest = host.guest(args.guest_id)
        mark_simulated(out, guest.simulated)
        mark_unprotected(out, guest.type)
        with host.run_guest(args.guest_id, posted_writes=POSTED) as running, _ctrl_c(running):
            halted = _follow(running, console.answer, guest.vcpu_count, out)
    return _end(running.state, halted, out)


@contextmanager
def _ctrl_c(running: GuestRun) -> Iterator[None]:
    """Ctrl-C ends the run between two exits; once more, anywhere."""
    import signal

    def pressed(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        running.interrupt()

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(running: GuestRun, answer: Callable[..., tuple[bytes, bool]], vcpus: int, out: Output) -> bool:
    """Answers exits to the end; True if every vCPU has halted."""
    from sev.abi.kvm_run import Halt

    halted: set[int] = set()
    for found in running:
        if out.json:
            out.line(found.document(), "")
        if isinstance(found.what, Halt):
            halted.add(found.vcpu)
            out.detail(_line(found))
            if len(halted) == vcpus:
                return True
            continue
        data, ours = answer(found.what)
        if not ours:
            out.detail(_line(found))
        running.complete(found, data)
    return False


def _end(state: RunState | None, halted: bool, out: Output) -> int:
    from sev.errors import RefusedError

    if state is None:
        return 0
    if out.json:
        out.line(state.document(), "")
    if state.failed:
        raise RefusedError(
            f"the guest has stopped: {state.reason}",
            remedy="It cannot go on: look at its exits with -v, delete it, and launch it anew.",
        )
    if state.state == "stopped":
        out.note(f"sev: the guest has stopped: {state.reason}")
    elif halted:
        out.note("sev: the guest has halted")
    else:
        out.note("sev: the guest is paused; run it again to go on")
    return 0


def _line(found: GuestExit) -> str:
    values = " ".join(
        f"{name}={value.hex() if isinstance(value, bytes) else f'{value:#x}' if isinstance(value, int) else value}"
        for name, value in found.what._asdict().items()
    )
    return f"sev: vCPU {found.vcpu}: {found.kind} {values}".rstrip()


def _printer(out: Output) -> Callable[[bytes], object]:
    """What shows the guest's bytes: as they are, on stdout; with --json the lines of the exits have them already."""
    if out.json:
        return lambda data: None

    def show(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    return show


def _keyboard() -> Callable[[], int | None]:
    """The next byte on stdin, if one is there."""
    import os
    import select

    stdin = sys.stdin.fileno()

    def key() -> int | None:
        if not select.select([stdin], [], [], 0)[0]:
            return None
        data = os.read(stdin, 1)
        return data[0] if data else None

    return key
