"""`sev events`: what happens on a host."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator
    from datetime import datetime

    from sev.cli.output import Output
    from sev.client import Host
    from sev.event_model import Event

RECENT = 512
"""Events that a daemon keeps."""

_ABOUT = """\
Shows what happens on the host as it happens, until interrupted: guests, the platform,
endorsements, the device. Events of guests are shown to their owners and to admins.

A daemon that ends is waited for; when it is back, what it has seen since its start is
shown first. Nothing is kept over its restart: for what was asked of it see `sev audit`.
"""


def build(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    from sev.cli.values import integer

    parser.description = _ABOUT
    add = parser.add_argument
    add(
        "--kind",
        action="append",
        default=[],
        metavar="KIND",
        help="only this kind, such as guest.created, or all that begin so, such as guest; may be repeated",
    )
    add("--guest", default="", metavar="ID", help="only what is about this guest")
    add(
        "--last",
        type=integer(0, RECENT),
        default=0,
        metavar="N",
        help=f"begin with the last N events, at most {RECENT}",
    )
    add("--no-follow", action="store_true", help="stop after those that --last shows")
    examples(
        parser,
        ("sev events", "what happens from now on"),
        ("sev events --last 20 --no-follow", "what happened lately"),
        ("sev events --kind platform --kind endorsements --json", "JSON Lines of two kinds"),
        notes="JSON Lines: sequence, event_time, kind, guest_id, message, simulated, details.",
    )
    parser.set_defaults(run=_events)


def _events(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected
    from sev.errors import UsageError

    if args.no_follow and not args.last:
        raise UsageError("--no-follow: without --last there is nothing to show", field="--no-follow")
    with connected(args, out) as host:
        for event in _wanted(host, args, out):
            out.line(event.document(), text(event))
    return 0


def _wanted(host: Host, args: Namespace, out: Output) -> Iterator[Event]:
    if args.no_follow:
        # The last of those that are wanted: which they are is told here.
        return iter([one for one in host.events(recent=RECENT, only_recent=True) if _admits(one, args)][-args.last :])
    return _followed(host, args, out)


def _followed(host: Host, args: Namespace, out: Output) -> Iterator[Event]:
    from sev.cli.watching import again

    seen: datetime | None = None
    starts = 0

    def start() -> Iterator[Event]:
        """At first as many as were asked for; later what happened since the last one."""
        nonlocal starts
        starts += 1
        if starts == 1:
            return host.events(recent=args.last)
        return (one for one in host.events(recent=RECENT) if seen is None or (one.event_time or seen) > seen)

    for one in again(host, out, start):
        seen = one.event_time or seen
        if _admits(one, args):
            yield one


def _admits(event: Event, args: Namespace) -> bool:
    if args.guest and event.guest_id != args.guest:
        return False
    return not args.kind or any(event.kind == kind or event.kind.startswith(f"{kind}.") for kind in args.kind)


def text(event: Event) -> str:
    """An event for people, one line."""
    from sev.cli.tables import one_line
    from sev.wire import rfc3339

    details = " ".join(f"{name}={value}" for name, value in sorted(event.details.items()))
    words = [rfc3339(event.event_time) or "-", event.kind.ljust(24), event.message]
    return one_line("  ".join([*words, f"({details})"] if details else words))
