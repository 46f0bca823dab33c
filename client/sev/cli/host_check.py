"""What `sev host check` looks at and how it shows it."""

from __future__ import annotations

from sev.cli.check_lines import follows, lines
from sev.cli.host import TECHNOLOGIES
from sev.host.result import SKIPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from sev.cli.output import Output
    from sev.host.verdict import HostCheck


def look(args: Namespace, out: Output, technology: str) -> HostCheck:
    """This machine; with --socket, the host of the daemon there. Raises SevError."""
    if args.socket:
        from sev.cli.connection import connected, mark_simulated

        with connected(args, out, mark=False) as host:
            checked = host.check_host(technology)
        mark_simulated(out, checked.simulated)
        return checked
    from sev.host.linux import LinuxReader
    from sev.host.verdict import check_host

    out.detail("sev: looking at this machine itself; --socket asks a daemon")
    return check_host(LinuxReader(), technology)


def text(checked: HostCheck, *, everything: bool) -> str:
    """The checks by group, and what they add up to.

    Args:
        checked: The host.
        everything: Also checks that were not looked at because another one did not pass.
    """
    out = lines(checked.checks, everything=everything)
    for one in checked.abilities:
        if checked.technology in ("", one.technology):
            answer = "yes" if one.able else f"no: {', '.join(one.blocked_by)}"
            out.append(f"{TECHNOLOGIES.get(one.technology, one.technology) + ' guests:':<16}{answer}")
    unseen = sum(check.result == SKIPPED and not follows(check) for check in checked.checks)
    if checked.able and unseen:
        out.append(f"{unseen} checks were skipped; the answer does not rest on them.")
    return "\n".join(out)
