"""Reading the trail while it is written: filters, the last ones, following, and what must not be asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev import audit_trail
from sev.audit_trail import AuditFilter, AuditRecord, moment, stamp
from sev.errors import LimitReached, MalformedInput, NotFound, UsageError
from sevd import audit_reading
from sevd.access.identity import Caller
from sevd.access.roles import Role
from sevd.audit import Audit
from sevd.audit_reading import AuditReading

ALICE = Caller.local(1000, 100, 42, Role.LAUNCHER)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
REMOTE = Caller.remote("dns:host.example", Role.ADMIN)


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    found = Audit(tmp_path / "a", file_bytes=8000, files=99)
    yield found
    found.close()


def write(audit: Audit, count: int, caller: Caller = ALICE, **facts: object) -> None:
    for _ in range(count):
        audit.call(caller, "vm.service", "sevd", {"method": "GuestService/CreateGuest", "result": "done", **facts})


def read(audit: Audit, wanted: AuditFilter | None = None, *, last: int = 0) -> list[AuditRecord]:
    async def all_of_them() -> list[AuditRecord]:
        return [one async for one in AuditReading(audit).read(wanted or AuditFilter(), last=last)]

    return asyncio.run(all_of_them())


def test_everything_in_order_over_all_files(audit: Audit, tmp_path: Path) -> None:
    write(audit, 1000)
    assert len(list(tmp_path.iterdir())) > 9
    numbers = [one.sequence for one in read(audit)]
    assert numbers == list(range(numbers[0], 1001))
    assert [one.sequence for one in read(audit, last=3)] == [998, 999, 1000]


@pytest.mark.parametrize("size", [1, 7, 100, 4096])
def test_from_the_end_is_the_same_from_the_other_end(audit: Audit, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(audit_trail, "_PIECE_BYTES", size)
    write(audit, 40)
    with open(str(audit.path), "ab") as file:
        file.write(b'\n{"cut off')
    path = str(audit.path)
    forwards = [one.line for one in audit_trail.records(audit_trail.open_files(path)) if one.line]
    assert [one.line for one in audit_trail.newest_first(audit_trail.open_files(path))] == forwards[::-1]


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b'{"sequence":1,"previous":"x"}', b"[]", b"{}", b"1e999"])))
def test_lines_of_others_are_records_or_not_and_never_a_trace(lines: list[bytes]) -> None:
    parsed = [AuditRecord.parse(line.decode("utf-8", "replace")) for line in lines]
    found = audit_trail.verify(parsed)
    json.dumps([found.document(), *(one.document() for one in parsed)])
    for one in parsed:
        AuditFilter(method="m", caller="c", request_id="r", since=NOW).admits(one)


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (AuditFilter(), 4),
        (AuditFilter(method="GuestService/CreateGuest"), 2),
        (AuditFilter(method="CreateGuest"), 2),
        (AuditFilter(method="SnpPlatformService"), 2),
        (AuditFilter(method="Create"), 0),
        (AuditFilter(caller="uid:1000"), 2),
        (AuditFilter(caller="1000"), 2),
        (AuditFilter(caller="vm.service"), 4),
        (AuditFilter(caller="dns:host.example"), 2),
        (AuditFilter(caller="dns:other"), 1),
        (AuditFilter(result="refused"), 1),
        (AuditFilter(target="g1"), 1),
        (AuditFilter(request_id="deploy-42"), 2),
        (AuditFilter(request_id="deploy-4"), 0),
        (AuditFilter(request_id="deploy-42.b"), 1),
        (AuditFilter(caller="uid:1000", result="refused"), 0),
        (AuditFilter(since=datetime(2000, 1, 1, tzinfo=UTC)), 4),
        (AuditFilter(until=datetime(2000, 1, 1, tzinfo=UTC)), 0),
    ],
)
def test_filters(audit: Audit, wanted: AuditFilter, count: int) -> None:
    write(audit, 1, target="g1", request_id="deploy-42.a")
    write(audit, 1, request_id="deploy-42.b")
    write(audit, 1, REMOTE, method="SnpPlatformService/CommitSnp", result="refused")
    facts: dict[str, object] = {"method": "SnpPlatformService/CommitSnp", "result": "done"}
    audit.call(REMOTE, "vm.service", "mtls", facts, names=("dns:host.example", "dns:other"))
    assert len(read(audit, wanted)) == count


def test_times_are_whole_at_their_edges(audit: Audit) -> None:
    write(audit, 1)
    (one,) = read(audit)
    at = datetime.fromisoformat(one.time)
    assert stamp(at) == one.time
    assert len(read(audit, AuditFilter(since=at))) == 1
    assert len(read(audit, AuditFilter(until=at))) == 0
    assert len(read(audit, AuditFilter(since=at + timedelta(milliseconds=1)))) == 0


async def following(audit: Audit, before: int, meanwhile: int, after: int) -> list[int]:
    """Numbers that a follower hears while records are written before, during and after its look into the files."""
    reading = AuditReading(audit)
    write(audit, before)
    stream = reading.read(AuditFilter(), follow=True)
    heard = [(await anext(stream)).sequence]
    await asyncio.to_thread(write, audit, meanwhile)
    while len(heard) < before + meanwhile:
        heard.append((await anext(stream)).sequence)
    write(audit, after)
    while len(heard) < before + meanwhile + after:
        heard.append((await anext(stream)).sequence)
    reading.close()
    assert [one async for one in stream] == []
    assert not reading._following
    return heard


def test_a_follower_misses_nothing_and_hears_nothing_twice(audit: Audit) -> None:
    assert asyncio.run(following(audit, 700, 300, 5)) == list(range(1, 1006))


async def anext_of(stream: AsyncIterator[AuditRecord], count: int) -> None:
    for _ in range(count):
        await anext(stream)


def test_a_follower_that_does_not_read_is_ended(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_reading, "QUEUE_RECORDS", 8)

    async def lag() -> None:
        stream = AuditReading(audit).read(AuditFilter(), follow=True)
        write(audit, 1)
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.2)  # the files are at their end
        write(audit, 20)
        assert (await waiting).sequence == 2
        with pytest.raises(LimitReached):
            await anext_of(stream, 21)

    asyncio.run(lag())


def test_what_must_not_be_asked(audit: Audit) -> None:
    with pytest.raises(UsageError, match="at most 10000"):
        read(audit, last=10_001)
    with pytest.raises(UsageError, match="result"):
        AuditFilter(result="won")

    async def endless() -> None:
        await anext(AuditReading(audit).read(AuditFilter(until=datetime.now(UTC)), follow=True))

    with pytest.raises(UsageError, match="no end"):
        asyncio.run(endless())


def test_without_files_there_is_nothing_and_without_a_trail_it_is_said(audit: Audit, tmp_path: Path) -> None:
    (tmp_path / "a").unlink()
    assert read(audit) == []
    with pytest.raises(NotFound):
        read(Audit(None))


def test_a_line_that_is_no_record_is_shown_where_everything_is(audit: Audit, tmp_path: Path) -> None:
    write(audit, 1)
    with (tmp_path / "a").open("ab") as file:
        file.write(b'{"time":"2026-\n[1]\n\xff\xfe\n')
    found = read(audit)
    assert [one.document().get("unreadable") for one in found[1:]] == ['{"time":"2026-', "[1]", "\ufffd\ufffd"]
    assert len(read(audit, AuditFilter(method="CreateGuest"))) == 1
    json.dumps([one.document() for one in found])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("2h", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
        ("2026-02-28", datetime(2026, 2, 28, tzinfo=UTC)),
        ("2026-02-28T10:00:00Z", datetime(2026, 2, 28, 10, tzinfo=UTC)),
        ("2026-02-28T10:00:00+02:00", datetime(2026, 2, 28, 8, tzinfo=UTC)),
    ],
)
def test_times_that_people_name(text: str, expected: datetime) -> None:
    assert moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "soon", "h", "-2h", "9999999d", "99999999s", "2026-13-01", "²h", "2h ago"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(MalformedInput, match="how long ago"):
        moment(text, NOW)
