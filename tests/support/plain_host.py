"""A daemon on the real /dev/kvm that admits plain guests, and guests with programs of a test's making."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sev.client import Host
from tests.support import real_mode
from tests.support.daemon import Daemon, running
from tests.support.needs import need_kvm

FIRMWARE_GPA = (1 << 32) - real_mode.RAM


@contextmanager
def plain_host(folder: Path) -> Iterator[Daemon]:
    """The daemon; without /dev/kvm the test is skipped."""
    need_kvm()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "sevd.toml"
    config.write_text("[guests]\nplain = true\n")
    try:
        with running(folder, "--config", str(config)) as daemon:
            yield daemon
    finally:
        end_workers(folder)


def end_workers(folder: Path) -> None:
    """Kills the workers of guests that a test left: they outlive their daemon, and would outlive the test."""
    for card in folder.glob("**/workers/*/guest.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            pid = int(json.loads(card.read_text())["pid"])
            if b"sevd.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def launch(host: Host, program: bytes, *, vcpus: int = 1, others: bytes = real_mode.HLT, guest_id: str = "") -> str:
    """A plain guest whose boot vCPU runs this program, and the others those bytes; READY. Answers its id."""
    guest = host.create_guest(
        guest_type="plain",
        memory_bytes=1 << 20,
        firmware_bytes=real_mode.RAM,
        vcpu_count=vcpus,
        cpuid_signature=0,
        ap_reset_address=0x2000 if vcpus > 1 else 0,
        vmsa_features=0,
        guest_id=guest_id,
    )
    host.load_memory(guest.guest_id, [(FIRMWARE_GPA, real_mode.firmware(program)), (0x2000, others)])
    host.start_launch(guest.guest_id, policy=0)
    host.finish_launch(guest.guest_id)
    return guest.guest_id


def descendants(pid: int) -> list[int]:
    """Processes below one, the nearest first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    out, pending = [], [pid]
    while pending:
        below = children.get(pending.pop(0), [])
        out += below
        pending += below
    return out
