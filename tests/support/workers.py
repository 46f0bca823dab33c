"""Workers for tests: machines of plain guests on the real KVM, and what processes hold."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sevd.guests.model import CreateGuest, GuestType
from sevd.guests.port import Card
from sevd.guests.worker_machine import WorkerMachine
from sevd.guests.workers import Workers
from tests.support.needs import need_kvm

FIRMWARE = 64 << 10


def card(guest_id: str = "guest-0001", **changes: object) -> Card:
    """A small plain guest."""
    fields: dict[str, object] = {
        "memory_bytes": 16 << 20,
        "firmware_bytes": FIRMWARE,
        "vcpu_count": 1,
        "cpuid_signature": 0,
        "type": GuestType.PLAIN,
    }
    request = CreateGuest(**{**fields, **changes})  # type: ignore[arg-type]
    return Card(guest_id, "uid:1000", datetime.now(UTC), False, request)


@contextlib.contextmanager
def workers(folder: Path, **changes: str) -> Iterator[Workers]:
    """Where machines come from; at the end no worker that was ours is left."""
    need_kvm()
    paths = {"sev_path": "/nonexistent/sev", "kvm_path": "/dev/kvm", **changes}
    made = Workers(folder, sev_path=paths["sev_path"], kvm_path=paths["kvm_path"])
    try:
        yield made
    finally:
        made.close()
        for found in Workers(folder, sev_path=paths["sev_path"], kvm_path=paths["kvm_path"]).find():
            if found.machine is None:
                made.forget(found.card.owner, found.card.guest_id)
            else:
                found.machine.close()


def machine(made: Workers, guest: Card | None = None) -> WorkerMachine:
    """A created machine."""
    out = made.make()
    assert isinstance(out, WorkerMachine)
    out.create(guest or card())
    return out


def descriptors(pid: int | None = None) -> dict[int, str]:
    """What the descriptors of a process refer to."""
    out: dict[int, str] = {}
    for name in os.listdir(f"/proc/{pid or 'self'}/fd"):
        with contextlib.suppress(FileNotFoundError):
            out[int(name)] = os.readlink(f"/proc/{pid or 'self'}/fd/{name}")
    return out


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def gone(pid: int, seconds: float = 5) -> bool:
    """Whether a process ends within so many seconds; one that waits for its parent has ended."""
    until = time.monotonic() + seconds
    while True:
        try:
            if status(pid)["State"].startswith("Z"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.01)
