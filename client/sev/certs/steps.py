"""The steps of a verification, one after the other: what each found, and that nothing goes on after one that failed."""

from __future__ import annotations

from sev.certs.errors import NotGenuine
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class Step:
    """One step.

    Attributes:
        id: Its name, as the verification that it belongs to lists them.
        result: "passed", "failed" or "skipped".
        reason: Why, as one sentence without a full stop.
    """

    __slots__ = ("id", "reason", "result")

    def __init__(self, name: str, result: str, reason: str) -> None:
        self.id = name
        self.result = result
        self.reason = reason

    def document(self) -> dict[str, str]:
        """The JSON form."""
        return {"id": self.id, "result": self.result, "reason": self.reason}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.document() == other.document()

    def __hash__(self) -> int:
        return hash((self.id, self.result, self.reason))

    def __repr__(self) -> str:
        return f"<Step {self.id} {self.result}: {self.reason}>"


def run(checks: Sequence[tuple[str, Callable[[], str | None]]], invalid: type[NotGenuine]) -> tuple[Step, ...]:
    """Makes checks in order; answers a step for each.

    Args:
        checks: Name and check: what it found, None where nobody asked; it raises NotGenuine or MalformedInput to fail.
        invalid: What is raised then, with `steps`: those done, the one that failed, and the others as skipped.

    Raises:
        NotGenuine: A check failed.
    """
    steps: list[Step] = []
    for name, check in checks:
        try:
            reason = check()
        except (NotGenuine, MalformedInput) as error:
            steps.append(Step(name, FAILED, error.message))
            steps += not_reached(name, [other for other, _ in checks[len(steps) :]])
            failure = invalid(error.message, field=name, remedy=error.remedy)
            failure.steps = tuple(steps)
            raise failure from error
        steps.append(Step(name, SKIPPED, "not asked for") if reason is None else Step(name, PASSED, reason))
    return tuple(steps)


def not_reached(failed: str, names: Sequence[str]) -> list[Step]:
    """Steps that were not made because one before them failed."""
    return [Step(name, SKIPPED, f"not reached: {failed} failed") for name in names]
