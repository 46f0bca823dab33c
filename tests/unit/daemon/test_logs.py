"""Logs: their forms, the call that they belong to, and the journal's own protocol, spoken to a stand-in for it."""

from __future__ import annotations

import array
import errno
import fcntl
import io
import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sevd import calling, logs, system_journal
from sevd.access.identity import Caller
from sevd.access.roles import Role
from sevd.api.trace import Trace
from sevd.audit import MESSAGE_ID, Audit
from sevd.system_journal import SystemJournal, encode, is_stderr


class FakeJournal:
    """What systemd-journald does with datagrams: reads fields, from the datagram or from the memfd that came with it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "journal")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(5)

    def next(self) -> dict[str, bytes]:
        data, rights, _, _ = self.socket.recvmsg(1 << 20, 1024)
        if rights:
            (_, kind, raw) = rights[0]
            assert kind == socket.SCM_RIGHTS
            (memory,) = array.array("i", raw)
            with os.fdopen(memory, "rb") as file:
                seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
                assert seals & fcntl.F_SEAL_WRITE, "journald takes sealed ones alone"
                data = os.pread(file.fileno(), 1 << 26, 0)
        return self.read(data)

    def read(self, data: bytes) -> dict[str, bytes]:
        out: dict[str, bytes] = {}
        while data:
            line, _, rest = data.partition(b"\n")
            if b"=" in line:
                name, _, value = line.partition(b"=")
            else:
                name = line
                (size,) = struct.unpack_from("<Q", rest)
                value, rest = rest[8 : 8 + size], rest[9 + size :]
            out[name.decode()] = value
            data = rest
        return out


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[FakeJournal]:
    fake = FakeJournal(tmp_path)
    yield fake
    fake.socket.close()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("sevd.test_logs")
    found.propagate = False
    found.setLevel(logging.DEBUG)
    yield found
    for handler in found.handlers:
        handler.close()
    found.handlers.clear()
    found.setLevel(logging.NOTSET)


def test_fields_on_the_wire() -> None:
    assert encode({"MESSAGE": "a", "SEVD_X": "b\nc"}) == b"MESSAGE=a\nSEVD_X\n" + struct.pack("<Q", 3) + b"b\nc\n"
    assert encode({"M": "\ud800é"}) == b"M=\\ud800\xc3\xa9\n"


def test_a_record_as_fields(journal: FakeJournal, logger: logging.Logger) -> None:
    logger.addHandler(logs.JournalHandler(SystemJournal(journal.path), "sevd"))
    logger.warning("two\nlines of %s", "text")
    fields = journal.next()
    assert fields["MESSAGE"] == b"two\nlines of text"
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"], fields["SEVD_LOGGER"]) == (
        b"4",
        b"sevd",
        b"sevd.test_logs",
    )
    assert fields["CODE_FILE"].endswith(b"test_logs.py")
    assert "SEVD_REQUEST_ID" not in fields


def test_the_call_that_a_record_belongs_to(journal: FakeJournal, logger: logging.Logger) -> None:
    stream = io.StringIO()
    lines = logging.StreamHandler(stream)
    logger.addHandler(lines)
    logger.addHandler(logs.JournalHandler(SystemJournal(journal.path), "sevd"))
    token = calling.CURRENT.set(Trace("S/M", request_id="deploy-42", owner="uid:7"))
    try:
        for formatter in (logs.JsonFormatter(), logs.LineFormatter(journal=False)):
            lines.setFormatter(formatter)
            logger.info("hello")
    finally:
        calling.CURRENT.reset(token)
    as_json, as_text = stream.getvalue().splitlines()
    found = json.loads(as_json)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "info",
        "logger": "sevd.test_logs",
        "message": "hello",
        "request_id": "deploy-42",
        "method": "S/M",
        "caller": "uid:7",
    }
    assert as_text.endswith("info sevd.test_logs: hello request_id=deploy-42")
    fields = journal.next()
    assert (fields["SEVD_REQUEST_ID"], fields["SEVD_METHOD"], fields["SEVD_CALLER"]) == (b"deploy-42", b"S/M", b"uid:7")


def test_an_exception_is_part_of_its_record(journal: FakeJournal, logger: logging.Logger) -> None:
    stream = io.StringIO()
    lines = logging.StreamHandler(stream)
    lines.setFormatter(logs.JsonFormatter())
    logger.addHandler(lines)
    logger.addHandler(logs.JournalHandler(SystemJournal(journal.path), "sevd"))
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["trace"].endswith("ValueError: no")
    assert journal.next()["MESSAGE"].startswith(b"failed\nTraceback")


def test_an_entry_that_is_too_large_travels_as_memory(journal: FakeJournal) -> None:
    with closing(SystemJournal(journal.path)) as way:
        way.send({"MESSAGE": "x" * (4 << 20)})
    assert journal.next() == {"MESSAGE": b"x" * (4 << 20)}


def test_where_memory_may_not_be_made_it_is_cut(journal: FakeJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with closing(SystemJournal(journal.path)) as way:
        way.send({"MESSAGE": "x" * (4 << 20), "PRIORITY": "6"})
    assert journal.next() == {"MESSAGE": b"x" * system_journal.CUT_BYTES, "PRIORITY": b"6"}


def test_a_journal_that_does_not_read_costs_records_and_says_so(
    journal: FakeJournal, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_journal, "SEND_SECONDS", 0.001)
    logger.addHandler(logs.JournalHandler(SystemJournal(journal.path), "sevd"))
    for number in range(600):
        logger.info("%d", number)
    heard = 0
    while True:
        journal.socket.settimeout(0.05)
        try:
            journal.next()
        except TimeoutError:
            break
        heard += 1
    assert 0 < heard < 600
    logger.info("again")
    assert journal.next()["SEVD_LOST"] == str(600 - heard).encode()


def test_without_a_journal_records_go_to_stderr(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.addHandler(logs.JournalHandler(SystemJournal(str(tmp_path / "none")), "sevd"))
    logger.error("hello")
    assert capsys.readouterr().err == "<3>sevd.test_logs: hello\n"


def test_stderr_is_the_journal_only_if_it_is(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        found = os.fstat(file.fileno())
        told = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_stderr(told, file.fileno())
        for value in ("", "1", "a:b", f"{found.st_dev}:{found.st_ino + 1}", f"{found.st_dev + 1}:{found.st_ino}"):
            assert not is_stderr({"JOURNAL_STREAM": value}, file.fileno()), value
        assert not is_stderr({}, file.fileno())


@pytest.mark.parametrize(
    ("form", "kind"),
    [("auto", logs.JsonFormatter), ("json", logs.JsonFormatter), ("text", logs.LineFormatter)],
)
def test_forms(form: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(logs.handler({}, form, "sevd").formatter, kind)


def test_forms_of_the_journal_and_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(logs.handler({}, "auto", "sevd").formatter, logs.LineFormatter)
    found = os.fstat(2)
    stream = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    for environ, form in ((stream, "auto"), ({}, "journal")):
        with closing(logs.handler(environ, form, "sevd")) as handler:
            assert isinstance(handler, logs.JournalHandler)


def test_an_audit_record_as_fields_and_as_json(journal: FakeJournal) -> None:
    audit_logger = logging.getLogger("sevd.audit")
    stream = io.StringIO()
    lines = logging.StreamHandler(stream)
    lines.setFormatter(logs.JsonFormatter())
    handlers = [logs.JournalHandler(SystemJournal(journal.path), "sevd"), lines]
    before, audit_logger.handlers[:], audit_logger.propagate = audit_logger.handlers[:], handlers, False
    level = audit_logger.level
    audit_logger.setLevel(logging.INFO)
    try:
        facts = {"method": "S/M", "target": "g", "result": "refused", "reason": "NOT_PERMITTED", "message": "no"}
        caller = Caller.remote("uri:spiffe://a/b", Role.LAUNCHER)
        audit = Audit(None)
        audit.call(
            caller, "", "mtls", {**facts, "request_id": "r"}, names=("uri:spiffe://a/b", "dns:c"), address="10.0.0.1:9"
        )
    finally:
        audit_logger.handlers[:], audit_logger.propagate = before, True
        handlers[0].close()
        audit_logger.setLevel(level)
    fields = {name: value.decode() for name, value in journal.next().items()}
    record = json.loads(fields["SEVD_RECORD"])
    assert record["caller"] == {
        "owner": "uri:spiffe://a/b",
        "role": "launcher",
        "names": ["uri:spiffe://a/b", "dns:c"],
        "address": "10.0.0.1:9",
    }
    wanted = {
        "MESSAGE": "uri:spiffe://a/b S/M g: refused: NOT_PERMITTED: no",
        "MESSAGE_ID": MESSAGE_ID,
        "PRIORITY": "5",
        "SEVD_CALLER": "uri:spiffe://a/b",
        "SEVD_CALLER_ROLE": "launcher",
        "SEVD_METHOD": "S/M",
        "SEVD_TARGET": "g",
        "SEVD_RESULT": "refused",
        "SEVD_REASON": "NOT_PERMITTED",
        "SEVD_REQUEST_ID": "r",
        "SEVD_SOCKET": "mtls",
        "SEVD_SEQUENCE": "1",
        "SEVD_RUN": record["run"],
    }
    assert {name: fields[name] for name in wanted} == wanted
    assert json.loads(stream.getvalue())["audit"] == record
