"""`sev top`: a live table of a host and its guests."""

from __future__ import annotations

from sev.cli.parser import examples
from sev.cli.values import integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from sev.cli.output import Output
    from sev.client import Host
    from sev.guest_model import Guest
    from sev.metrics_model import Metrics
    from sev.model import AsidUse

_TOP = """\
Shows, again and again, how the host does: ASIDs in use, guests by state, calls and
firmware commands a second and how long they take, what waits for the device, the
platform's TCBs, certificates that run out, and the guests that you may see.

Rates are those since the picture before; in the first one there are none. On a
terminal the picture is drawn in place, and Ctrl-C ends it; elsewhere pictures
follow one another.
"""

SECONDS = 2.0
"""Between two pictures."""

EXPIRY_DAYS = 30
"""Certificates and lists that run out within so many days are shown."""

_CLEAR = "\x1b[H\x1b[2J"


def build(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.description = _TOP
    parser.add_argument("--interval", metavar="SECONDS", type=_seconds, default=SECONDS, help="between two pictures")
    parser.add_argument("--count", "-n", metavar="N", type=integer(1), default=0, help="end after N pictures")
    examples(
        parser,
        ("sev top", "a live picture of this host"),
        ("sev top -n 1", "one picture"),
        ("sev top --json --interval 10", "a line of JSON every ten seconds, for a script"),
        notes="JSON Lines: time, host (as of sev host show), guests [as of sev guest list], metrics [{name, help,\n"
        "kind, samples [{labels, value, count?, buckets?}]}].",
    )
    parser.set_defaults(run=_run)


def _run(args: Namespace, out: Output) -> int:
    import sys
    from shutil import get_terminal_size
    from time import sleep

    from sev.cli.connection import connected

    live = not out.json and sys.stdout.isatty()
    with connected(args, out) as host:
        before: Metrics | None = None
        drawn = 0
        while True:
            before, document, lines = _picture(host, before, full=out.json)
            if live:
                room = get_terminal_size()
                lines = [line[: room.columns] for line in lines[: max(room.lines - 1, 1)]]
            out.line(document, (_CLEAR if live else "") + "\n".join(lines) + ("" if live else "\n"))
            drawn += 1
            if drawn == args.count:
                return 0
            sleep(args.interval)


def _picture(host: Host, before: Metrics | None, *, full: bool) -> tuple[Metrics, dict[str, object], list[str]]:
    """What is to be seen now, as a document (if `full`) and as lines."""
    info, guests, now = host.host(), host.guests(), host.metrics()
    if full:
        document: dict[str, object] = now.document()
        document.update(host=info.document(), guests=[guest.document() for guest in guests])
        return now, document, []
    from sev.cli.tables import facts

    health = info.device_health + (f" for {_busy(now)}" if info.device_health == "wedged" else "")
    name = f"{info.product.capitalize() or 'unknown processor'}{' (simulated)' if info.simulated else ''}"
    pairs: list[tuple[str, object]] = [
        ("host", f"{name}, firmware {info.firmware or 'unknown'}, device {health}, sevd {info.daemon_version}"),
        ("ASIDs", f"SEV {_use(info.sev_asids)}, SEV-ES and SEV-SNP {_use(info.sev_es_asids)}"),
        ("TCB", _tcb(now)),
        ("calls", _calls(now, before)),
        ("device", _device(now, before)),
        ("daemon", _daemon(now, before)),
        ("runs out", _expiries(now)),
        ("missing", "\n".join(info.missing)),
        ("drift", _drift(now)),
    ]
    return now, {}, [*facts(pairs).split("\n"), "", *_guests(guests)]


def _use(asids: AsidUse) -> str:
    return f"{asids.in_use} of {asids.total}" if asids.total else "none"


def _busy(now: Metrics) -> str:
    return f"{now.value('sevd_device_busy_seconds') or 0:.0f} s"


def _tcb(now: Metrics) -> str:
    """The TCBs, one after the other; equal ones together."""
    levels: dict[str, list[str]] = {}
    for sample in now.samples("sevd_tcb"):
        levels.setdefault(sample.labels["tcb"], []).append(f"{sample.labels['component']}={sample.value:.0f}")
    shown: dict[str, list[str]] = {}
    for which, parts in levels.items():
        shown.setdefault(" ".join(parts), []).append(which)
    return "\n".join(f"{text} ({', '.join(names)})" for text, names in shown.items())


def _calls(now: Metrics, before: Metrics | None) -> str:
    parts = []
    rate = _rate(now, before, "sevd_calls_total")
    if rate is not None:
        parts.append(f"{rate:.1f} a second")
    failed = sum(one.value for one in now.samples("sevd_calls_total") if one.labels["code"] not in ("OK", "CANCELLED"))
    parts.append(f"{now.value('sevd_calls_total') or 0:.0f} so far, {failed:.0f} refused or failed")
    parts.append(f"{now.value('sevd_calls_in_flight') or 0:.0f} under way")
    took = _mean(now, before, "sevd_call_seconds")
    if took is not None:
        parts.append(f"{took * 1000:.1f} ms each")
    return ", ".join(parts)


def _device(now: Metrics, before: Metrics | None) -> str:
    parts = []
    rate = _rate(now, before, "sevd_device_step_seconds")
    if rate is not None:
        parts.append(f"{rate:.1f} steps a second")
    took = _mean(now, before, "sevd_device_step_seconds")
    if took is not None:
        parts.append(f"{took * 1000:.1f} ms each")
    parts.append(f"{now.value('sevd_device_queue') or 0:.0f} waiting")
    refused = sum(one.observations for one in now.samples("sevd_device_step_seconds") if one.labels["result"] != "done")
    parts.append(f"{refused} refused so far")
    return ", ".join(parts)


def _daemon(now: Metrics, before: Metrics | None) -> str:
    parts = []
    started = now.value("sevd_start_time_seconds")
    if started is not None and now.time is not None:
        parts.append(f"up {_span(now.time.timestamp() - started)}")
    parts.append(f"{now.value('sevd_connections') or 0:.0f} connections")
    memory = now.value("sevd_resident_memory_bytes")
    if memory:
        parts.append(f"{memory / (1 << 20):.0f} MiB")
    busy = _rate(now, before, "sevd_cpu_seconds_total")
    if busy is not None:
        parts.append(f"{busy:.0%} of a processor")
    return ", ".join(parts)


def _expiries(now: Metrics) -> str:
    """What runs out soon, or has."""
    if now.time is None:
        return ""
    at = now.time.timestamp()
    soon = [(one.value - at, one.labels["kind"].upper()) for one in now.samples("sevd_endorsement_expiry_seconds")]
    shown = [(left, kind) for left, kind in sorted(soon) if left < EXPIRY_DAYS * 86400]
    return ", ".join(f"{kind} in {_span(left)}" if left > 0 else f"{kind} HAS RUN OUT" for left, kind in shown)


def _drift(now: Metrics) -> str:
    count = now.value("sevd_platform_drift")
    return f"{count:.0f} wishes of the configuration are not met: see sev host show" if count else ""


def _guests(guests: Sequence[Guest]) -> list[str]:
    from sev.cli.tables import rows, size

    if not guests:
        return ["no guests"]
    lines = [
        [one.guest_id, one.type, one.state, one.owner, str(one.vcpu_count), size(one.memory_bytes), one.label]
        for one in guests
    ]
    return rows(["GUEST", "TYPE", "STATE", "OWNER", "VCPUS", "MEMORY", "LABEL"], lines, right=(4, 5)).split("\n")


def _total(now: Metrics, name: str) -> float:
    """The sum of a counter, or the number of observations of a histogram."""
    samples = now.samples(name)
    return sum(one.observations if one.buckets else one.value for one in samples)


def _seconds_between(now: Metrics, before: Metrics | None) -> float | None:
    """None without two pictures of the same run of the daemon."""
    if before is None or now.time is None or before.time is None:
        return None
    if now.value("sevd_start_time_seconds") != before.value("sevd_start_time_seconds"):
        return None
    return max((now.time - before.time).total_seconds(), 1e-6)


def _rate(now: Metrics, before: Metrics | None, name: str) -> float | None:
    """How much a counter went up a second."""
    seconds = _seconds_between(now, before)
    if seconds is None or before is None:
        return None
    return (_total(now, name) - _total(before, name)) / seconds


def _mean(now: Metrics, before: Metrics | None, name: str) -> float | None:
    """Mean seconds of what was observed since the picture before; in the first one, since the daemon's start."""
    earlier = before if _seconds_between(now, before) is not None else None
    count = _total(now, name) - (_total(earlier, name) if earlier else 0)
    spent = (now.value(name) or 0) - ((earlier.value(name) or 0) if earlier else 0)
    return spent / count if count > 0 else None


def _span(seconds: float) -> str:
    """A length of time in one unit, or two."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _seconds(text: str) -> float:
    from argparse import ArgumentTypeError

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86400:
        raise ArgumentTypeError(f"{text!r}: expected seconds from 0.1 to 86400")
    return value
