"""Workers that are not ours any more when a daemon finds them again: what they say is not believed, and harms nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sev.errors import LimitReached, MalformedInput, RefusedError
from sevd.guests.worker_machine import WorkerMachine
from sevd.guests.workers import Workers
from sevd.worker import notes
from sevd.worker.guest import CARD, boot_id
from tests.support.workers import FIRMWARE, card, descriptors, gone, machine, workers

MEMORY = 16 << 20
LAYOUT = [[0, MEMORY, 0], [(4 << 30) - FIRMWARE, FIRMWARE, MEMORY]]
PROGRESS = {"state": 1, "policy": 0, "launch_digest": "", "failure": "", "updated_pages": 0}

LIAR = """
import fcntl, json, os, socket, sys
lie, size, seals = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
os.ftruncate(fd, size)
fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind("sock")
listener.listen()
print("ready", flush=True)
while True:
    other, _ = listener.accept()
    while True:
        data = other.recv(1 << 17)
        if not data:
            break
        message = json.loads(data)
        if "role" in message:
            continue
        answer = lie.get(message["op"], {})
        rights = [fd] * answer.pop("fds", 0)
        socket.send_fds(other, [json.dumps(answer).encode()], rights)
        answer["fds"] = len(rights)
"""


@contextlib.contextmanager
def liar(
    folder: Path, *, size: int = MEMORY + FIRMWARE, seals: int = 0x7, card_file: bool = True, **lies: dict[str, object]
) -> Iterator[int]:
    """A process that answers in a worker's stead; its number."""
    answers: dict[str, dict[str, object]] = {
        "describe": {"progress": PROGRESS, "card": notes.card_document(card()), "pid": 1},
        "taken": {"runs": [], "more": False},
        "memory": {"asid": 0, "layout": LAYOUT, "fds": 1},
    }
    answers.update(lies)
    folder.mkdir(parents=True, mode=0o700)
    if card_file:
        (folder / CARD).write_text(json.dumps({**notes.card_document(card()), "boot": boot_id()}))
    code = [sys.executable, "-I", "-c", LIAR, json.dumps(answers), str(size), str(seals)]
    with subprocess.Popen(code, cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


def machines(tmp_path: Path) -> Workers:
    return Workers(tmp_path / "workers", sev_path="/nonexistent/sev", kvm_path="/nonexistent/kvm")


def test_the_liar_itself_is_a_good_worker(tmp_path: Path) -> None:
    with liar(tmp_path / "workers" / "one") as pid:
        (found,) = machines(tmp_path).find()
        assert isinstance(found.machine, WorkerMachine)
        assert found.machine.pid == pid
        found.machine.leave()


LIES: dict[str, dict[str, object]] = {
    "ranges without end": {"taken": {"runs": [[0, 4096]], "more": True}},
    "ranges that go back": {"taken": {"runs": [[8192, 12288], [0, 4096]], "more": False}},
    "empty ranges": {"taken": {"runs": [[4096, 4096]], "more": False}},
    "negative ranges": {"taken": {"runs": [[-2, -1]], "more": False}},
    "no progress": {"describe": {}},
    "a state that is none": {"describe": {"progress": {**PROGRESS, "state": 99}}},
    "memory that can shrink": {"seals": fcntl.F_SEAL_GROW},
    "memory that is too small": {"size": 1 << 20},
    "no memory": {"memory": {"asid": 0, "layout": LAYOUT}},
    "memory twice": {"memory": {"asid": 0, "layout": LAYOUT, "fds": 2}},
    "memory elsewhere": {"memory": {"asid": 0, "layout": [[0, MEMORY, 0]], "fds": 1}},
    "negative memory": {"memory": {"asid": 0, "layout": [[0, -4096, 0]], "fds": 1}},
    "an address space that is none": {"memory": {"asid": -1, "layout": LAYOUT, "fds": 1}},
}


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_worker_that_lies_is_killed_and_its_guest_lost(tmp_path: Path, lie: str) -> None:
    before = descriptors()
    with liar(tmp_path / "workers" / "one", **LIES[lie]) as pid:  # type: ignore[arg-type]  # by name
        (found,) = machines(tmp_path).find()
        assert found.machine is None
        assert "killed" in found.reason
        assert gone(pid)
    assert sorted(descriptors().values()) == sorted(before.values())


def test_a_worker_that_is_busy_is_waited_for_in_the_background(tmp_path: Path) -> None:
    with liar(tmp_path / "workers" / "one") as pid:
        os.kill(pid, signal.SIGSTOP)
        made = machines(tmp_path)
        assert list(made.find()) == []
        assert [(one.owner, one.guest_id) for one in made.awaited()] == [("uid:1000", "guest-0001")]
        os.kill(pid, signal.SIGCONT)
        (found,) = made.find_late()
        assert found.machine is not None
        assert made.awaited() == []
        found.machine.leave()


def test_a_worker_that_never_answers_is_killed_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sevd.guests.workers.LATE_SECONDS", 0.3)
    monkeypatch.setattr("sevd.guests.workers.ANSWER_SECONDS", 0.2)
    with liar(tmp_path / "workers" / "one") as pid:
        os.kill(pid, signal.SIGSTOP)
        made = machines(tmp_path)
        assert list(made.find()) == []
        (found,) = made.find_late()
        assert found.machine is None
        assert gone(pid)


def test_a_daemon_that_ends_leaves_busy_workers_alone(tmp_path: Path) -> None:
    with liar(tmp_path / "workers" / "one") as pid:
        os.kill(pid, signal.SIGSTOP)
        made = machines(tmp_path)
        assert list(made.find()) == []
        made.close()
        assert list(made.find_late()) == []
        assert made.awaited() == []
        os.kill(pid, 0)  # it is there


def test_a_guest_of_a_newer_version_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "workers" / "one"
    with liar(folder, card_file=False) as pid:
        newer = json.dumps({**notes.card_document(card()), "format": notes.FORMAT + 1, "boot": boot_id()})
        (folder / CARD).write_text(newer)
        assert list(machines(tmp_path).find()) == []
        os.kill(pid, 0)  # it is there
        assert (folder / CARD).read_text() == newer
        assert "is left alone" in caplog.text
    (folder / "sock").unlink(missing_ok=True)  # and so is what it left when it has ended
    assert list(machines(tmp_path).find()) == []
    assert (folder / CARD).read_text() == newer


def test_a_card_without_a_format_is_of_the_first(tmp_path: Path) -> None:
    one = card()
    document = notes.card_document(one)
    del document["format"]
    assert notes.card_from(document) == one


def test_more_ranges_than_anybody_measures_are_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sevd.guests.workers.TAKEN_RUNS", 2)
    runs = [[page * 8192, page * 8192 + 4096] for page in range(3)]
    with liar(tmp_path / "workers" / "one", taken={"runs": runs, "more": False}):
        (found,) = machines(tmp_path).find()
        assert found.machine is None


def test_whose_guest_it_is_is_not_the_worker_s_to_say(tmp_path: Path) -> None:
    stolen = notes.card_document(card("another-guest")) | {"owner": "uid:0"}
    describe = {"progress": PROGRESS, "card": stolen, "pid": 1}
    with liar(tmp_path / "workers" / "one", describe=describe):
        (found,) = machines(tmp_path).find()
        assert (found.card.owner, found.card.guest_id) == ("uid:1000", "guest-0001")
        assert found.machine is not None
        found.machine.leave()


def test_a_worker_whose_guest_was_being_deleted_ends(tmp_path: Path) -> None:
    folder = tmp_path / "workers" / "one"
    with liar(folder, card_file=False) as pid:
        assert list(machines(tmp_path).find()) == []
        assert gone(pid)
    assert not folder.exists()


def test_descriptors_that_come_with_answers_are_closed(tmp_path: Path) -> None:
    with liar(tmp_path / "workers" / "one", start={"fds": 8}, travel={"fds": 8}):
        (found,) = machines(tmp_path).find()
        assert found.machine is not None
        before = len(descriptors())
        found.machine.start(0, bytes(16))
        assert len(descriptors()) == before
        found.machine.travel.cancel()
        assert len(descriptors()) == before
        found.machine.leave()


def test_a_worker_that_is_not_asked_for_lack_of_descriptors_stays(tmp_path: Path) -> None:
    with liar(tmp_path / "workers" / "one") as pid:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()) + 10, hard))
        filled: list[int] = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    filled.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(4):
                os.close(filled.pop())
            with pytest.raises(LimitReached, match="Too many open files") as refused:
                list(machines(tmp_path).find())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in filled:
                os.close(fd)
        assert "LimitNOFILE" in refused.value.remedy
        assert not gone(pid, 0)
        (found,) = machines(tmp_path).find()
        assert found.machine is not None
        found.machine.leave()


def few(patch: pytest.MonkeyPatch, function: str) -> None:
    """The function finds no descriptor."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    patch.setattr(function, fail)


@pytest.mark.parametrize("function", ["socket.socketpair", "os.pidfd_open", "subprocess.Popen"])
def test_a_worker_that_cannot_be_kept_ready_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    made = Workers(tmp_path, sev_path="/nonexistent/sev", kvm_path="/nonexistent/kvm")
    before = sorted(descriptors().values())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    with monkeypatch.context() as patch:
        few(patch, function)
        made.prepare()
        assert made._spare is not None
        with pytest.raises(LimitReached, match="Too many open files"):
            made._spare.result(10)
        with pytest.raises(LimitReached):
            made.make()
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == children
    assert sorted(descriptors().values()) == before
    made.close()


def test_without_a_thread_for_it_no_worker_is_kept_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Workers(tmp_path, sev_path="/nonexistent/sev", kvm_path="/nonexistent/kvm")
    with monkeypatch.context() as patch:

        def fail(_: object) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr("threading.Thread.start", fail)
        made.prepare()
    out = made.make()
    assert isinstance(out, WorkerMachine)
    out.close()
    made.close()


def test_memory_is_looked_at_at_a_creation_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with workers(tmp_path) as made:
        monkeypatch.setattr("sevd.guests.worker_machine.SEALS", 0x1F)
        with pytest.raises(RefusedError, match="not the guest's memory"):
            machine(made)
        assert list(tmp_path.iterdir()) == []


def test_a_card_that_is_none_is_malformed(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput):
        notes.card_from({})
