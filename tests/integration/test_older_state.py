"""State directories that daemons of earlier commits left: this one goes on with them, and forgets nothing.

They are kept by `python -m tests.keep_state COMMIT`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sev.certs import load
from sev.v1 import endorsement_pb2, guest_pb2, snp_platform_pb2
from sevd.guests import remains
from sevd.worker.notes import card_from
from tests.keep_state import IDS, KEPT
from tests.support.running import Running, running

COMMITS = sorted(path.name.removesuffix(".tar.gz") for path in KEPT.glob("*.tar.gz"))


def told(commit: str) -> dict[str, Any]:
    """What the earlier daemon answered."""
    document: dict[str, Any] = json.loads((KEPT / f"{commit}.json").read_bytes())
    return document


def unpacked(commit: str, folder: Path) -> Path:
    """The state that it left."""
    with tarfile.open(KEPT / f"{commit}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (folder / "state").chmod(0o700)
    return folder / "state"


@pytest.fixture(scope="module", params=COMMITS)
def commit(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def daemon(commit: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """This version's daemon on that state."""
    folder = tmp_path_factory.mktemp("older")
    state = unpacked(commit, folder)
    shutil.rmtree(state / "workers", ignore_errors=True)
    with running(folder, "--simulate=genoa") as one:
        yield one


def call(daemon: Running, method: str, request: Any, answer: Any) -> Any:
    with grpc.insecure_channel(daemon.target) as channel:
        made: Any = channel.unary_unary(f"/sev.v1.{method}", type(request).SerializeToString, answer.FromString)
        return made(request, timeout=20, wait_for_ready=True)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def test_there_are_states_of_earlier_commits() -> None:
    assert len(COMMITS) >= 2


def test_the_chip_and_its_certificates_are_the_same(commit: str, daemon: Running) -> None:
    got = call(
        daemon,
        "EndorsementService/GetEndorsements",
        endorsement_pb2.GetEndorsementsRequest(),
        endorsement_pb2.GetEndorsementsResponse,
    )
    served = {bytes(one.der) for one in got.endorsements}
    before = told(commit)
    for name in ("vcek.pem", "ask.pem", "ark.pem"):
        (certificate,) = load(before[name].encode())
        assert certificate.der in served, name
    assert "damaged" not in daemon.log()
    assert "set aside" not in daemon.log()
    assert "newer" not in daemon.log()


def test_what_was_asked_under_a_request_id_does_not_act_again(commit: str, daemon: Running) -> None:
    again = snp_platform_pb2.CommitSnpRequest(confirm=True, request_id=IDS["done"])
    answer = call(daemon, "SnpPlatformService/CommitSnp", again, snp_platform_pb2.CommitSnpResponse)
    assert answer.SerializeToString().hex() == told(commit)["done"]
    refused = guest_pb2.DeleteGuestRequest(guest_id="no-such-guest", confirm=True, request_id=IDS["refused"])
    with pytest.raises(grpc.RpcError) as caught:
        call(daemon, "GuestService/DeleteGuest", refused, guest_pb2.DeleteGuestResponse)
    assert caught.value.code().name == told(commit)["refused"] == "NOT_FOUND"
    assert [one.get("repeated") for one in records(daemon.folder / "state")[-2:]] == [True, True]


def test_the_audit_trail_goes_on_where_it_ended(commit: str, daemon: Running, tmp_path: Path) -> None:
    before = (unpacked(commit, tmp_path / "before") / "audit.jsonl").read_bytes()
    assert before.count(b"\n") >= 4
    with pytest.raises(grpc.RpcError):
        call(
            daemon,
            "SnpPlatformService/CommitSnp",
            snp_platform_pb2.CommitSnpRequest(),
            snp_platform_pb2.CommitSnpResponse,
        )
    trail = daemon.folder / "state/audit.jsonl"
    now = trail.read_bytes()
    assert now.startswith(before)
    assert now.count(b"\n") > before.count(b"\n")
    sev = [sys.executable, "-c", "from sev.cli.main import entry; entry()"]
    program = [*sev, "--json", "audit", "--file", str(trail)]
    shown = subprocess.run([*program, "--last", "0"], capture_output=True, text=True, check=True).stdout
    assert len(shown.splitlines()) == now.count(b"\n")
    verified = json.loads(subprocess.run([*program, "--verify"], capture_output=True, text=True, check=True).stdout)
    assert verified["intact"] is True


@pytest.mark.parametrize("commit", [one for one in COMMITS if told(one)["guest"]])
def test_the_card_of_a_workers_guest_is_understood(commit: str, tmp_path: Path) -> None:
    (folder,) = (unpacked(commit, tmp_path) / "workers").iterdir()
    card = card_from(remains.read(folder))
    assert card.guest_id == told(commit)["guest"]
    assert card.owner == "uid:0"
    assert card.request.memory_bytes == 8 << 20
