"""Peers of the control socket that mean harm: who may do what, packets that make no sense, and too many of them."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev import packets
from sev.abi import kvm
from sev.errors import MalformedInput
from sevd.simulator.overlay import OverlayKernel
from tests.support.control import Served, launch
from tests.support.needs import need_root
from tests.support.waiting import eventually


def raw(served: Served) -> socket.socket:
    """A connection of its own."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(10)
    sock.connect(str(served.folder / "control.sock"))
    return sock


def test_only_root_and_the_simulators_user_break_things(served: Served, tmp_path: Path) -> None:
    need_root()
    for folder in (served.folder, *served.folder.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    program = textwrap.dedent("""
        import os, socket, sys
        os.setgid(65534); os.setuid(65534)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(sys.argv[1])
        update = '{"op":"firmware-update","version":"1.55.50"}'
        for op in ('{"op":"fault","spec":"dead"}', '{"op":"faults"}', '{"op":"power-loss"}', update, '{"op":"host"}'):
            sock.send(op.encode())
            print(sock.recv(1 << 16).decode())
    """)
    told = subprocess.run(
        [sys.executable, "-c", program, str(served.folder / "control.sock")],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    *refused, host = [json.loads(line) for line in told.stdout.splitlines()]
    assert [one["error"]["reason"] for one in refused] == ["NOT_PERMITTED"] * 4
    assert all("for root" in one["error"]["message"] for one in refused)
    assert host["product"] == "genoa"
    assert not served.simulator.ccp.dead


@pytest.mark.parametrize(
    "packet",
    [
        b"x", b"[]", b"null", b'"op"', b"{", b"{}", b'{"op": 1}', b'{"op": "nothing"}', b'{"op": null}',
        b"\xff\xfe", b"[" * 100_000, b'{"op":"ioctl"}', b'{"op":"ioctl","fd":"1","request":1,"argument":1}',
        b'{"op":"ioctl","fd":true,"request":1,"argument":1}', b'{"op":"ioctl","fd":-1,"request":1,"argument":1}',
        b'{"op":"ioctl","fd":1e400,"request":1,"argument":1}', b'{"op":"open","path":1,"flags":0}',
        b'{"op":"ioctl","fd":1048576,"request":1,"argument":' + b"9" * 4000 + b"}",
        b'{"op":"report","fd":1048576,"report_data":"zz","vmpl":0,"key_selection":0}',
        b'{"op":"key","fd":1048576}', b'{"op":"name","fd":1048576,"guest_id":["x"]}', b'{"op":"fault"}',
        b'{"op":"discard","fd":1048576,"offset":18446744073709551615,"size":1}', b" " * (128 << 10),
        b'{"op":"host","op":"' + b"y" * 100_000 + b'"}',
    ],
    ids=lambda packet: packet[:40].decode("latin-1"),
)  # fmt: skip
def test_packets_that_make_no_sense_are_answered(served: Served, packet: bytes) -> None:
    with raw(served) as sock:
        sock.send(packet)
        answer, _ = packets.receive(sock)
        assert set(answer) <= {"error", "errno"}
        sock.send(b'{"op":"host"}')
        assert packets.receive(sock)[0]["product"] == "genoa"


def test_a_packet_that_is_too_large_is_answered(served: Served) -> None:
    with raw(served) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        sock.send(b'{"op":"host","x":"' + bytes(b"x" * (150 << 10)) + b'"}')
        with pytest.raises(MalformedInput, match="cut off"):
            packets.call(sock, {"op": "host"})


def test_descriptors_that_come_along_are_closed(served: Served) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with raw(served) as sock:
        for _ in range(20):
            packets.send(sock, {"op": "host"}, [0, 1, 2])
            packets.receive(sock)
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "they are closed", 10)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["op", "fd", "request", "argument", "path", "flags", "guest_id", "offset", "size", "vmpl"]),
            st.sampled_from(["ioctl", "open", "close", "vmsa", "digest", "asid", "/dev/kvm", "report"])
            | st.integers(-1, 1 << 65) | st.integers(1 << 20, (1 << 20) + 4)
            | st.sampled_from([kvm.KVM_CREATE_VM, kvm.KVM_CREATE_VCPU, kvm.KVM_CREATE_GUEST_MEMFD, kvm.KVM_MEMORY_ENCRYPT_OP])
            | st.none() | st.lists(st.integers(), max_size=2),
            max_size=8,
        ),
        max_size=12,
    )
)  # fmt: skip
def test_whatever_is_sent_is_answered(served: Served, messages: list[dict[str, object]]) -> None:
    with raw(served) as sock:
        for message in messages:
            sock.send(json.dumps(message).encode())
            answer, fds = packets.receive(sock)
            packets.close_all(fds)
            assert "error" not in answer or "unexpected" not in str(answer["error"])


def test_a_peer_that_hangs_up_early_costs_nothing(served: Served, kernel: OverlayKernel) -> None:
    for _ in range(50):
        sock = raw(served)
        sock.send(b'{"op":"open","path":"/dev/kvm","flags":2}')
        sock.close()
    eventually(lambda: len(served.server) == 1, "they are gone", 10)
    launch(kernel, served.sev)[0].close()


def test_there_is_a_most_of_connections(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sevd.simulator.control.CONNECTIONS_MAX", 2)
    with raw(served), raw(served), raw(served) as third:
        answer, _ = packets.receive(third)
        assert "open already" in str(answer["error"])
        with pytest.raises(packets.Closed):
            packets.receive(third)


TURNING = """
import ctypes, json, os, socket, sys, time
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])

def call(**message):
    sock.send(json.dumps(message).encode())
    return json.loads(sock.recv(1 << 17))

vm = call(op="ioctl", fd=call(op="open", path="/dev/kvm", flags=2)["fd"], request=0xAE01, argument=4)["result"]

def attributes(address):
    return call(op="ioctl", fd=vm, request=0x4020AED2, argument=address)

buffer = ctypes.create_string_buffer(32)
before = attributes(ctypes.addressof(buffer))
if os.fork():
    os.execv("/bin/sleep", ["sleep", "30"])
until, found = time.monotonic() + 20, []
while not found and time.monotonic() < until:
    time.sleep(0.05)
    try:
        with open(f"/proc/{os.getppid()}/maps") as maps:
            found = [line for line in maps if "/sleep" in line and " rw" in line]
    except OSError:
        pass  # it is turning
address = int(found[0].split("-")[0], 16)
print(json.dumps([before, attributes(address), call(op="host").get("product")]), flush=True)
os.kill(os.getppid(), 9)
"""


def test_a_program_that_the_peer_turns_into_is_not_looked_into(served: Served) -> None:
    need_root()
    for folder in (served.folder, *served.folder.parents):
        if not os.stat(folder).st_mode & 0o001:
            folder.chmod(os.stat(folder).st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-I", "-c", TURNING, str(served.folder / "control.sock")],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.stdout, done.stderr
    before, after, product = json.loads(done.stdout)
    assert before == {"errno": errno.EINVAL}  # zeros are no range
    assert after == {"errno": errno.EFAULT}
    assert product == "genoa"
    eventually(lambda: len(served.server) == 0, "nobody is connected", 10)
