"""The audit file: what it survives, what shows in its chain, and what is said about it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sev.audit_trail import AuditRecord, Findings, open_files, records, verify
from sevd.access.identity import Caller
from sevd.access.roles import Role
from sevd.audit import Audit

CALLER = Caller.local(1000, 100, 42, Role.LAUNCHER)


def write(audit: Audit, count: int = 1) -> None:
    for number in range(count):
        audit.call(CALLER, "", "sevd", {"method": f"S/M{number}", "result": "done"})


@contextmanager
def trail(path: Path, *, file_bytes: int = 1 << 20, files: int = 4) -> Iterator[Audit]:
    audit = Audit(path, file_bytes=file_bytes, files=files)
    yield audit
    audit.close()


def look(path: Path) -> Findings:
    return verify(records(open_files(str(path))))


def kept(path: Path) -> list[AuditRecord]:
    return list(records(open_files(str(path))))


def test_numbers_and_chain_go_on_over_restarts_and_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a"
    runs = set()
    for _ in range(3):
        with trail(path, file_bytes=1500, files=9) as audit:
            write(audit, 5)
    found = look(path)
    assert (found.intact, found.count, found.first, found.last) == (True, 15, 1, 15)
    assert found.notes == []
    runs = {one.facts["run"] for one in kept(path)}
    assert len(runs) == 3
    assert len(list(tmp_path.iterdir())) > 2, "it was put aside meanwhile"


def test_a_restart_right_after_the_file_was_put_aside_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit, 2)
    path.rename(tmp_path / "a.1")
    with trail(path) as audit:
        write(audit)
    assert (look(path).intact, look(path).last) == (True, 3)


def test_what_is_gone_at_the_beginning_is_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with trail(path, file_bytes=1000, files=2) as audit:
        write(audit, 30)
    found = look(path)
    assert found.intact
    assert found.notes == [f"the trail begins with record {found.first}; files before it are gone"]


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("change", ["edited", "taken out", "added", "swapped", "first of a file taken out"])
def test_a_change_shows_where_it_is(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit, 9)
    lines = lines_of(path)
    if change == "edited":
        lines[4] = lines[4].replace(b'"done"', b'"none"')
    elif change == "taken out":
        del lines[4]
    elif change == "added":
        lines.insert(5, lines[4])
    elif change == "swapped":
        lines[4], lines[5] = lines[5], lines[4]
    else:
        del lines[0]
    path.write_bytes(b"".join(lines))
    found = look(path)
    if change == "first of a file taken out":
        assert found.intact, "as where the oldest file has gone"
        assert "begins with record 2" in found.notes[0]
        return
    assert not found.intact
    assert found.problems[0].startswith(f"record {5 if change == 'added' else 6} ")


def test_the_end_cut_off_shows_in_the_head_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit, 5)
    whole = look(path)
    path.write_bytes(b"".join(lines_of(path)[:3]))
    cut = look(path)
    assert cut.intact
    assert (cut.last, cut.head) != (whole.last, whole.head)


def test_a_line_that_a_crash_tore_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit, 3)
    data = path.read_bytes()
    last = len(lines_of(path)[2])
    for cut in range(last):
        path.write_bytes(data[: len(data) - cut - 1])
        with trail(path) as audit:
            write(audit, 2)
        found = look(path)
        assert found.intact, found.problems
        parsed = [one.sequence for one in kept(path) if one.facts]
        assert parsed == list(range(1, len(parsed) + 1))
        assert ("unfinished" in " ".join(found.notes)) == (0 < cut < last - 1)


def test_a_file_moved_away_is_noticed_and_followed_by_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit, 2)
        path.rename(tmp_path / "a.1")
        write(audit, 2)
    found = look(path)
    assert (found.intact, found.count) == (True, 5)
    first = json.loads(lines_of(path)[0])
    assert (first["what"], first["reason"]) == ("trail", "RENAMED")
    assert "moved away" in found.notes[0]
    assert "moved away by somebody else" in caplog.text


def test_a_file_that_was_removed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit, 2)
        path.unlink()
        write(audit)
    found = look(path)
    assert (found.first, found.last, found.intact) == (3, 4, True)
    assert json.loads(lines_of(path)[0])["reason"] == "REMOVED"
    assert "begins with record 3" in found.notes[0]


def test_a_file_that_was_cut_short_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit, 3)
        os.truncate(path, 0)
        write(audit)
    assert json.loads(lines_of(path)[0])["reason"] == "TRUNCATED"
    assert look(path).last == 5


def test_a_new_file_made_by_the_one_who_moved_the_old_is_taken(tmp_path: Path) -> None:
    """As logrotate does with `create`."""
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit, 2)
        path.rename(tmp_path / "a.1")
        path.touch(0o640)
        write(audit)
    assert (look(path).intact, look(path).count) == (True, 4)


@pytest.mark.parametrize("what", ["link", "directory", "pipe", "gone directory"])
def test_a_place_that_is_no_file_costs_the_file_and_nothing_else(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    path = folder / "a"
    with trail(path) as audit:
        write(audit)
        path.rename(folder / "b")
        if what == "link":
            path.symlink_to(tmp_path / "elsewhere")
        elif what == "directory":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)
        else:
            folder.rename(tmp_path / "e")
        write(audit, 3)
        assert caplog.text.count("cannot be written") == 1
        assert not (tmp_path / "elsewhere").exists()
        if what == "link":
            path.unlink()
            write(audit)
            assert json.loads(lines_of(path)[-1])["sequence"] >= 5, "it goes on, and the gap shows"


def test_a_full_disk_leaves_a_gap_that_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit, 2)
        real = os.write

        def half(file: int, data: bytes) -> int:
            return real(file, data[:100])

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", half)
            write(audit)
        write(audit)
    found = look(path)
    assert [one.sequence for one in kept(path)] == [1, 2, 0, 4]
    (problem,) = found.problems
    assert problem.startswith(f"record 4 ({kept(path)[3].time}) follows record 2: those in between are in the system's")


def test_rotation_that_is_refused_is_said_once_and_writing_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, os.strerror(1))

    path = tmp_path / "a"
    with trail(path, file_bytes=1000, files=3) as audit:
        monkeypatch.setattr(os, "replace", refuse)
        write(audit, 20)
    assert caplog.text.count("cannot be put aside") == 1
    assert (look(path).intact, look(path).count) == (True, 20)


def test_a_file_that_the_kernel_holds_to_appending(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a"
    with trail(path) as audit:
        write(audit)
    if subprocess.run(["chattr", "+a", path], check=False, capture_output=True).returncode:
        pytest.skip("chattr +a is not possible here")
    try:
        with trail(path, file_bytes=1000, files=3) as audit:
            write(audit, 20)
        assert caplog.text.count("cannot be put aside") == 1
        assert (look(path).intact, look(path).count) == (True, 21)
        assert [one.name for one in tmp_path.iterdir()] == ["a"]
    finally:
        subprocess.run(["chattr", "-a", path], check=True)


def test_records_of_an_earlier_version_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text('{"time":"2026-01-01T00:00:00.000Z","sequence":1,"what":"call"}\n' * 3)
    with trail(path) as audit:
        write(audit, 2)
    found = look(path)
    assert (found.intact, found.unchained, found.count, found.first) == (True, 3, 2, 2)


def test_audit_does_not_hang_on_the_level_of_logs() -> None:
    from sevd import logs

    logger, before = logging.getLogger("sevd.audit"), logging.getLogger().level
    try:
        logs.set_level("error")
        assert logger.isEnabledFor(logging.INFO)
    finally:
        logging.getLogger().setLevel(before)
        logger.setLevel(logging.NOTSET)
