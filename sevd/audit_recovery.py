"""What a daemon that was killed could not record any more, recorded by the next one.

A change under a request id is in the journal before it acts, and in the audit trail when it has ended. A daemon that is
killed in between leaves the first without the second: the next one finds it, and records it with what the journal knows
of its outcome.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sev.audit_trail import stamp

if TYPE_CHECKING:
    from sev.audit_trail import AuditRecord
    from sevd.audit import Audit
    from sevd.journal import Entry, Journal

MESSAGE = "recorded by the next daemon: the one that was asked ended before it could"

_INTERNAL = 13


def recover(audit: Audit, journal: Journal) -> int:
    """Records what is missing; answers how many records that were."""
    entries = journal.earlier()
    if not entries:
        return 0
    records, whole = audit.end()
    if not records and not whole:
        return 0  # nothing can be told: the trail was taken away
    known = {(record.caller, str(record.facts.get("request_id", ""))) for record in records}
    # What began before the records that were looked at may be among those that were not. Times of records are cut off.
    since = 0.0 if whole else _seconds(records[0]) + 0.001
    missing = [one for one in entries if one.begun >= since and (one.owner, one.request_id) not in known]
    for one in missing:
        audit.recovered(one.owner, _facts(one))
    return len(missing)


def _facts(entry: Entry) -> dict[str, object]:
    began = stamp(datetime.fromtimestamp(entry.begun, UTC))
    facts: dict[str, object] = {"method": entry.method.rpartition(".")[2], "request_id": entry.request_id}
    if entry.outcome is None:
        facts["result"] = "unknown"
    elif not entry.outcome.code:
        facts["result"] = "done"
    else:
        facts["result"] = "failed" if entry.outcome.code == _INTERNAL else "refused"
        facts["reason"] = entry.outcome.reason
    return {**facts, "message": MESSAGE, "began": began}


def _seconds(record: AuditRecord) -> float:
    try:
        return datetime.fromisoformat(record.time).timestamp()
    except ValueError:
        return float("inf")
