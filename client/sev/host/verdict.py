"""All checks of a host, and what they add up to.

A host is able to run guests of a technology if no check that the technology requires failed and every check that
decides passed. Skipped never counts as passed: a check that decides and was skipped makes the host unable, any other
that was skipped is listed and leaves the verdict to those that decide. Those that decide can be looked at by every user
(CPUID or /proc/cpuinfo, kvm_amd's parameters, which the kernel rewrites to what is in effect, and whether the devices
are there); what takes root adds reasons for a no, and is never what a yes rests on.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sev.errors import SevError, UsageError
from sev.host import bios, kernel, platform, processor, resources
from sev.host.machine import Machine
from sev.host.result import FAILED, GROUPS, PASSED, SKIPPED, TECHNOLOGIES, CheckResult, NotSeen, Outcome, skipped
from sev.records import record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sev.host.reader import Reader
    from sev.host.result import Check

_ALL = (
    *processor.CHECKS.all, *bios.CHECKS.all, *kernel.CHECKS.all, *platform.CHECKS.all, *resources.CHECKS.all,
)  # fmt: skip

CHECKS: tuple[Check, ...] = tuple(sorted(_ALL, key=lambda check: GROUPS.index(check.group)))
"""Every check, by group."""


@record
class Ability:
    """Whether a host can run guests of one technology.

    Attributes:
        technology: "sev", "sev-es" or "sev-snp".
        able: It can.
        blocked_by: Ids of the checks that say no, in order; where none does, of those that decide and were skipped.
    """

    technology: str
    able: bool
    blocked_by: tuple[str, ...]


@record
class HostCheck:
    """A host, checked.

    Attributes:
        technology: What was asked for; empty for anything at all.
        able: It can run that.
        abilities: One for each technology.
        checks: The checks that say something about what was asked for.
        simulated: The host is a simulation.
    """

    technology: str
    able: bool
    abilities: tuple[Ability, ...]
    checks: tuple[CheckResult, ...]
    simulated: bool = False

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev host check --json` prints it."""
        return {
            "able": self.able,
            "for": self.technology or None,
            "simulated": self.simulated,
            "technologies": {
                one.technology: {"able": one.able, "blocked_by": list(one.blocked_by)} for one in self.abilities
            },
            "checks": [check.document() for check in self.checks],
        }


def check_host(reader: Reader, technology: str = "", *, statuses: Mapping[str, object] | None = None) -> HostCheck:
    """Looks at a host.

    Args:
        reader: The host.
        technology: "sev", "sev-es" or "sev-snp"; empty for anything at all.
        statuses: What the platform has answered already (`sev.host.machine.Machine`).

    Raises:
        UsageError: No such technology.
    """
    require(technology)
    results = _look(Machine(reader, statuses))
    abilities = tuple(ability(results, one) for one in TECHNOLOGIES)
    able = any(one.able for one in abilities if technology in ("", one.technology))
    shown = tuple(result for result in results if not technology or technology in result.about)
    return HostCheck(technology, able, abilities, shown)


def require(technology: str) -> None:
    """Raises UsageError if there is no such technology; empty is anything at all."""
    if technology and technology not in TECHNOLOGIES:
        raise UsageError(
            f"unknown technology {technology!r}: expected one of {', '.join(TECHNOLOGIES)}", field="technology"
        )


def ability(results: list[CheckResult], technology: str) -> Ability:
    """The verdict for one technology."""
    no = tuple(
        result.id for result in results if result.result == FAILED and technology in (*result.decides, *result.required)
    )
    unseen = tuple(result.id for result in results if result.result == SKIPPED and technology in result.decides)
    return Ability(technology, not no and not unseen, no or unseen)


def _look(machine: Machine) -> list[CheckResult]:
    outcomes: dict[str, Outcome] = {}
    roots: dict[str, str] = {}
    for check in _in_order():
        before = next((name for name in check.after if outcomes[name].result != PASSED), None)
        if before is None:
            outcomes[check.id] = _outcome(check, machine)
            continue
        root = roots[check.id] = roots.get(before, before)
        how = "failed" if outcomes[root].result == FAILED else "was skipped"
        outcomes[check.id] = skipped(f"not looked at: {root} {how}", f"See {root}.")
    return [
        CheckResult(
            check.id, check.group, check.title, seen.result, seen.reason, seen.remedy,
            check.decides, check.required, check.about,
        )
        for check in CHECKS
        for seen in (outcomes[check.id],)
    ]  # fmt: skip


def _outcome(check: Check, machine: Machine) -> Outcome:
    try:
        return check.look(machine)
    except NotSeen as why:
        return skipped(why.reason, why.remedy)
    except SevError as error:
        return skipped(error.message, error.remedy)
    except OSError as error:
        return skipped(f"it cannot be looked at: {error.strerror or errno.errorcode.get(error.errno or 0, 'unknown')}")


def _in_order() -> list[Check]:
    """The checks, each behind those that it comes after."""
    by_id = {check.id: check for check in CHECKS}
    order: dict[str, Check] = {}

    def add(check: Check) -> None:
        for name in check.after:
            if name not in order:
                add(by_id[name])
        order.setdefault(check.id, check)

    for check in CHECKS:
        add(check)
    return list(order.values())
