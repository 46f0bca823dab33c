"""A checked host as the message of HostService.CheckHost, both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.host.result import FAILED, PASSED, SKIPPED, CheckResult
from sev.host.verdict import Ability, HostCheck
from sev.wire import word

if TYPE_CHECKING:
    from sev.v1 import host_pb2


def to_message(checked: HostCheck, *, simulated: bool) -> host_pb2.CheckHostResponse:
    """The answer of the daemon."""
    from sev.v1 import host_pb2

    results = {
        PASSED: host_pb2.CHECK_RESULT_PASSED,
        FAILED: host_pb2.CHECK_RESULT_FAILED,
        SKIPPED: host_pb2.CHECK_RESULT_SKIPPED,
    }
    return host_pb2.CheckHostResponse(
        able=checked.able,
        abilities=[
            host_pb2.HostAbility(technology=one.technology, able=one.able, blocked_by=one.blocked_by)
            for one in checked.abilities
        ],
        checks=[
            host_pb2.HostCheck(
                id=one.id,
                group=one.group,
                title=one.title,
                result=results[one.result],
                reason=one.reason,
                remedy=one.remedy,
                decides=one.decides,
                required=one.required,
                about=one.about,
            )
            for one in checked.checks
        ],
        simulated=simulated,
    )


def from_message(message: host_pb2.CheckHostResponse, technology: str) -> HostCheck:
    """What the daemon answered to a question about `technology`."""
    from sev.v1 import host_pb2

    return HostCheck(
        technology,
        message.able,
        tuple(Ability(one.technology, one.able, tuple(one.blocked_by)) for one in message.abilities),
        tuple(
            CheckResult(
                one.id,
                one.group,
                one.title,
                word(host_pb2.CheckResult, "CHECK_RESULT_", one.result),
                one.reason,
                one.remedy,
                tuple(one.decides),
                tuple(one.required),
                tuple(one.about),
            )
            for one in message.checks
        ),
        message.simulated,
    )
