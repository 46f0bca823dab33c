"""`sev host check` on the machine that the tests run on, through daemons, and as another user; and a daemon without SEV."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.cli import sev
from tests.support.daemon import Daemon
from tests.support.device_files import device_files
from tests.support.needs import need_root
from tests.support.running import Running, running
from tests.support.serving import METHODS

TECHNOLOGIES = {"snp": "sev-snp", "sev-es": "sev-es", "sev": "sev"}


def verdict(done: Any) -> dict[str, Any]:
    """The document of a check, with what always holds of one."""
    document: dict[str, Any] = done.json()
    assert done.code == (0 if document["able"] else 4)
    assert len(document["checks"]) >= 20
    for check in document["checks"]:
        assert check["result"] in ("passed", "failed", "skipped")
        assert check["reason"], check
        assert check["remedy"] or check["result"] != "failed", check
        assert set(check) == {"id", "group", "title", "result", "reason", "remedy", "decides", "required"}
    assert set(document["technologies"]) == set(TECHNOLOGIES.values())
    for one in document["technologies"].values():
        assert one["able"] is not bool(one["blocked_by"])
    return document


def test_this_machine() -> None:
    whole = verdict(sev("host", "check", "--json"))
    ids = [check["id"] for check in whole["checks"]]
    assert len(ids) == len(set(ids))
    assert whole["able"] is any(one["able"] for one in whole["technologies"].values())
    assert (whole["for"], whole["simulated"]) == (None, False)
    for word, technology in TECHNOLOGIES.items():
        one = verdict(sev("host", "check", "--for", word, "--json"))
        assert one["for"] == technology
        assert one["able"] is whole["technologies"][technology]["able"]
        assert {check["id"] for check in one["checks"]} <= set(ids)


def test_this_machine_for_people() -> None:
    document = verdict(sev("host", "check", "--json"))
    brief, whole = sev("host", "check"), sev("host", "check", "-v")
    assert brief.code == whole.code == (0 if document["able"] else 4)
    for check in document["checks"]:
        assert check["id"] in whole.out
        if check["result"] == "failed":
            assert check["id"] in brief.out
            assert check["remedy"] in brief.out
    for name in ("SEV", "SEV-ES", "SEV-SNP"):
        assert f"{name} guests:" in brief.out
    assert "--socket asks a daemon" in whole.err
    assert brief.err == ""


STRANGER = """
import os, sys
os.setgroups([]); os.setgid(61234); os.setuid(61234)
from sev.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_another_user_gets_the_same_verdict_and_is_told_what_it_may_not_see() -> None:
    need_root()
    # Everything is loaded before the rights are dropped: the sources may lie where that user cannot go.
    program = STRANGER.replace(
        "import os, sys", "import os, sys, json\nfrom sev.cli.main import main\nmain(sys.argv[1:])", 1
    )
    program = program.replace("os.setgroups", "sys.stdout.flush(); print(); print('---', flush=True); os.setgroups", 1)
    done = subprocess.run(
        [sys.executable, "-c", program, "host", "check", "--json"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    as_root, _, as_stranger = done.stdout.partition("---\n")
    root, stranger = json.loads(as_root), json.loads(as_stranger)
    assert done.returncode == (0 if stranger["able"] else 4)
    assert stranger["technologies"] == root["technologies"]
    assert [check["id"] for check in stranger["checks"]] == [check["id"] for check in root["checks"]]
    results = {check["id"]: check for check in stranger["checks"]}
    if Path("/dev/kvm").exists() and not Path("/dev/kvm").stat().st_mode & 0o006:
        assert results["device.kvm"]["result"] == "passed"
        assert results["device.kvm-open"]["result"] == "skipped"
        assert "uid 61234" in results["device.kvm-open"]["reason"]
        assert "root" in results["device.kvm-open"]["remedy"]


def test_the_host_of_a_daemon(daemons: Callable[[str], Daemon]) -> None:
    daemon = daemons("genoa")
    done = sev("--socket", daemon.socket, "host", "check", "--json")
    document = verdict(done)
    assert document["simulated"] is True
    assert "SIMULATED" in done.err
    assert document["technologies"]["sev-snp"] == {"able": True, "blocked_by": []}
    here = verdict(sev("host", "check", "--json"))
    assert [check["id"] for check in document["checks"]] == [check["id"] for check in here["checks"]]
    with daemon.connect() as host:
        assert host.check_host("sev-snp").able
        info = host.host()
    assert "sev-snp" in info.kvm_vm_types
    assert dict(info.module_parameters)["kvm_amd.sev_snp"] == "Y"
    assert info.kernel_era == "C"


def test_the_host_of_a_simulators_files(tmp_path: Path) -> None:
    with device_files(tmp_path / "simulator", product="milan") as files:
        (tmp_path / "daemon").mkdir()
        with running(tmp_path / "daemon", "--simulator", str(files.devices)) as daemon:
            document = verdict(sev("--socket", daemon.target, "host", "check", "--for", "snp", "--json"))
            assert document["able"], document["technologies"]
            results = {check["id"]: check for check in document["checks"]}
            assert "7763" in results["cpu.brand"]["reason"]
            assert str(files.sev) in results["device.sev"]["reason"]
            assert results["bios.snp"]["result"] == results["rmp.address"]["result"] == "passed"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon whose devices are not there."""
    folder = tmp_path_factory.mktemp("bare")
    with running(folder, f"--device={folder}/no-sev", f"--kvm={folder}/no-kvm") as daemon:
        yield daemon


def _call(daemon: Running, method: Any) -> grpc.RpcError | None:
    """Calls a method with a request that passes every other gate; the error, if it was refused."""
    request = method.request()
    for name in ("confirm", "validate_only"):
        if name in method.fields:
            setattr(request, name, name == "confirm")
    codec: Any = {
        "request_serializer": method.request.SerializeToString,
        "response_deserializer": method.response.FromString,
    }
    with grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            if method.uploads and method.streams:
                list(channel.stream_stream(method.path, **codec)(iter([request]), timeout=10))
            elif method.uploads:
                channel.stream_unary(method.path, **codec)(iter([request]), timeout=10)
            elif method.streams:
                next(iter(channel.unary_stream(method.path, **codec)(request, timeout=1)))
            else:
                channel.unary_unary(method.path, **codec)(request, timeout=10)
        except grpc.RpcError as error:
            return error
    return None


DEVICE_METHODS = [method for method in METHODS if method.needs_device and not method.name.startswith("Simulator")]


@pytest.mark.parametrize("method", DEVICE_METHODS, ids=[method.name for method in DEVICE_METHODS])
def test_every_call_that_needs_the_device_says_why_not_and_what_to_do(bare: Running, method: Any) -> None:
    error: Any = _call(bare, method)
    assert error is not None
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error
    blob = next(value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    status = status_pb2.Status.FromString(blob)
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.reason == "DEVICE_MISSING"
    assert f"{bare.folder}/no-sev" in error.details()
    assert bare.process.poll() is None


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_no_call_crashes_the_daemon(bare: Running, method: Any) -> None:
    error: Any = _call(bare, method)
    if error is not None:
        assert error.code() not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE), (
            error
        )
    assert bare.process.poll() is None
    assert "Traceback" not in bare.log()


@pytest.mark.parametrize(
    "words",
    [
        ("snp", "status"), ("snp", "commit", "--yes"), ("snp", "config", "reset"), ("snp", "config", "set", "--snp", "1"),
    ],
)  # fmt: skip
def test_commands_refuse_with_6_and_the_remedy_of_this_machine(bare: Running, words: tuple[str, ...]) -> None:
    done = sev("--socket", bare.target, *words, "--json")
    assert done.code == 6, done.err
    error = done.json()["error"]
    assert error["kind"] == "refused"
    assert f"{bare.folder}/no-sev" in error["message"]
    checked = sev("host", "check", "--for", "snp", "--json").json()
    if checked["technologies"]["sev-snp"]["blocked_by"][:1] != ["device.sev"]:
        remedies = [check["remedy"] for check in checked["checks"] if check["result"] == "failed"]
        assert error["remedy"] in remedies


def test_it_is_degraded_and_not_down(bare: Running) -> None:
    done = sev("--socket", bare.target, "host", "show", "--json")
    assert done.code == 0
    document = done.json()
    assert (document["simulated"], document["device_health"]) == (False, "missing")
    assert document["missing"][0].startswith(f"There is no {bare.folder}/no-sev")
    checked = sev("--socket", bare.target, "host", "check", "--json")
    assert checked.code == 4
    results = {check["id"]: check["result"] for check in checked.json()["checks"]}
    assert results["device.sev"] == results["device.kvm"] == "failed"
    with grpc.insecure_channel(bare.target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)

        def serving(name: str) -> bool:
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        assert serving("")
        assert serving("sev.v1.HostService") is serving("sev.v1.EndorsementService")
        assert not serving("sev.v1.SnpPlatformService")


def test_a_device_that_appears_is_taken_into_use(tmp_path: Path) -> None:
    """A simulator's device stands for the module that was loaded late."""
    served = tmp_path / "simulator"
    (tmp_path / "daemon").mkdir()
    with running(tmp_path / "daemon", f"--device={served}/dev/sev") as daemon:
        assert sev("--socket", daemon.target, "snp", "status").code == 6
        with device_files(served):
            time.sleep(2.1)  # so long an answer is believed
            assert sev("--socket", daemon.target, "snp", "status").code == 0
            until = time.monotonic() + 30
            while sev("--socket", daemon.target, "host", "show", "--json").json()["device_health"] != "ready":
                assert time.monotonic() < until, daemon.log()
                time.sleep(0.2)
            document = sev("--socket", daemon.target, "host", "show", "--json").json()
            assert document["firmware"]
            assert document["chip_id"]
