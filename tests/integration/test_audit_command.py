"""`sev audit`, `sev events` and request ids, against a real daemon: filters, following, restarts, interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import COMMAND, sev
from tests.support.daemon import Daemon, chip, running

GUEST = "snp-000000000000"


@pytest.fixture
def own(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon of the test's own, with an empty trail."""
    with running(tmp_path / "host", "--simulate=genoa", chip=chip("genoa", tmp_path_factory)) as daemon:
        yield daemon


def on(daemon: Daemon, *words: object, request_id: str = "") -> Any:
    before = os.environ.pop("SEV_REQUEST_ID", None)
    try:
        if request_id:
            os.environ["SEV_REQUEST_ID"] = request_id
        return sev("--socket", daemon.socket, *words)
    finally:
        os.environ.pop("SEV_REQUEST_ID", None)
        if before is not None:
            os.environ["SEV_REQUEST_ID"] = before


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class Watcher:
    """A command that watches, and what it has said."""

    def __init__(self, daemon: Daemon, folder: Path, *words: str) -> None:
        name = "-".join(words).replace("/", "_")[-100:]
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            command = [*COMMAND, "--socket", daemon.socket, *words]
            self.process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)

    def until(self, wanted: Callable[[str], bool], *, err: bool = False) -> str:
        end = time.monotonic() + 30
        while True:
            text = (self.err if err else self.out).read_text()
            if wanted(text):
                return text
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < end, f"{text}\n{self.err.read_text()}"
            time.sleep(0.02)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


def test_the_id_of_a_command_is_found_everywhere(own: Daemon) -> None:
    done = on(own, "guest", "delete", GUEST, "--yes", "--json", request_id="deploy-42")
    assert done.code == 10
    request_id = done.json()["error"]["request_id"]
    assert request_id.startswith("deploy-42.")
    assert f"     Request id: {request_id}\n" in done.err
    (record,) = lines(on(own, "audit", "--json", "--request-id", "deploy-42").out)
    assert (record["request_id"], record["result"], record["reason"]) == (request_id, "refused", "NOT_FOUND")
    assert on(own, "audit", "--json", "--request-id", "deploy-4").out == ""
    (line,) = [one for one in lines(own.log) if "audit" in one]
    assert line["audit"] == record
    read = on(own, "guest", "show", GUEST, "--json", request_id="look-7")
    assert read.json()["error"]["request_id"] == "look-7", "a read has the name as it is"
    assert on(own, "host", "show", request_id="no good").code == 2


def test_the_table_and_its_filters(own: Daemon) -> None:
    assert on(own, "audit").out == "no records\n"
    on(own, "snp", "config", "reset")
    on(own, "guest", "delete", GUEST, "--yes")
    table = on(own, "audit").out.splitlines()
    assert table[0].split() == ["TIME", "CALLER", "METHOD", "TARGET", "RESULT", "DETAILS"]
    assert [line.split()[2] for line in table[1:]] == ["SnpPlatformService/ResetSnpConfig", "GuestService/DeleteGuest"]
    assert f"uid:{os.getuid()}" in table[1]
    assert "NOT_FOUND: there is no guest" in table[2]
    assert "REQUEST ID" in on(own, "audit", "-v").out
    for words, count in (
        (("--method", "ResetSnpConfig"), 1),
        (("--method", "GuestService"), 1),
        (("--result", "refused"), 1),
        (("--target", GUEST), 1),
        (("--caller", f"uid:{os.getuid()}"), 2),
        (("--caller", "nobody"), 0),
        (("--since", "1h"), 2),
        (("--until", "1h"), 0),
        (("--since", "2999-01-01"), 0),
        (("--last", "1"), 1),
        (("--last", "0"), 2),
    ):
        assert len(on(own, "audit", "--json", *words).out.splitlines()) == count, words
    wrong = (("--since", "soon"), ("--verify", "--last", "3", "--caller", "x"), ("--follow", "--until", "1h"))
    for some in wrong:
        assert on(own, "audit", *some).code == 2, some


def test_the_files_are_read_without_the_daemon_and_a_change_is_found(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running(tmp_path / "host", "--simulate=genoa", chip=chip("genoa", tmp_path_factory)) as daemon:
        for _ in range(4):
            on(daemon, "snp", "config", "reset")
        told = on(daemon, "audit", "--verify", "--json").json()
    file = tmp_path / "host" / "state" / "audit.jsonl"
    read = sev("audit", "--file", file, "--json")
    assert len(read.out.splitlines()) == 4
    found = sev("audit", "--file", file, "--verify", "--json")
    assert (found.code, found.json()) == (0, told)
    assert (told["intact"], told["records"], told["last"]) == (True, 4, 4)
    file.write_text(file.read_text().replace('"sequence":2', '"sequence":2 '))
    changed = sev("audit", "--file", file, "--verify")
    assert changed.code == 3
    assert changed.out.startswith("CHANGED: 1 places in 4 records")
    assert "record 3 " in changed.out
    assert sev("audit", "--file", tmp_path / "none").code == 2


def test_watchers_outlive_a_crash_and_miss_nothing_that_was_asked(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path / "host"
    watchers = []
    with running(folder, "--simulate=genoa", chip=chip("genoa", tmp_path_factory)) as daemon:
        on(daemon, "snp", "config", "reset")
        events = Watcher(daemon, tmp_path, "events", "--last", "9", "--json")
        audit = Watcher(daemon, tmp_path, "audit", "--follow", "--json")
        files = Watcher(daemon, tmp_path, "audit", "-f", "--file", str(folder / "state" / "audit.jsonl"))
        guests = Watcher(daemon, tmp_path, "guest", "watch", "--json")
        watchers = [events, audit, files, guests]
        try:
            for one in (events, audit):
                one.until(lambda text: text.count("\n") == 1)
            on(daemon, "snp", "config", "reset")
            for one in (events, audit):
                one.until(lambda text: text.count("\n") == 2)
            guests.until(lambda text: "SIMULATED" in text, err=True)  # it has asked once
            daemon.process.kill()
            daemon.process.wait()
            for one in (events, audit, guests):
                one.until(lambda text: "the daemon is gone" in text, err=True)
            with running(folder, "--simulate=genoa") as again:
                on(again, "snp", "config", "reset")
                heard = events.until(lambda text: text.count("\n") == 3)
                told = audit.until(lambda text: text.count("\n") == 3)
                assert [one["sequence"] for one in lines(told)] == [1, 2, 3]
                assert [one["sequence"] for one in lines(heard)] == [1, 2, 1], "events are counted from a start"
                assert on(again, "audit", "--verify").code == 0, "the chain goes on over the crash"
                for one in (events, audit, guests):
                    one.until(lambda text: "connected again" in text, err=True)
                assert events.interrupt() == 130
                assert lines(events.out.read_text())[-1] == {
                    "error": {"kind": "interrupted", "message": "interrupted", "remedy": ""}
                }
            assert audit.interrupt() == 130, "also while it waits for the daemon"
            assert files.interrupt() == 130
            assert guests.interrupt() == 130
            assert "Traceback" not in "".join(one.err.read_text() for one in watchers)
        finally:
            for one in watchers:
                if one.process.poll() is None:
                    one.process.kill()
                    one.process.wait()


def test_events_that_have_happened(own: Daemon) -> None:
    on(own, "snp", "config", "reset")
    on(own, "snp", "config", "reset")
    (event,) = lines(on(own, "events", "--last", "1", "--no-follow", "--json").out)
    assert (event["kind"], event["sequence"]) == ("platform.configured", 2)
    assert len(on(own, "events", "--last", "9", "--no-follow", "--kind", "platform").out.splitlines()) == 2
    assert on(own, "events", "--last", "9", "--no-follow", "--kind", "plat").out == ""
    assert on(own, "events", "--last", "9", "--no-follow", "--guest", "x").out == ""
    assert on(own, "events", "--no-follow").code == 2


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_the_trail_is_for_admins(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    config = folder / "c.toml"
    config.write_text('[access]\nlauncher_groups = []\nviewer_users = ["61020"]\n')
    with running(folder, "--simulate=genoa", "--config", str(config), chip=chip("genoa", tmp_path_factory)) as daemon:
        os.chmod(daemon.socket, 0o666)
        for path in (tmp_path, *list(tmp_path.parents)[:2], folder):
            os.chmod(path, 0o755)
        program = (
            "import os, sys; from sev.cli.main import main; words = sys.argv[1:]\n"
            "main([*words, 'audit']); main([*words, 'guest', 'show', 'none'])  # loads what that user cannot\n"
            "os.setgroups([]); os.setgid(61020); os.setuid(61020); sys.exit(main([*words, 'audit']))"
        )
        words = [sys.executable, "-c", program, "--socket", daemon.socket]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        assert done.returncode == 7, done.stderr
        assert "needs the role admin" in done.stderr
        *_, record = lines(on(daemon, "audit", "--json").out)
        assert (record["method"], record["caller"]["uid"]) == ("HostService/ReadAudit", 61020)
