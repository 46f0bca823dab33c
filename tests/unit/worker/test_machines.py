"""Machines in workers, as the daemon holds them: every step, every end, and what is left afterwards (nothing)."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import mmap
import os
import shutil
import signal
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from sev.errors import DeviceMissing, MalformedInput, NotOffered, RefusedError, SevError, UsageError, WrongState
from sev.launch.memory import SEALS
from sevd.guests.machine import Finish, KeyRequest
from sevd.guests.model import GuestState, GuestType, PageType
from sevd.guests.worker_machine import WorkerMachine, dial
from sevd.guests.workers import Workers
from sevd.worker import wire
from sevd.worker.guest import CARD
from tests.support.workers import FIRMWARE, card, descriptors, gone, machine, workers

NOTHING = Finish(b"", b"", False, False, bytes(32))
FIRMWARE_GPA = (4 << 30) - FIRMWARE


def launch(guest: WorkerMachine) -> None:
    guest.start(0, bytes(16))
    guest.update(FIRMWARE_GPA, FIRMWARE, PageType.NORMAL)
    assert guest.finish(NOTHING) == b""


def test_a_guest_from_its_creation_to_its_end(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = machine(made)
        assert guest.asid == 0
        with guest.memory(FIRMWARE_GPA, 5) as view:
            view[:] = b"hello"
        launch(guest)
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {CARD: 0o600, "sock": 0o600}
        document = json.loads((folder / CARD).read_text())
        assert (document["owner"], document["guest_id"], document["pid"]) == ("uid:1000", "guest-0001", guest.pid)
        guest.close()
        assert gone(guest.pid, 0)
        assert list(tmp_path.iterdir()) == []
        guest.close()  # once more does nothing


def test_memory_is_one_and_the_same_for_all_and_sealed(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = machine(made)
        shared = guest.share()
        assert [tuple(piece) for piece in shared.layout] == [(0, 16 << 20, 0), (FIRMWARE_GPA, FIRMWARE, 16 << 20)]
        assert fcntl.fcntl(shared.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
        for size in (0, 1 << 20, 32 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(shared.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(shared.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with mmap.mmap(shared.fd, 4096, offset=16 << 20) as pages:
            pages[:3] = b"abc"
            with guest.memory(FIRMWARE_GPA, 3) as view:
                assert bytes(view) == b"abc"
        for gpa, size in ((16 << 20, 1), ((16 << 20) - 1, 2), (0, -1), (FIRMWARE_GPA - 1, 2), (4 << 30, 1)):
            with pytest.raises(UsageError, match="not inside one region"):
                guest.memory(gpa, size)
        guest.close()


def test_what_a_plain_guest_cannot_be_asked(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = machine(made)
        calls: dict[str, Callable[[], object]] = {
            "policy": lambda: guest.start(0x30000, bytes(16)),
            "gosvw": lambda: guest.start(0, b"\1" * 16),
            "gpa": lambda: guest.update(1 << 40, 4096, 1),
            "host_data": lambda: guest.finish(NOTHING._replace(host_data=b"h" * 32)),
            "id_block": lambda: guest.finish(NOTHING._replace(id_block=bytes(96), id_auth=bytes(4096))),
            "vcek_disabled": lambda: guest.finish(NOTHING._replace(vcek_disabled=True)),
        }
        for field, call in calls.items():
            with pytest.raises(UsageError) as refused:
                call()
            assert refused.value.field == field
        with pytest.raises(NotOffered, match="plain guest"):
            guest.report(bytes(64), 0, 0)
        with pytest.raises(NotOffered, match="plain guest"):
            guest.key(KeyRequest())
        guest.close()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"vcpu_count": 100_000, "ap_reset_address": 1}, UsageError),
        ({"vcpu_count": 2}, UsageError),
        ({"vmsa_features": 1}, UsageError),
        ({"memory_bytes": 1 << 60}, UsageError),
        ({"type": GuestType.SNP}, SevError),
    ],
    ids=str,
)
def test_a_guest_that_cannot_be_created_leaves_nothing(
    tmp_path: Path, changes: dict[str, object], error: type[SevError]
) -> None:
    with workers(tmp_path) as made:
        guest = made.make()
        assert isinstance(guest, WorkerMachine)
        with pytest.raises(error):
            guest.create(card(**changes))  # type: ignore[arg-type]  # fields by name
        assert gone(guest.pid)
        assert list(tmp_path.iterdir()) == []


def test_without_kvm_the_reason_arrives(tmp_path: Path) -> None:
    with workers(tmp_path, kvm_path="/nonexistent/kvm") as made:
        guest = made.make()
        with pytest.raises(DeviceMissing, match="/nonexistent/kvm: No such file"):
            guest.create(card())


def test_rounds_leave_descriptors_processes_and_memory_where_they_were(tmp_path: Path) -> None:
    with warnings.catch_warnings():  # what earlier tests dropped is no affair of this one
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    with workers(tmp_path) as made:
        machine(made).close()
        assert made._spare is not None
        made._spare.result(10)

        def count() -> tuple[list[str], int, int]:
            gc.collect()
            threads = len(os.listdir("/proc/self/task"))
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            return sorted(name.split(":")[0] for name in descriptors().values()), threads, len(children)

        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

        before, memory = count(), 0
        for number in range(100):
            guest = machine(made, card(f"guest-{number:04}"))
            launch(guest)
            guest.close()
            if number == 4:
                memory = resident()
        until = time.monotonic() + 5
        while count() != before and time.monotonic() < until:
            time.sleep(0.05)
        assert count() == before
        assert resident() - memory < 4 << 20


def test_a_worker_is_kept_ready_and_one_that_died_is_not_used(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        made.prepare()
        assert made._spare is not None
        spare = made._spare.result(10)
        os.kill(spare.pid, signal.SIGKILL)
        assert gone(spare.pid)
        guest = machine(made)
        assert guest.pid != spare.pid
        assert made._spare is not None
        ready = made._spare.result(10)
        second = machine(made, card("guest-0002"))
        assert second.pid == ready.pid
        guest.close()
        second.close()


def test_a_worker_without_a_guest_ends_with_its_daemon(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = made.make()
        assert isinstance(guest, WorkerMachine)
        guest._worker.sock.shutdown(socket.SHUT_RDWR)
        assert gone(guest.pid)
        guest.close()


def test_a_guest_is_found_again_as_it_was(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        first, second = (
            machine(made),
            machine(made, card("guest-0002", label="mine", vcpu_count=2, ap_reset_address=16)),
        )
        with first.memory(0x3000, 4) as view:
            view[:] = b"kept"
        first.start(0, bytes(16))
        first.update(0, 8192, PageType.NORMAL)
        first.update(0x10000, 4096, PageType.ZERO)
        launch(second)
        first.leave()
        second.leave()
        with workers(tmp_path) as later:
            found = {one.card.guest_id: one for one in later.find()}
            one, two = found["guest-0001"], found["guest-0002"]
            assert one.card.owner == "uid:1000"
            assert one.progress.state is GuestState.LAUNCHING
            assert one.progress.taken == ((0, 8192), (0x10000, 0x11000))
            assert one.progress.updated_pages == 3
            assert two.progress.state is GuestState.READY
            assert (two.card.request.label, two.card.request.vcpu_count) == ("mine", 2)
            assert isinstance(one.machine, WorkerMachine)
            assert isinstance(two.machine, WorkerMachine)
            assert (one.machine.pid, two.machine.pid) == (first.pid, second.pid)
            with one.machine.memory(0x3000, 4) as view:
                assert bytes(view) == b"kept"
            one.machine.finish(NOTHING)
            one.machine.close()
            two.machine.close()
            assert gone(two.machine.pid, 0)


def test_many_ranges_are_all_remembered(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = machine(made, card(memory_bytes=64 << 20))
        guest.start(0, bytes(16))
        for page in range(0, 5000, 2):
            guest.update(page * 4096, 4096, PageType.NORMAL)
        guest.leave()
        with workers(tmp_path) as later:
            (found,) = later.find()
            assert found.progress.taken == tuple((page * 4096, page * 4096 + 4096) for page in range(0, 5000, 2))
            assert found.machine is not None
            found.machine.close()


def test_a_guest_whose_worker_died_meanwhile_is_told_as_lost(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = machine(made)
        guest.leave()
        os.kill(guest.pid, signal.SIGKILL)
        assert gone(guest.pid)
        with workers(tmp_path) as later:
            (found,) = later.find()
            assert found.machine is None
            assert found.card.guest_id == "guest-0001"
            assert found.reason == "its worker process ended while no daemon watched it"
            # Until it is deleted.
            assert list(later.find()) == [found]
            later.forget("uid:1001", "guest-0001")
            later.forget("uid:1000", "guest-0002")
            assert list(later.find()) == [found]
            later.forget("uid:1000", "guest-0001")
            assert list(later.find()) == []
        assert list(tmp_path.iterdir()) == []


def test_after_a_start_of_the_machine_the_reason_is_another_one(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = machine(made)
        guest.leave()
        path = next(tmp_path.iterdir()) / CARD
        document = json.loads(path.read_text())
        document["boot"] = "another"
        path.write_text(json.dumps(document))
        os.kill(guest.pid, signal.SIGKILL)
        assert gone(guest.pid)
        (found,) = made.find()
        assert found.reason == "the machine was started again, and its guests ended"


def test_a_deletion_that_was_cut_off_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with workers(tmp_path) as made:
        guest = machine(made)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the daemon is killed before it
            guest.close()
        assert len(list(tmp_path.iterdir())) == 1
        assert list(made.find()) == []
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"request": 1}', b"\xff", b"{}", b"[" * 60_000], ids=repr)
def test_what_cannot_be_read_is_reported_and_does_not_stop_a_start(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "workers" / "broken"
    folder.mkdir(parents=True)
    (folder / CARD).write_bytes(content)
    (tmp_path / "workers" / "empty").mkdir()
    with workers(tmp_path / "workers") as made:
        assert list(made.find()) == []
        assert "its guest is unknown" in caplog.text
    assert not folder.exists()


def test_a_worker_that_does_not_answer_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BUSY_SECONDS", "LATE_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(f"sevd.guests.workers.{name}", 0.2)
    with workers(tmp_path) as made:
        guest = machine(made)
        guest.leave()
        os.kill(guest.pid, signal.SIGSTOP)
        assert list(made.find()) == []
        (found,) = made.find_late()
        assert found.machine is None
        assert gone(guest.pid)


def test_a_worker_takes_no_orders_that_it_does_not_know(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = machine(made)
        (folder,) = tmp_path.iterdir()
        with dial(folder, "command", 5) as other:
            for message in ({}, {"op": 1}, {"op": "open"}, {"op": "update", "gpa": "x"}, {"op": "finish"}):
                with pytest.raises(MalformedInput):
                    wire.call(other, dict(message))
            with pytest.raises(MalformedInput):
                wire.call(other, {"op": "create"})
            other.send(b"no message at all")
            with pytest.raises(MalformedInput):
                raise wire.error_from(wire.receive(other)[0]["error"])
            answer, _ = wire.call(other, {"op": "describe"})
            assert wire.table(answer, "progress")["state"] == GuestState.CREATED
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(5)
            stranger.connect(str(folder / "sock"))
            wire.send(stranger, {"role": "king"})
            with pytest.raises(MalformedInput, match="command or run"):
                raise wire.error_from(wire.receive(stranger)[0]["error"])
        launch(guest)
        guest.close()


async def test_the_end_of_a_worker_is_told_with_its_reason(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = await asyncio.to_thread(machine, made)
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        made.watch(guest, told.set_result)
        os.kill(guest.pid, signal.SIGKILL)
        assert await asyncio.wait_for(told, 5) == "its worker process was killed by SIGKILL"
        with pytest.raises(RefusedError, match="worker process is gone"):
            await asyncio.to_thread(guest.start, 0, bytes(16))
        await asyncio.to_thread(guest.close, told.result())
        await asyncio.sleep(0)
        (found,) = made.find()
        assert (found.machine, found.reason) == (None, "its worker process was killed by SIGKILL")
        made.forget("uid:1000", "guest-0001")
        assert os.listdir(tmp_path) == []


def held() -> list[str]:
    """What is held for guests here."""
    return sorted(name for name in descriptors().values() if "memfd" in name or "kvm" in name)


async def test_a_close_is_no_loss(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        before = held()
        guest = await asyncio.to_thread(machine, made)
        told: list[str] = []
        made.watch(guest, told.append)
        await asyncio.to_thread(guest.close)
        await asyncio.sleep(0.05)
        assert told == []
        assert held() == before


def test_an_interpreter_that_cannot_be_started_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with workers(tmp_path) as made:
        monkeypatch.setattr("sys.executable", "/nonexistent/python")
        with pytest.raises(RefusedError, match="cannot be started: No such file"):
            Workers.make(made)
        monkeypatch.setattr("sys.executable", shutil.which("false"))
        with pytest.raises(RefusedError, match="does not start"):
            made.make()


def test_a_step_out_of_order_is_the_machine_s_to_refuse(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = made.make()
        assert isinstance(guest, WorkerMachine)
        with pytest.raises(NotOffered, match="has no guest"):
            guest.start(0, bytes(16))
        guest.create(card())
        (folder,) = tmp_path.iterdir()
        with dial(folder, "command", 5) as other, pytest.raises((WrongState, MalformedInput)):
            wire.call(other, {"op": "create", "card": {}}, (other.fileno(), other.fileno()))
        guest.close()


def test_a_worker_that_is_stuck_is_killed_and_not_waited_for(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = machine(made)
        os.kill(guest.pid, signal.SIGSTOP)
        with pytest.raises(RefusedError, match="worker process is gone"):
            guest._worker.call({"op": "describe"}, seconds=0.1)
        assert gone(guest.pid)
        guest.close()
        assert list(tmp_path.iterdir()) == []
