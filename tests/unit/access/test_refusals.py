"""Refusals: so many a minute are recorded one by one, the rest as a number."""

from __future__ import annotations

from sevd.access.refusals import KINDS, RECORDED, WINDOW_SECONDS, Refusals


def test_what_is_left_out_is_told_when_the_minute_is_over() -> None:
    told: list[tuple[str, str, int]] = []
    now = [0.0]
    refusals = Refusals(lambda *facts: told.append(facts), lambda: now[0])
    recorded = [refusals.record("uid:1", "LIMIT_REACHED") for _ in range(RECORDED + 30)]
    assert recorded == [True] * RECORDED + [False] * 30
    assert refusals.record("uid:1", "NOT_PERMITTED")
    assert refusals.record("uid:2", "LIMIT_REACHED")
    assert told == []
    now[0] += WINDOW_SECONDS
    assert refusals.record("uid:1", "LIMIT_REACHED")
    assert told == [("uid:1", "LIMIT_REACHED", 30)]
    refusals.renew()
    assert len(told) == 1


def test_any_number_of_identities() -> None:
    told: list[tuple[str, str, int]] = []
    refusals = Refusals(lambda *facts: told.append(facts), lambda: 0.0)
    assert all(refusals.record(f"uid:{number}", "X") for number in range(KINDS))
    assert not any(refusals.record(f"uid:{KINDS + number}", "X") for number in range(100))
    assert len(refusals._counts) == KINDS + 1
    refusals.renew()
    assert told == [("", "X", 100)]
