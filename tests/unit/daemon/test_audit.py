"""Audit records: what they say, where they go, and that callers cannot fill the disk with them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from pathlib import Path

import pytest

from sev.errors import NotPermitted
from sevd.access.identity import Caller
from sevd.access.peer import Peer
from sevd.access.roles import Role
from sevd.audit import Audit

CALLER = Caller.local(1000, 100, 42, Role.LAUNCHER)


def test_a_record_says_who_what_and_how_it_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sevd.audit")
    audit = Audit(tmp_path / "a")
    audit.call(CALLER, "vm.service", "sevd", {"method": "S/M", "result": "done", "errno": None, "target": ""})
    line = (tmp_path / "a").read_text()
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert len(bytes.fromhex(record.pop("run"))) == 8
    assert record.pop("previous") == hashlib.sha256(b"").hexdigest()
    assert record == {
        "sequence": 1,
        "what": "call",
        "caller": {"owner": "uid:1000", "uid": 1000, "gid": 100, "pid": 42, "role": "launcher", "unit": "vm.service"},
        "socket": "sevd",
        "method": "S/M",
        "result": "done",
    }
    assert caplog.messages == [line.strip()]
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o600


def test_a_refused_connection_is_recorded_known_or_not(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a")
    audit.connection_refused("admin", Peer(7, 8, 9), NotPermitted("no role"))
    audit.connection_refused("admin", None, NotPermitted("not mapped"))
    known, unknown = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert (known["caller"]["uid"], known["reason"], known["result"]) == (7, "NOT_PERMITTED", "refused")
    assert "caller" not in unknown


def test_one_record_is_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a")
    audit.call(CALLER, "", "sevd", {"target": 'a\nb\u2028\x00\ud800"'})
    (line,) = (tmp_path / "a").read_bytes().splitlines()
    assert json.loads(line)["target"] == 'a\nb\u2028\x00\ud800"'


def test_files_are_put_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a", file_bytes=1000, files=3)
    for number in range(60):
        audit.call(CALLER, "", "sevd", {"method": f"S/M{number}"})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a", "a.1", "a.2"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in names)
    order = [
        json.loads(line)["sequence"]
        for name in ("a.2", "a.1", "a")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert order == list(range(order[0], 61))
    assert order[0] > 1


def test_one_file_alone_starts_over(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a", file_bytes=600, files=1)
    for _ in range(20):
        audit.call(CALLER, "", "sevd", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_existing_file_is_continued(tmp_path: Path) -> None:
    for _ in range(2):
        audit = Audit(tmp_path / "a")
        audit.call(CALLER, "", "sevd", {})
        audit.close()
    assert len((tmp_path / "a").read_text().splitlines()) == 2


def test_a_full_disk_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sevd.audit")
    audit = Audit(tmp_path / "a")

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    for _ in range(3):
        audit.call(CALLER, "", "sevd", {"method": "S/M"})
    assert caplog.text.count("cannot be written") == 1
    assert sum('"method":"S/M"' in message for message in caplog.messages) == 3


def test_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sevd.audit")
    audit = Audit(None)
    audit.call(CALLER, "", "sevd", {"method": "S/M"})
    audit.close()
    assert len(caplog.messages) == 1
