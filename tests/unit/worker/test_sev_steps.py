"""The worker's steps for SEV and SEV-ES guests, on the simulated host: what it is told, what it tells a later daemon."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sev import status
from sev.errors import FirmwareError, MalformedInput, NotOffered, SevError
from sevd.guests.model import GuestState, GuestType
from sevd.simulator import Simulator
from sevd.worker import notes, wire
from sevd.worker.guest import DEBUG_BYTES, WorkerGuest
from tests.support.simulated import refuse, simulated_host
from tests.support.workers import card

FIRMWARE = b"f" * (64 << 10)
GPA = (4 << 30) - len(FIRMWARE)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Simulator]:
    with simulated_host(tmp_path / "rome", "rome") as simulator:
        yield simulator


def made(host: Simulator, kind: GuestType) -> WorkerGuest:
    process = host.process()
    guest = WorkerGuest(lambda _: (process, host), sev_path="/dev/sev", kvm_path="/dev/kvm")
    guest.create(card(type=kind, cpuid_signature=0x830F10))
    assert guest.machine is not None
    with guest.machine.memory(GPA, len(FIRMWARE)) as memory:
        memory[:] = FIRMWARE
    return guest


def start(guest: WorkerGuest, policy: int) -> None:
    guest.step("start", {"policy": policy, "gosvw": "", "certificate": "", "session": ""})


def test_a_launch_and_what_a_later_daemon_is_told(host: Simulator) -> None:
    guest = made(host, GuestType.SEV)
    start(guest, 0)
    guest.step("update", {"gpa": GPA, "size": len(FIRMWARE), "page_type": 1})
    guest.step("update", {"gpa": 0x1010, "size": 16, "page_type": 1})
    answer, _ = guest.step("measure", {})
    digest = sha256(FIRMWARE + bytes(16)).hexdigest()
    assert (answer["digest"], len(str(answer["measurement"]))) == (digest, 96)
    described, _ = guest.step("describe", {})
    progress = notes.progress_from(wire.table(described, "progress"), ())
    assert (progress.state, progress.launch_digest.hex()) == (GuestState.MEASURED, digest)
    assert progress.measurement.hex() == answer["measurement"]
    assert progress.updated_pages == 17
    runs, _ = guest.step("taken", {"from": 0})
    assert runs["runs"] == [[0x1010, 0x1020], [GPA, 1 << 32]]
    assert guest.step("finish", {"id_block": "", "id_auth": "", "host_data": ""})[0] == {"digest": digest}
    assert guest.progress().state is GuestState.READY
    read, _ = guest.step("debug-read", {"gpa": GPA, "size": 100})
    assert bytes.fromhex(str(read["data"])) == FIRMWARE[:100]
    guest.step("debug-write", {"gpa": GPA + 1, "data": b"new".hex()})
    assert guest.step("debug-read", {"gpa": GPA, "size": 5})[0]["data"] == b"fnewf".hex()
    report, _ = guest.step("attestation", {"mnonce": "11" * 16})
    assert len(str(report["report"])) == 416
    guest.close()


def test_a_measurement_that_fails_is_final(host: Simulator) -> None:
    guest = made(host, GuestType.SEV_ES)
    start(guest, 5)
    guest.step("update", {"gpa": GPA, "size": 4096, "page_type": 1})
    refuse(host, "LAUNCH_MEASURE", code=status.HWERROR_PLATFORM)
    with pytest.raises(FirmwareError):
        guest.step("measure", {})
    host.faults = lambda command: None
    assert guest.progress().state is GuestState.FAILED
    assert "HWERROR_PLATFORM" in guest.progress().failure
    guest.close()


MESSAGES: list[tuple[str, dict[str, Any]]] = [
    ("start", {}),
    ("start", {"policy": -1, "gosvw": "", "certificate": "", "session": ""}),
    ("start", {"policy": 1, "gosvw": "", "certificate": "zz", "session": ""}),
    ("start", {"policy": 1, "gosvw": "", "certificate": "00"}),
    ("secret", {"gpa": 0, "header": ""}),
    ("secret", {"gpa": "0", "header": "", "payload": ""}),
    ("attestation", {"mnonce": 7}),
    ("attestation", {"mnonce": "11" * 15}),
    ("debug-read", {"gpa": 0}),
    ("debug-read", {"gpa": 0, "size": DEBUG_BYTES + 1}),
    ("debug-read", {"gpa": 1 << 70, "size": 1}),
    ("debug-read", {"gpa": 0, "size": 0}),
    ("debug-write", {"gpa": 0, "data": ""}),
    ("debug-write", {"gpa": 0, "data": None}),
    ("update", {"gpa": 8, "size": 16, "page_type": 1}),
    ("update", {"gpa": 0, "size": 0, "page_type": 1}),
]


@pytest.mark.parametrize(("name", "message"), MESSAGES)
def test_messages_that_make_no_sense(host: Simulator, name: str, message: dict[str, Any]) -> None:
    guest = made(host, GuestType.SEV)
    with pytest.raises(SevError) as refused:
        guest.step(name, message)
    assert refused.value.exit_code in (2, 6, 9)
    assert guest.state is GuestState.CREATED
    guest.close()


def test_notes_of_an_earlier_version_have_no_measurement(host: Simulator) -> None:
    guest = made(host, GuestType.SEV)
    document = notes.progress_document(guest.progress())
    del document["measurement"]
    assert notes.progress_from(document, ()).measurement == b""
    document["measurement"] = "xyz"
    with pytest.raises(MalformedInput):
        notes.progress_from(document, ())
    guest.close()


def test_steps_that_an_snp_guest_does_not_have(tmp_path: Path) -> None:
    with simulated_host(tmp_path / "genoa") as genoa:
        guest = made(genoa, GuestType.SNP)
        steps: list[tuple[str, dict[str, object]]] = [
            ("measure", {}),
            ("secret", {"gpa": 0, "header": "", "payload": ""}),
            ("attestation", {"mnonce": "11" * 16}),
            ("debug-read", {"gpa": 0, "size": 16}),
            ("debug-write", {"gpa": 0, "data": "00"}),
        ]
        for name, message in steps:
            with pytest.raises(NotOffered, match="of type SNP"):
                guest.step(name, message)
        guest.close()
