"""What `sev host check` looks at and how it shows it."""

from __future__ import annotations

from sev.host.result import FAILED, PASSED, SKIPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable

    from sev.cli.output import Output
    from sev.host.result import CheckResult
    from sev.host.verdict import HostCheck

_NAMES = {"sev": "SEV", "sev-es": "SEV-ES", "sev-snp": "SEV-SNP"}
_WORDS = {PASSED: "ok", FAILED: "FAIL", SKIPPED: "skip"}


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
    shown = [check for check in checked.checks if everything or not _follows(check)]
    lines = [*_groups(shown)]
    hidden = len(checked.checks) - len(shown)
    if hidden:
        lines += [f"{hidden} more were not looked at because of these; -v lists them.", ""]
    for one in checked.abilities:
        if checked.technology in ("", one.technology):
            answer = "yes" if one.able else f"no: {', '.join(one.blocked_by)}"
            lines.append(f"{_NAMES.get(one.technology, one.technology) + ' guests:':<16}{answer}")
    unseen = sum(check.result == SKIPPED and not _follows(check) for check in checked.checks)
    if checked.able and unseen:
        lines.append(f"{unseen} checks were skipped; the answer does not rest on them.")
    return "\n".join(lines)


def _groups(checks: Iterable[CheckResult]) -> Iterable[str]:
    group = ""
    checks = list(checks)
    width = max((len(check.id) for check in checks), default=0)
    for check in checks:
        if check.group != group:
            if group:
                yield ""
            group = check.group
            yield group
        yield f"  {_WORDS.get(check.result, check.result):<5} {check.id:<{width}}  {check.reason}"
        if check.remedy and not _follows(check):
            yield f"  {'':5} {'':{width}}  {check.remedy}"
    yield ""


def _follows(check: CheckResult) -> bool:
    """It was not looked at because another check did not pass."""
    return check.result == SKIPPED and check.reason.startswith("not looked at: ")
