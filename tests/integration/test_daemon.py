"""The daemon as a process: starts, refusals, crashes, reloads, stops."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from sev.v1 import endorsement_pb2, guest_pb2, host_pb2, simulator_pb2, snp_platform_pb2
from tests.support.running import ROOT, Running, command, fails, running
from tests.support.serving import by_name

SIMULATE = "--simulate=genoa"


def ask(target: str, name: str, request: Any = None, **more: Any) -> Any:
    """One unary call of a plain client."""
    method = by_name(name)
    codec: Any = {
        "request_serializer": method.request.SerializeToString,
        "response_deserializer": method.response.FromString,
    }
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return channel.unary_unary(method.path, **codec)(request or method.request(), timeout=20, **more)


def refused(target: str, name: str, request: Any = None) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        ask(target, name, request)
    return caught.value


def code(error: Any) -> grpc.StatusCode:
    out: grpc.StatusCode = error.code()
    return out


def guest_request(**more: Any) -> guest_pb2.CreateGuestRequest:
    return guest_pb2.CreateGuestRequest(
        type=guest_pb2.GUEST_TYPE_SNP,
        memory_bytes=1 << 20,
        firmware_bytes=1 << 16,
        vcpu_count=1,
        cpuid_signature=0x00A10F11,
        **more,
    )


def eventually(holds: Callable[[], bool], what: str) -> None:
    for _ in range(200):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail(f"not within 10 s: {what}")


def test_a_simulated_host_serves_every_service(host_folder: Path) -> None:
    with running(host_folder, SIMULATE) as daemon:
        host = ask(daemon.target, "HostService/GetHost").host
        assert (host.product, host.simulated, host.device_health) == ("genoa", True, host_pb2.DEVICE_HEALTH_READY)
        assert list(host.missing) == []
        status = ask(daemon.target, "SnpPlatformService/GetSnpStatus").status
        assert (status.state, len(status.raw)) == (snp_platform_pb2.SNP_STATE_INIT, 32)
        endorsements = ask(daemon.target, "EndorsementService/GetEndorsements")
        kinds = {one.kind for one in endorsements.endorsements}
        assert {endorsement_pb2.ENDORSEMENT_KIND_ARK, endorsement_pb2.ENDORSEMENT_KIND_VCEK} <= kinds
        assert endorsements.simulated
        guest = ask(daemon.target, "GuestService/CreateGuest", guest_request()).guest
        assert guest.owner == f"uid:{os.geteuid()}"
        after = ask(daemon.target, "HostService/GetHost").host
        assert (after.guest_count, after.sev_es_asids.in_use) == (1, host.sev_es_asids.in_use + 1)
        ask(
            daemon.target,
            "GuestService/DeleteGuest",
            guest_pb2.DeleteGuestRequest(guest_id=guest.guest_id, confirm=True),
        )
        assert ask(daemon.target, "HostService/GetHost").host == host
        assert "SIMULATED" in daemon.log()
        assert stat.S_IMODE(os.stat(host_folder / "state").st_mode) == 0o700
        for path in (host_folder / "state").rglob("*"):
            if path.name in ("journal.jsonl", "audit.jsonl", "lock") or "key" in path.name:
                assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_streams_loses_guests_and_leaves_nothing(host_folder: Path, number: signal.Signals) -> None:
    with running(host_folder, SIMULATE) as daemon:
        guest = ask(daemon.target, "GuestService/CreateGuest", guest_request()).guest
        with grpc.insecure_channel(daemon.target) as channel:
            watch: Any = channel.unary_stream(
                "/sev.v1.GuestService/WatchGuests",
                request_serializer=guest_pb2.WatchGuestsRequest.SerializeToString,
                response_deserializer=guest_pb2.WatchGuestsResponse.FromString,
            )(guest_pb2.WatchGuestsRequest())
            assert next(watch).guest.state == guest_pb2.GUEST_STATE_CREATED
            daemon.process.send_signal(number)
            lost = next(watch).guest
            assert (lost.guest_id, lost.state) == (guest.guest_id, guest_pb2.GUEST_STATE_LOST)
            assert lost.failure
            with pytest.raises(grpc.RpcError) as caught:
                next(watch)
            assert code(caught.value) is grpc.StatusCode.UNAVAILABLE
        assert daemon.process.wait(20) == 0
        assert not (host_folder / "s").exists()
        assert "stopped" in daemon.log()
        assert "Traceback" not in daemon.log()


def test_identity_and_state_survive_a_restart(host_folder: Path) -> None:
    seen = []
    for _ in range(2):
        with running(host_folder, SIMULATE) as daemon:
            host = ask(daemon.target, "HostService/GetHost").host
            endorsements = ask(daemon.target, "EndorsementService/GetEndorsements").endorsements
            vcek = [one.der for one in endorsements if one.kind == endorsement_pb2.ENDORSEMENT_KIND_VCEK]
            seen.append((host.chip_id, vcek))
    assert seen[0] == seen[1]


def test_a_kill_leaves_a_stale_socket_that_the_next_start_replaces(host_folder: Path) -> None:
    with running(host_folder, SIMULATE) as daemon:
        daemon.process.kill()
        daemon.process.wait()
        assert (host_folder / "s").is_socket()
    with running(host_folder, SIMULATE) as daemon:
        assert ask(daemon.target, "HostService/GetHost").host.product == "genoa"


def test_a_request_id_is_remembered_over_a_restart(host_folder: Path) -> None:
    request = guest_request(request_id="once", label="first")
    with running(host_folder, SIMULATE) as daemon:
        first = ask(daemon.target, "GuestService/CreateGuest", request)
        assert ask(daemon.target, "GuestService/CreateGuest", request) == first
        assert ask(daemon.target, "HostService/GetHost").host.guest_count == 1
        daemon.process.kill()
        daemon.process.wait()
    with running(host_folder, SIMULATE) as daemon:
        assert ask(daemon.target, "GuestService/CreateGuest", request) == first
        assert ask(daemon.target, "HostService/GetHost").host.guest_count == 0


def test_a_crash_between_beginning_and_end_is_answered_as_unknown(host_folder: Path) -> None:
    import hashlib

    from sevd.journal import Journal

    request = guest_request(request_id="cut-off")
    journal = Journal(host_folder / "state" / "journal.jsonl")
    digest = hashlib.sha256(request.SerializeToString()).hexdigest()
    journal.begin(f"uid:{os.geteuid()}", "cut-off", "/sev.v1.GuestService/CreateGuest", digest)
    journal.close()
    with running(host_folder, SIMULATE) as daemon:
        error = refused(daemon.target, "GuestService/CreateGuest", request)
        assert code(error) is grpc.StatusCode.ABORTED
        assert ask(daemon.target, "HostService/GetHost").host.guest_count == 0


def test_without_a_device_it_serves_degraded_and_never_simulates(tmp_path: Path) -> None:
    missing = [f"--device={tmp_path}/no-sev", f"--kvm={tmp_path}/no-kvm"]
    with running(tmp_path, *missing) as daemon:
        host = ask(daemon.target, "HostService/GetHost").host
        assert (host.simulated, host.device_health) == (False, host_pb2.DEVICE_HEALTH_MISSING)
        assert any(f"{tmp_path}/no-sev" in sentence for sentence in host.missing)
        assert any(f"{tmp_path}/no-kvm" in sentence for sentence in host.missing)
        for name, request in (
            ("SnpPlatformService/GetSnpStatus", None),
            ("GuestService/CreateGuest", guest_request()),
        ):
            error = refused(daemon.target, name, request)
            assert code(error) is grpc.StatusCode.FAILED_PRECONDITION
            assert f"{tmp_path}/no-sev" in str(error.details())
        error = refused(daemon.target, "SimulatorService/RequestGuestReport")
        assert code(error) is grpc.StatusCode.UNIMPLEMENTED
        assert list(ask(daemon.target, "GuestService/ListGuests").guests) == []
        endorsements = ask(daemon.target, "EndorsementService/GetEndorsements")
        assert not endorsements.simulated
        assert endorsements.missing
        assert "degraded" in daemon.log()
        assert f"{tmp_path}/no-sev" in daemon.log()
    assert not (tmp_path / "state" / "simulator").exists()


def test_a_path_where_a_daemon_answers_is_refused(host_folder: Path, tmp_path: Path) -> None:
    with running(host_folder, SIMULATE) as daemon:
        exit_code, said = fails(host_folder, SIMULATE, "--state-dir", str(tmp_path / "other"))
        assert exit_code == 2
        assert "another daemon answers" in said
        assert ask(daemon.target, "HostService/GetHost").host.product == "genoa"


def test_a_locked_state_directory_is_refused(host_folder: Path) -> None:
    with running(host_folder, SIMULATE) as daemon:
        exit_code, said = fails(host_folder, SIMULATE, "--socket", f"{host_folder}/t")
        assert exit_code == 2
        assert "another daemon uses this state directory" in said
        assert ask(daemon.target, "HostService/GetHost").host.product == "genoa"
        assert not (host_folder / "t").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--invented"], "unrecognized arguments"),
        (["--simulate=venice"], "invalid choice"),
        (["--seed=x", SIMULATE], "invalid"),
        (["--seed=-1", SIMULATE], "invalid"),
        (["--seed=1"], "Add --simulate"),
        (["--firmware-version=1.55.40"], "Add --simulate"),
        ([SIMULATE, "--firmware-version=nonsense"], "firmware"),
        (["--config=/nonexistent/sevd.toml"], "No such file"),
        (["--socket="], "expected a path"),
        (["--sim"], "unrecognized arguments"),
    ],
)
def test_wrong_options_are_named_with_exit_2(tmp_path: Path, options: list[str], says: str) -> None:
    exit_code, said = fails(tmp_path, *options)
    assert exit_code == 2, said
    assert says in said
    assert "Traceback" not in said


def test_a_configuration_is_checked_without_starting(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[simulation]\nproduct = "turin"\n[limits]\nconnections = 7\n')
    done = subprocess.run(
        command(tmp_path, "--config", str(config), "--check-config"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0
    assert 'simulation.product = "turin"' in done.stdout.splitlines()
    assert "limits.connections = 7" in done.stdout.splitlines()
    assert not (tmp_path / "state").exists()
    config.write_text("[limits]\nconnections = 0\n")
    exit_code, said = fails(tmp_path, "--config", str(config), "--check-config")
    assert (exit_code, "limits.connections" in said) == (2, True)
    config.write_text('[access]\nadmin_groups = ["no-such-group-here"]\n')
    exit_code, said = fails(tmp_path, "--config", str(config), "--check-config")
    assert (exit_code, "no group" in said) == (2, True)


def test_a_reload_takes_what_it_may_and_keeps_the_rest(host_folder: Path) -> None:
    config = host_folder / "c.toml"
    config.write_text("[limits]\nconnections_per_identity = 100\n")
    with running(host_folder, SIMULATE, "--config", str(config)) as daemon:
        config.write_text("[limits]\nconnections_per_identity = 0\n")
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: "configuration not reloaded" in daemon.log(), "a bad configuration is said")
        assert ask(daemon.target, "HostService/GetHost").host.product == "genoa"
        config.write_text("[limits]\nconnections_per_identity = 1\nmessage_bytes = 65536\n")
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: "applied=limits.connections_per_identity" in daemon.log(), "a good one is taken")
        assert "take a restart: limits.message_bytes" in daemon.log()
        with contextlib.ExitStack() as first:
            eventually(lambda: _held(first, host_folder), "one connection is held")
            error = refused(daemon.target, "HostService/GetHost")
            assert code(error) is grpc.StatusCode.UNAVAILABLE
        eventually(lambda: _answers(daemon), "the place is free again")


def _held(stack: contextlib.ExitStack, folder: Path) -> bool:
    """Whether a new connection is admitted (the server answers): the place of an earlier one may be taken still."""
    with contextlib.ExitStack() as attempt:
        client = attempt.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(1)
        client.connect(f"{folder}/s")
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        if not client.recv(1):
            return False
        stack.push(attempt.pop_all())
        return True


def _answers(daemon: Running) -> bool:
    try:
        ask(daemon.target, "HostService/GetHost")
    except grpc.RpcError:
        return False
    return True


def test_sockets_of_systemd_are_served_and_left_alone(host_folder: Path) -> None:
    paths = {name: host_folder / name for name in ("monitor", "sevd")}
    listeners = {}
    for name, path in paths.items():
        listeners[name] = socket.socket(socket.AF_UNIX)
        listeners[name].bind(str(path))
        listeners[name].listen()
    starter = (
        "import os, sys\n"
        "for target, source in enumerate(map(int, sys.argv[1].split(',')), 3): os.dup2(source, target)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])\n"
    )
    numbers = [listeners[name].fileno() for name in ("monitor", "sevd")]
    arguments = ["-m", "sevd", "--state-dir", f"{host_folder}/state", SIMULATE]
    with (host_folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", starter, ",".join(map(str, numbers)), *arguments],
            pass_fds=numbers,
            env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "monitor.socket:sevd"},
            stderr=log,
            cwd=ROOT,
        )
    try:
        create = guest_pb2.CreateGuestRequest()
        assert ask(f"unix:{paths['sevd']}", "HostService/GetHost", wait_for_ready=True).host.product == "genoa"
        assert ask(f"unix:{paths['monitor']}", "HostService/GetHost").host.product == "genoa"
        assert code(refused(f"unix:{paths['monitor']}", "GuestService/CreateGuest", create)) is (
            grpc.StatusCode.PERMISSION_DENIED
        )
        assert code(refused(f"unix:{paths['sevd']}", "GuestService/CreateGuest", create)) is (
            grpc.StatusCode.INVALID_ARGUMENT
        )
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert all(path.is_socket() for path in paths.values())
    for listener in listeners.values():
        listener.close()


def test_the_watchdog_is_fed(host_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(host_folder / "n"))
        manager.settimeout(20)
        environ = {**os.environ, "NOTIFY_SOCKET": str(host_folder / "n"), "WATCHDOG_USEC": "400000"}
        with (host_folder / "log").open("wb") as log:
            process = subprocess.Popen(command(host_folder, SIMULATE), env=environ, stderr=log, cwd=ROOT)
        said: list[bytes] = []
        while said.count(b"WATCHDOG=1") < 2:
            said.append(manager.recv(4096))
        process.terminate()
        while not any(one.startswith(b"STOPPING=1") for one in said):
            said.append(manager.recv(4096))
        assert process.wait(20) == 0
        assert any(one.startswith(b"READY=1\nSTATUS=SIMULATED genoa") for one in said)


def test_every_call_that_changes_something_is_on_record(host_folder: Path) -> None:
    with running(host_folder, SIMULATE) as daemon:
        ask(daemon.target, "GuestService/CreateGuest", guest_request(guest_id="guest-on-record"))
        bad = guest_pb2.StartGuestLaunchRequest(guest_id="guest-on-record", policy=0x3FFFF)
        assert code(refused(daemon.target, "GuestService/StartGuestLaunch", bad)) is grpc.StatusCode.FAILED_PRECONDITION
        key = simulator_pb2.RequestGuestKeyRequest(guest_id="guest-on-record")
        refused(daemon.target, "SimulatorService/RequestGuestKey", key)
    records = [json.loads(line) for line in (host_folder / "state" / "audit.jsonl").read_text().splitlines()]
    made, started = (record for record in records if record["what"] == "call")
    assert (made["method"], made["result"]) == ("GuestService/CreateGuest", "done")
    assert made["caller"]["pid"] == os.getpid()
    assert (started["method"], started["result"], started["target"]) == (
        "GuestService/StartGuestLaunch",
        "refused",
        "guest-on-record",
    )
    assert started["firmware_status"] > 0
