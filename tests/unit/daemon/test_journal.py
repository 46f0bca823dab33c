"""Request ids on disk: what survives a crash, a torn line, damage, and time."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.errors import LimitReached, UsageError
from sevd import durable
from sevd import journal as module
from sevd.journal import Entry, Journal, Outcome

DONE = Outcome(0, b"\x00answer\xff")
REFUSED = Outcome(8, b"details", "not yet", "LIMIT_REACHED", kept=False)
FAILED = Outcome(9, b"details", "a message", "WRONG_STATE")


def opened(folder: Path, **more: object) -> Journal:
    return Journal(folder / "j", **more)  # type: ignore[arg-type]


def outcome(journal: Journal, request_id: str = "id", owner: str = "o") -> Outcome | None:
    entry = journal.find(owner, request_id, "/m", "d")
    assert entry is not None
    return entry.outcome


@pytest.mark.parametrize("ended", [DONE, FAILED], ids=["success", "failure"])
def test_an_outcome_survives(tmp_path: Path, ended: Outcome) -> None:
    journal = opened(tmp_path)
    assert journal.find("o", "id", "/m", "d") is None
    journal.begin("o", "id", "/m", "d")
    assert outcome(journal) is None
    journal.finish("o", "id", ended)
    assert outcome(journal) == ended
    journal.close()
    again = opened(tmp_path)
    assert outcome(again) == ended
    assert stat.S_IMODE(os.stat(tmp_path / "j").st_mode) == 0o600


def test_the_beginning_is_on_disk_before_anything_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    journal = opened(tmp_path)
    journal.begin("o", "id", "/m", "d")
    assert synced == [(tmp_path / "j").stat().st_size]
    assert synced[0] > 0


def test_an_outcome_that_is_not_kept_frees_its_id(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.begin("o", "id", "/m", "d")
    journal.finish("o", "id", REFUSED)
    assert journal.find("o", "id", "/other", "e") is None
    journal.close()
    again = opened(tmp_path)
    assert again.find("o", "id", "/m", "d") is None
    again.begin("o", "id", "/m", "d")
    again.finish("o", "id", DONE)
    again.close()
    assert outcome(opened(tmp_path)) == DONE


def test_a_crash_in_between_is_remembered_as_unknown(tmp_path: Path) -> None:
    opened(tmp_path).begin("o", "id", "/m", "d")
    entry = opened(tmp_path).find("o", "id", "/m", "d")
    assert entry is not None
    assert (entry.outcome, entry.here) == (None, False)


@pytest.mark.parametrize("change", [("/other", "d"), ("/m", "other")], ids=["method", "content"])
def test_an_id_is_bound_to_its_request(tmp_path: Path, change: tuple[str, str]) -> None:
    journal = opened(tmp_path)
    journal.begin("o", "id", "/m", "d")
    with pytest.raises(UsageError) as caught:
        journal.find("o", "id", *change)
    assert caught.value.field == "request_id"
    assert journal.find("another", "id", *change) is None


def test_a_torn_last_line_is_dropped_and_the_rest_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = opened(tmp_path)
    journal.begin("o", "one", "/m", "d")
    journal.finish("o", "one", DONE)
    journal.begin("o", "two", "/m", "d")
    journal.close()
    data = (tmp_path / "j").read_bytes()
    for cut in range(1, 40):
        (tmp_path / "j").write_bytes(data[:-cut])
        again = opened(tmp_path)
        assert outcome(again, "one") == DONE
        assert again.find("o", "two", "/m", "d") is None
        again.begin("o", "three", "/m", "d")
        again.close()
        assert opened(tmp_path).find("o", "three", "/m", "d") is not None
    assert "torn" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b"{}",
        b'{"owner":1,"request_id":"x","method":"m","digest":"d","begun":1}',
        b'{"owner":"o","request_id":"x","method":"m","digest":"d","begun":"never"}',
        b'{"owner":"o","request_id":"x","method":"m","digest":"d","begun":1,"outcome":5}',
        b'{"owner":"o","request_id":"x","method":"m","digest":"d","begun":1,"outcome":{"code":0,"content":"*"}}',
        b"\xff\xfe",
        b"[" * 100000,
    ],
)
def test_damage_is_said_set_aside_and_what_can_be_read_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    journal = opened(tmp_path)
    journal.begin("o", "one", "/m", "d")
    journal.finish("o", "one", DONE)
    journal.close()
    before = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(line + b"\n" + before)
    again = opened(tmp_path)
    assert outcome(again, "one") == DONE
    (aside,) = (path for path in tmp_path.iterdir() if path.name != "j")
    assert aside.read_bytes() == line + b"\n" + before
    assert str(aside) in caplog.text
    again.close()
    assert outcome(opened(tmp_path), "one") == DONE


@given(st.binary(max_size=300))
def test_any_line_is_an_entry_or_none(line: bytes) -> None:
    assert module._entry(line) is None or isinstance(module._entry(line), Entry)


def test_entries_say_their_format_and_those_without_have_the_first(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.begin("o", "id", "/m", "d")
    journal.close()
    first = json.loads((tmp_path / "j").read_bytes())
    assert first.pop("format") == module.FORMAT == 1
    (tmp_path / "j").write_text(json.dumps(first) + "\n")
    again = opened(tmp_path)
    assert again.find("o", "id", "/m", "d") is not None
    again.close()


def test_entries_of_a_newer_version_are_set_aside_unread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "j").write_text(json.dumps({"format": module.FORMAT + 1, "what": "nobody knows"}) + "\n")
    journal = opened(tmp_path)
    assert len(journal) == 0
    journal.close()
    assert "set aside" in caplog.text
    assert [one.name for one in tmp_path.iterdir() if ".damaged-" in one.name]


def test_finished_entries_are_forgotten_in_time(tmp_path: Path) -> None:
    now = [1000.0]
    journal = opened(tmp_path, seconds=60, clock=lambda: now[0])
    journal.begin("o", "old", "/m", "d")
    journal.finish("o", "old", DONE)
    now[0] += 30
    journal.begin("o", "mid", "/m", "d")
    assert journal.find("o", "old", "/m", "d") is not None
    now[0] += 40
    journal.begin("o", "new", "/m", "d")
    assert journal.find("o", "old", "/m", "d") is None
    assert journal.find("o", "mid", "/m", "d") is not None


def test_one_identity_cannot_push_another_s_entries_out(tmp_path: Path) -> None:
    journal = opened(tmp_path, entries=100, entries_per_owner=5)
    journal.begin("victim", "id", "/m", "d")
    journal.finish("victim", "id", DONE)
    for number in range(50):
        journal.begin("greedy", f"id{number}", "/m", "d")
        journal.finish("greedy", f"id{number}", DONE)
    assert outcome(journal, owner="victim") == DONE
    assert len(journal) == 6
    assert journal.find("greedy", "id49", "/m", "d") is not None
    assert journal.find("greedy", "id0", "/m", "d") is None


def test_what_is_under_way_is_never_forgotten(tmp_path: Path) -> None:
    journal = opened(tmp_path, entries_per_owner=3)
    for number in range(3):
        journal.begin("o", f"id{number}", "/m", "d")
    with pytest.raises(LimitReached):
        journal.begin("o", "one more", "/m", "d")
    journal.finish("o", "id1", DONE)
    journal.begin("o", "one more", "/m", "d")
    assert journal.find("o", "id1", "/m", "d") is None
    assert journal.find("o", "id0", "/m", "d") is not None


def test_a_grown_file_is_rewritten_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REWRITE_BYTES", 4000)
    journal = opened(tmp_path, entries_per_owner=4)
    for number in range(40):
        journal.begin("o", f"id{number}", "/m", "d")
        journal.finish("o", f"id{number}", Outcome(0, bytes([number]) * 50))
    assert (tmp_path / "j").stat().st_size < 8000
    journal.close()
    assert outcome(opened(tmp_path, entries_per_owner=4), "id39") == Outcome(0, bytes([39]) * 50)


def test_a_full_disk_leaves_no_torn_line_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)
    journal.begin("o", "one", "/m", "d")
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:10]))
    with pytest.raises(OSError, match="No space"):
        journal.begin("o", "two", "/m", "d")
    monkeypatch.setattr(os, "write", real)
    journal.begin("o", "three", "/m", "d")
    journal.close()
    lines = (tmp_path / "j").read_bytes().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["one", "three"]


def test_after_a_rewrite_whose_folder_cannot_be_synced_entries_go_to_the_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path) -> None:
        raise OSError(5, os.strerror(5))

    made = Journal(tmp_path / "j")
    made.begin("uid:1", "first", "/M", "d")
    with monkeypatch.context() as patch:
        patch.setattr("sevd.journal.REWRITE_BYTES", 0)
        patch.setattr(durable.disk, "sync_directory", full)
        with pytest.raises(OSError, match="Input/output"):
            made.finish("uid:1", "first", Outcome(0, b"x"))
    made.begin("uid:1", "second", "/M", "d")
    made.close()
    assert Journal(tmp_path / "j").find("uid:1", "second", "/M", "d") is not None


def test_the_file_is_not_followed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "j").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        opened(tmp_path)
