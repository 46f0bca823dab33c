"""What the daemon makes of a directory that is said to be a simulator's, without one that runs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sev import packets
from sev.errors import DeviceMissing, UsageError
from sevd import config, listening
from sevd.access.listeners import FD
from sevd.remote_simulator import RemoteSimulator
from tests.support.workers import descriptors

LEAF = {"leaf": "0x00000001", "subleaf": "0x00000000"} | dict.fromkeys(("eax", "ebx", "ecx", "edx"), "0x00000007")
HOST: dict[str, object] = {
    "product": "genoa",
    "cpu_family": 25,
    "cpu_model": 17,
    "cpu_stepping": 1,
    "kernel": "6.18-simulated",
    "technologies": ["sev-snp"],
    "asids": {"sev": [10, 0], "sev_es": [99, 3]},
}


def directory(folder: Path, platform: object = None) -> Path:
    """A directory as a simulator has it, with nobody behind it."""
    out = folder / "sim"
    (out / "roots").mkdir(parents=True)
    document = {"simulated": True, "cpuid": [LEAF]} if platform is None else platform
    (out / "platform.json").write_text(document if isinstance(document, str) else json.dumps(document))
    (out / "roots" / "ark.pem").write_bytes(b"PEM")
    (out / "sev").touch()
    (out / "control.sock").touch()
    return out


@contextlib.contextmanager
def answering(folder: Path, answers: dict[str, dict[str, object] | None], fds: Sequence[int] = ()) -> Iterator[Path]:
    """Somebody at the control socket; an answer of None is none at all, and `fds` come with every other."""
    out = directory(folder)
    (out / "control.sock").unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(out / "control.sock"))
    listener.listen()

    peers: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            peers.append(peer)
            with peer:
                try:
                    while True:
                        message, _ = packets.receive(peer)
                        answer = answers.get(str(message.get("op")))
                        if answer is not None:
                            packets.send(peer, answer, fds)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield out
    finally:
        for sock in (listener, *peers):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_what_a_simulator_tells(tmp_path: Path) -> None:
    answers: dict[str, dict[str, object] | None] = {
        "host": HOST,
        "committed": {"committed_tcb": 7},
        "endorsements": {"endorsements": {"ark": "0a0b"}},
    }
    with answering(tmp_path, answers) as out:
        simulator = RemoteSimulator(out)
        facts = simulator.facts()
        assert (facts.product, facts.cpu_family, facts.technologies) == ("genoa", 25, ("sev-snp",))
        assert simulator.asids() == {"sev": (10, 0), "sev_es": (99, 3)}
        assert simulator.committed_tcb() == 7
        assert simulator.endorsements() == {"ark": b"\x0a\x0b"}
        assert simulator.cpuid(1) == (7, 7, 7, 7)
        assert simulator.cpuid(2) == (0, 0, 0, 0)
        assert simulator.roots_pem() == b"PEM"
        assert simulator.sev_path == str(out / "sev")
        assert list(simulator.missing()) == []
        answers["committed"] = {"committed_tcb": None}
        assert simulator.committed_tcb() is None
        simulator.close()


def test_one_that_ends_is_missed_and_its_last_word_stands(tmp_path: Path) -> None:
    with answering(tmp_path, {"host": HOST}) as out:
        simulator = RemoteSimulator(out)
    assert not simulator.present()
    assert "does not run" in simulator.missing()[0]
    assert simulator.facts().product == "genoa"
    assert simulator.asids() == {"sev": (10, 0), "sev_es": (99, 0)}
    with pytest.raises(DeviceMissing, match="does not answer"):
        simulator.committed_tcb()


def test_descriptors_that_nobody_asked_for_are_closed(tmp_path: Path) -> None:
    sent = os.memfd_create("unasked")
    with answering(tmp_path, {"host": HOST, "committed": {}}, [sent] * packets.DESCRIPTORS) as out:
        simulator = RemoteSimulator(out)
        assert simulator.committed_tcb() is None
        assert [name for name in descriptors().values() if "unasked" in name] == [os.readlink(f"/proc/self/fd/{sent}")]
        simulator.close()
    os.close(sent)


def test_one_that_is_silent_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sevd.remote_simulator.COUNT_SECONDS", 0.05)
    monkeypatch.setattr("sevd.remote_simulator.ANSWER_SECONDS", 0.05)
    answers: dict[str, dict[str, object] | None] = {"host": HOST}
    with answering(tmp_path, answers) as out:
        simulator = RemoteSimulator(out)
        answers["host"] = None
        assert simulator.asids()["sev_es"] == (99, 3)
        answers["host"] = {**HOST, "asids": {"sev_es": [99, 4]}}
        assert simulator.asids()["sev_es"] == (99, 4)  # a late answer is not taken for this one
        simulator.close()


@pytest.mark.parametrize(
    "answer", [{}, {"product": 1}, {**HOST, "technologies": "x"}, {**HOST, "asids": {"sev": 1}}], ids=str
)
def test_one_that_talks_nonsense_is_refused(tmp_path: Path, answer: dict[str, object]) -> None:
    with answering(tmp_path, {"host": answer}) as out, pytest.raises(UsageError, match="what it simulates"):
        RemoteSimulator(out)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda out: None, "nobody answers at its control.sock"),
        (lambda out: (out / "sev").unlink(), "holds no sev: the simulator is not ready, or has ended"),
        (lambda out: (out / "control.sock").unlink(), "holds no control.sock"),
        (lambda out: (out / "platform.json").unlink(), "holds no platform.json"),
        (lambda out: (out / "platform.json").write_text("{"), "is not that of a simulator"),
        (lambda out: (out / "platform.json").write_text("[]"), "is not that of a simulator"),
        (lambda out: (out / "platform.json").write_text('{"simulated": false}'), "is not that of a simulator"),
        (
            lambda out: (out / "platform.json").write_text('{"simulated": true, "cpuid": [{}]}'),
            "not that of a simulator",
        ),
    ],
)
def test_a_directory_that_is_none(tmp_path: Path, change: object, why: str) -> None:
    out = directory(tmp_path)
    change(out)  # type: ignore[operator]
    with pytest.raises(UsageError, match=why) as refused:
        RemoteSimulator(out)
    assert str(out) in refused.value.message
    assert "sevd-simulator" in refused.value.remedy


@pytest.mark.parametrize("content", ["", "{", "[]", '{"simulated": 1}', "[" * 100_000], ids=lambda text: text[:20])
def test_a_device_beside_anything_else_is_no_simulator_s(tmp_path: Path, content: str) -> None:
    (tmp_path / "platform.json").write_text(content)
    assert config.simulator_of(tmp_path / "sev") is None


def test_a_simulator_s_device_means_its_simulator(tmp_path: Path) -> None:
    out = directory(tmp_path)
    settings = config.resolved(config.Settings(sev_device=out / "sev", socket=tmp_path / "s"), 0, {})
    assert settings.simulator == out
    assert settings.certificate_table == Path("/var/lib/sevd/certs.bin")
    assert config.simulator_of(out / "msr") is None
    assert config.resolved(config.Settings(simulate="genoa", sev_device=out / "sev"), 0, {}).simulator is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (config.Settings(), "/run/sevd/fd.sock"),
        (config.Settings(socket=Path("/a/b.sock")), "/a/fd.sock"),
        (config.Settings(admin_socket=Path("/a/c.sock")), "/a/fd.sock"),
        (config.Settings(socket=Path("/a/b.sock"), fd_socket=Path("/x/y")), "/x/y"),
    ],
    ids=["the system's", "beside the one", "beside the admin's", "as named"],
)
def test_where_descriptors_are_passed(settings: config.Settings, expected: str) -> None:
    assert str(config.resolved(settings, 0, {}).fd_socket) == expected


def test_a_path_that_leaves_no_room_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "s" * (107 - len(os.fsencode(tmp_path)) - 1)
    settings = config.Settings(socket=tmp_path / name, fd_socket=tmp_path / f"{name}.fd", socket_group="")
    found = listening.sockets(settings, {})
    assert [listener.kind.name for listener in found] == ["sevd"]
    assert "no descriptors are passed" in caplog.text
    for listener in found:
        listener.close()
    settings = config.Settings(socket=tmp_path / "s", fd_socket=tmp_path / "s.fd", socket_group="")
    found = listening.sockets(settings, {})
    assert [(listener.kind.name, listener.socket.type) for listener in found] == [
        ("sevd", socket.SOCK_STREAM),
        ("fd", socket.SOCK_SEQPACKET),
    ]
    assert found[1].kind is FD
    for listener in found:
        listener.close()


def test_a_socket_for_descriptors_alone_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no socket to listen on"):
        listening.sockets(config.Settings(fd_socket=tmp_path / "s.fd", socket_group=""), {})
    assert not (tmp_path / "s.fd").exists()
