"""Answers that the real daemon does not give on demand: a wrong digest, a real host, errors in every form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sev.measurement.sample import sample_firmware
from sev.v1 import guest_pb2, host_pb2, snp_platform_pb2
from tests.support.cli import sev
from tests.support.fake_daemon import FakeDaemon, abort, served


@pytest.fixture
def fake() -> FakeDaemon:
    fake = FakeDaemon()
    host = host_pb2.GetHostResponse(host=host_pb2.Host(product="genoa", kernel="6.18"))
    fake.answers["HostService/GetHost"] = lambda request, context: host.SerializeToString()
    return fake


@pytest.fixture
def socket(tmp_path: Path, fake: FakeDaemon) -> Iterator[str]:
    path = str(tmp_path / "s")
    with served(fake, path):
        yield path


def test_a_digest_that_was_not_expected_is_a_no(socket: str, fake: FakeDaemon, tmp_path: Path) -> None:
    guest = guest_pb2.Guest(
        guest_id="guest-0001",
        state=guest_pb2.GUEST_STATE_READY,
        type=guest_pb2.GUEST_TYPE_SNP,
        launch_digest=b"\1" * 48,
    )
    for step in ("CreateGuest", "StartGuestLaunch", "UpdateGuestLaunch", "LoadGuestMemory"):
        fake.answers[f"GuestService/{step}"] = lambda request, context: b""
    finished = guest_pb2.FinishGuestLaunchResponse(guest=guest).SerializeToString()
    fake.answers["GuestService/FinishGuestLaunch"] = lambda request, context: finished
    (tmp_path / "image").write_bytes(sample_firmware())
    words = ("--socket", socket, "guest", "launch", "--firmware", tmp_path / "image")
    done = sev(*words, "--json")
    assert done.code == 3
    document = done.json()
    assert document["launch_digest"] == "01" * 48
    assert document["expected_digest"] != document["launch_digest"]
    assert "not what was asked for" in done.err
    assert "sev guest delete guest-0001" in done.err
    assert "DIFFER" in sev(*words).out
    assert "GuestService/DeleteGuest" not in fake.methods()


def test_a_real_host_is_not_marked_and_plays_no_guest(socket: str, fake: FakeDaemon, tmp_path: Path) -> None:
    guest = guest_pb2.Guest(guest_id="guest-0001", type=guest_pb2.GUEST_TYPE_SNP)
    found = guest_pb2.GetGuestResponse(guest=guest).SerializeToString()
    fake.answers["GuestService/GetGuest"] = lambda request, context: found
    done = sev("--socket", socket, "host", "show")
    assert (done.code, done.err) == (0, "")
    assert "simulated" not in done.out
    done = sev("--socket", socket, "guest", "report", "guest-0001", "--out", tmp_path / "r", "--json")
    assert done.code == 6
    assert done.json()["error"]["kind"] == "refused"
    assert "sev attest report" in done.json()["error"]["remedy"]
    assert not (tmp_path / "r").exists()


def test_what_is_not_known_is_null_or_said(socket: str) -> None:
    document = sev("--socket", socket, "host", "show", "--json").json()
    for name in ("firmware", "api_version", "chip_id"):
        assert document[name] is None
    assert document["device_health"] == "unknown"
    assert "unknown" in sev("--socket", socket, "host", "show").out


def test_a_status_without_committed_tcb(socket: str, fake: FakeDaemon) -> None:
    status = snp_platform_pb2.GetSnpStatusResponse()
    status.status.current_tcb.raw = 0x1B00000000000004
    fake.answers["SnpPlatformService/GetSnpStatus"] = lambda request, context: status.SerializeToString()
    document = sev("--socket", socket, "snp", "status", "--json").json()
    assert document["committed_tcb"] is None
    assert document["current_tcb"]["raw"] == "1b00000000000004"
    assert document["state"] == "unknown"
    text = sev("--socket", socket, "snp", "status").out
    assert "once a report" in text
    raw = next(line.split() for line in text.splitlines() if line.startswith("raw"))
    assert raw == ["raw", "1b00000000000004", "0" * 16, "-"]


@pytest.mark.parametrize(
    ("code", "exit_code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2, "usage"),
        (grpc.StatusCode.FAILED_PRECONDITION, 11, "not_now"),
        (grpc.StatusCode.PERMISSION_DENIED, 7, "not_permitted"),
        (grpc.StatusCode.NOT_FOUND, 10, "not_found"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 11, "not_now"),
        (grpc.StatusCode.UNIMPLEMENTED, 6, "refused"),
        (grpc.StatusCode.INTERNAL, 1, "internal"),
        (grpc.StatusCode.UNKNOWN, 1, "internal"),
        (grpc.StatusCode.DATA_LOSS, 1, "internal"),
    ],
)
def test_every_code_has_its_exit_code(
    socket: str, fake: FakeDaemon, code: grpc.StatusCode, exit_code: int, kind: str
) -> None:
    fake.answers["HostService/GetHost"] = lambda request, context: abort(context, code, "why")
    done = sev("--socket", socket, "host", "show", "--json")
    assert done.code == exit_code
    error = done.json()["error"]
    assert (error["kind"], error["message"]) == (kind, "why")
    assert done.err.startswith("sev: why\n")


def test_an_answer_that_is_no_message(socket: str, fake: FakeDaemon) -> None:
    fake.answers["HostService/GetHost"] = lambda request, context: b"\xff"
    assert sev("--socket", socket, "host", "show").code == 1


def test_a_daemon_that_stays_away_is_waited_for_as_long_as_asked(socket: str, fake: FakeDaemon) -> None:
    fake.answers["HostService/GetHost"] = lambda request, context: abort(context, grpc.StatusCode.UNAVAILABLE)
    begin = time.monotonic()
    assert sev("--socket", socket, "host", "show", "--timeout", "0.3").code == 8
    assert 0.25 < time.monotonic() - begin < 3
