"""A check of a host and its outcome, as values; and how checks are declared.

A check belongs to some of three technologies, in one of three ways:

* it *decides*: a host is able only if this check passed; skipped is not passed. Only what any user can look at decides;
* it is *required*: a host is not able if this check failed; one that could not be looked at leaves the answer open to
  the checks that decide, and is listed as skipped;
* it *advises*: it changes nothing in the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sev.records import record

if TYPE_CHECKING:
    from sev.host.machine import Machine

SEV: Final = "sev"
SEV_ES: Final = "sev-es"
SEV_SNP: Final = "sev-snp"
TECHNOLOGIES: Final = (SEV, SEV_ES, SEV_SNP)
"""As GetHost and KVM's documents name them, weakest first."""

PASSED: Final = "passed"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"

GROUPS: Final = ("processor", "bios", "kernel", "kvm", "devices", "firmware", "snp", "resources", "features")
"""The order in which people read them."""


class NotSeen(Exception):
    """Something could not be looked at: the check is skipped, with this reason and remedy."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@record
class Outcome:
    """What one check found."""

    result: str
    reason: str
    remedy: str = ""


def passed(reason: str) -> Outcome:
    """It is as it should be; the reason says what was seen."""
    return Outcome(PASSED, reason)


def failed(reason: str, remedy: str) -> Outcome:
    """It is not; the remedy says what to do."""
    return Outcome(FAILED, reason, remedy)


def skipped(reason: str, remedy: str = "") -> Outcome:
    """It was not looked at, or is not to be had here."""
    return Outcome(SKIPPED, reason, remedy)


@record
class Check:
    """One check.

    Attributes:
        id: Stable identifier, such as "cpu.sev-snp".
        group: One of GROUPS.
        title: A few words for people.
        look: Looks at the machine.
        decides: Technologies for which it must pass.
        required: Technologies for which it must not fail.
        about: Technologies that it says something about, those above included.
        after: Checks without whose success this one has no meaning.
    """

    id: str
    group: str
    title: str
    look: Callable[[Machine], Outcome]
    decides: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    about: tuple[str, ...] = TECHNOLOGIES
    after: tuple[str, ...] = ()


@record
class CheckResult:
    """One check with its outcome; see Check and Outcome."""

    id: str
    group: str
    title: str
    result: str
    reason: str
    remedy: str
    decides: tuple[str, ...]
    required: tuple[str, ...]
    about: tuple[str, ...]

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "id": self.id,
            "group": self.group,
            "title": self.title,
            "result": self.result,
            "reason": self.reason,
            "remedy": self.remedy,
            "decides": list(self.decides),
            "required": list(self.required),
        }


class Checks:
    """A collection of checks, in order."""

    def __init__(self) -> None:
        self.all: list[Check] = []

    def check(
        self,
        identifier: str,
        group: str,
        title: str,
        *,
        decides: tuple[str, ...] = (),
        required: tuple[str, ...] = (),
        about: tuple[str, ...] | None = None,
        after: tuple[str, ...] = (),
    ) -> Callable[[Callable[[Machine], Outcome]], Callable[[Machine], Outcome]]:
        """Declares a function as a check."""
        bound = {*decides, *required}
        tells = about if about is not None else tuple(one for one in TECHNOLOGIES if one in bound) or TECHNOLOGIES

        def add(look: Callable[[Machine], Outcome]) -> Callable[[Machine], Outcome]:
            self.all.append(Check(identifier, group, title, look, decides, required, tells, after))
            return look

        return add
