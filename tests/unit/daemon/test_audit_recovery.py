"""What a daemon that was killed could not record is recorded by the next one, once."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sev.audit_trail import open_files, records, verify
from sevd import audit_file, audit_recovery
from sevd.access.identity import Caller
from sevd.access.roles import Role
from sevd.audit import Audit
from sevd.audit_recovery import recover
from sevd.journal import Journal, Outcome

ALICE = Caller.local(1000, 100, 42, Role.ADMIN)
METHOD = "/sev.v1.SnpPlatformService/CommitSnp"


def act(folder: Path, *ids: str, outcome: Outcome | None = None, record: bool = True) -> None:
    """A daemon's life: calls under these ids, with or without their audit records."""
    with closing(Journal(folder / "journal")) as journal, closing(Audit(folder / "audit")) as audit:
        for request_id in ids:
            journal.begin(ALICE.owner, request_id, METHOD, "d")
            if outcome is not None:
                journal.finish(ALICE.owner, request_id, outcome)
            if record:
                audit.call(ALICE, "", "admin", {"method": "S/M", "request_id": request_id, "result": "done"})


def start(folder: Path) -> list[dict[str, Any]]:
    """What the next start records."""
    before = len((folder / "audit").read_text().splitlines())
    with closing(Journal(folder / "journal")) as journal, closing(Audit(folder / "audit")) as audit:
        count = recover(audit, journal)
    found = [json.loads(line) for line in (folder / "audit").read_text().splitlines()[before:]]
    assert len(found) == count
    assert verify(records(open_files(str(folder / "audit")))).intact
    return found


@pytest.mark.parametrize(
    ("outcome", "result", "reason"),
    [
        (None, "unknown", None),
        (Outcome(0, b""), "done", None),
        (Outcome(9, b"", "no", "FIRMWARE_STATUS"), "refused", "FIRMWARE_STATUS"),
        (Outcome(13, b"", "no", "INTERNAL"), "failed", "INTERNAL"),
    ],
)
def test_it_is_recorded_with_what_is_known_and_once(
    tmp_path: Path, outcome: Outcome | None, result: str, reason: str | None
) -> None:
    act(tmp_path, "a", "b", outcome=Outcome(0, b""))
    act(tmp_path, "lost", outcome=outcome, record=False)
    (found,) = start(tmp_path)
    assert (found["method"], found["request_id"], found["caller"]) == (
        "SnpPlatformService/CommitSnp",
        "lost",
        {"owner": "uid:1000"},
    )
    assert (found["result"], found.get("reason"), found["message"]) == (result, reason, audit_recovery.MESSAGE)
    assert found["began"] <= found["time"]
    assert start(tmp_path) == []


def test_a_start_after_a_life_without_accidents_records_nothing(tmp_path: Path) -> None:
    act(tmp_path, *map(str, range(50)), outcome=Outcome(0, b""))
    assert start(tmp_path) == []


def test_the_first_call_ever_is_not_lost(tmp_path: Path) -> None:
    act(tmp_path, "first", record=False)
    assert [one["request_id"] for one in start(tmp_path)] == ["first"]


def test_the_same_id_of_another_identity_is_another_call(tmp_path: Path) -> None:
    act(tmp_path, "same")
    with closing(Journal(tmp_path / "journal")) as journal:
        journal.begin("uid:1001", "same", METHOD, "d")
    assert [one["caller"]["owner"] for one in start(tmp_path)] == ["uid:1001"]


def test_what_is_out_of_sight_is_not_recorded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_file, "TAIL_BYTES", 2000)
    act(tmp_path, *map(str, range(60)), outcome=Outcome(0, b""))
    act(tmp_path, "lost", record=False)
    assert [one["request_id"] for one in start(tmp_path)] == ["lost"]


def test_a_trail_that_was_put_aside_whole_tells_nothing(tmp_path: Path) -> None:
    act(tmp_path, "a")
    (tmp_path / "audit").rename(tmp_path / "audit.1")
    (tmp_path / "audit").touch()
    assert start(tmp_path) == []


@pytest.mark.parametrize(
    "foreign",
    ['{"request_id":["a"]}', '{"caller":{"owner":{}}}', '{"time":[1]}', "[" * 9000, "\0"],
    ids=["request id", "owner", "time", "deep", "zero"],
)
def test_a_line_that_somebody_else_wrote_keeps_no_daemon_from_its_start(tmp_path: Path, foreign: str) -> None:
    act(tmp_path, "a")
    act(tmp_path, "lost", record=False)
    with (tmp_path / "audit").open("a") as file:
        file.write(f"{foreign}\n")
    with closing(Journal(tmp_path / "journal")) as journal, closing(Audit(tmp_path / "audit")) as audit:
        assert recover(audit, journal) == 1
