"""How checks are shown to people, whatever was checked: a machine as a host, or from inside a guest."""

from __future__ import annotations

from sev.host.result import FAILED, PASSED, SKIPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sev.guest.checks import GuestCheckResult
    from sev.host.result import CheckResult

    Result = CheckResult | GuestCheckResult

_WORDS = {PASSED: "ok", FAILED: "FAIL", SKIPPED: "skip"}


def lines(checks: Sequence[Result], *, everything: bool) -> list[str]:
    """The checks by group, each with its remedy; an empty line at the end.

    Args:
        checks: In order, those of a group one after the other.
        everything: Also checks that were not looked at because another one did not pass; else their number is told.
    """
    shown = [check for check in checks if everything or not follows(check)]
    width = max((len(check.id) for check in shown), default=0)
    out: list[str] = []
    group = ""
    for check in shown:
        if check.group != group:
            out += ["", check.group] if group else [check.group]
            group = check.group
        out.append(f"  {_WORDS.get(check.result, check.result):<5} {check.id:<{width}}  {check.reason}")
        if check.remedy and not follows(check):
            out.append(f"  {'':5} {'':{width}}  {check.remedy}")
    out.append("")
    hidden = len(checks) - len(shown)
    if hidden:
        out += [f"{hidden} more were not looked at because of these; -v lists them.", ""]
    return out


def follows(check: Result) -> bool:
    """It was not looked at because another check did not pass."""
    return check.result == SKIPPED and check.reason.startswith("not looked at: ")
