"""The control socket: KVM for a process elsewhere, hostile peers, and processes that die."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev import packets
from sev.abi import kvm, kvm_sev
from sev.errors import DeviceMissing, FirmwareError, MalformedInput, UsageError, WrongState
from sev.measurement.plan import snp_plan
from sevd.simulator.control_client import ControlClient
from sevd.simulator.overlay import OverlayKernel
from tests.support.control import FIRMWARE, NO_KVM, Served, launch
from tests.support.needs import need_root

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def kernel(served: Served) -> Iterator[OverlayKernel]:
    """A process on the host."""
    made = served.kernel()
    yield made
    made.exit()


def raw(served: Served) -> socket.socket:
    """A connection of its own."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(10)
    sock.connect(str(served.folder / "control.sock"))
    return sock


def until(condition: object, seconds: float = 10) -> None:
    """Waits for something to become true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_a_process_elsewhere_launches_a_guest(served: Served, kernel: OverlayKernel) -> None:
    guest, digest = launch(kernel, served.sev)
    assert kernel.launch_digest(guest.vm_fd) == digest
    assert kernel.asid(guest.vm_fd) == 1
    kernel.name(guest.vm_fd, "guest-one")
    assert list(served.simulator.guests()) == ["guest-one"]
    report = kernel.report(guest.vm_fd, bytes(range(64)), 1, 0)
    assert (report[0x50:0x90], report[0x90:0xC0]) == (bytes(range(64)), digest)
    keys = {
        kernel.key(
            guest.vm_fd, root_key=0, key_selection=0, guest_field_select=0, vmpl=vmpl, guest_svn=0, tcb_version=0
        )
        for vmpl in (1, 2)
    }
    assert len(keys) == 2
    guest.close()
    assert served.in_use() == (0, 0)
    kernel.exit()
    until(lambda: len(served.server) == 0)


def test_without_a_real_kvm_nothing_runs(served: Served, kernel: OverlayKernel) -> None:
    guest, _ = launch(kernel, served.sev)
    vcpu = guest.machine.vcpu_fds[0]
    with pytest.raises(OSError, match="not supported"):
        kernel.ioctl(vcpu, kvm.KVM_RUN)
    with pytest.raises(OSError, match="not supported"):
        kernel.map(vcpu, 4096)
    assert guest.machine.vcpu_mmap_size() == kvm.VCPU_MMAP_SIZE


def test_the_memory_of_a_guest_is_handed_over(served: Served, kernel: OverlayKernel) -> None:
    """What the firmware wrote is in the memfd: the secrets page is not what was given."""
    guest, _ = launch(kernel, served.sev)
    fd, offset = guest.machine.private_pages(0, 4096)
    memory = kernel._files[fd].real
    secrets = next(region for region in snp_plan(FIRMWARE, 2, vcpu_type="EPYC-v4").regions if region.name == "secrets")
    page = os.pread(memory, 4096, offset + secrets.gpa)
    assert page[0x20:0x40] == served.simulator.guests()["asid-1"].vmpck(0)
    for size in (0, 1 << 40):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size)
    kernel.discard(fd, offset + secrets.gpa, 4096)
    assert os.pread(memory, 4096, offset + secrets.gpa) == bytes(4096)
    for wrong in ((1, 4096), (0, 1), (0, 0)):
        with pytest.raises(OSError, match="Invalid argument"):
            kernel.discard(fd, *wrong)


def test_descriptors_are_the_peers_own_or_the_models(served: Served, kernel: OverlayKernel) -> None:
    """sev_fd is a number of the peer's table: another file, or none, is EBADF, which a start tells as ENOTTY."""
    device = kernel.open(NO_KVM, os.O_RDWR)
    assert device >= 1 << 20
    vm = kernel.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP)

    def op(number: int, data: bytes, sev: int) -> int:
        address = kernel.memory.place(data)
        place = kernel.memory.place(kvm_sev.SevCmd(number, address, 0, sev & 0xFFFFFFFF).encode())
        try:
            kernel.ioctl(vm, kvm.KVM_MEMORY_ENCRYPT_OP, place)
        except OSError as error:
            return error.errno or -1
        finally:
            kernel.memory.release(place)
            kernel.memory.release(address)
        return 0

    assert op(kvm_sev.SEV_INIT2, kvm_sev.SevInit().encode(), 0) == 0
    start = kvm_sev.SnpLaunchStart(0x30000).encode()
    with open(os.devnull, "rb") as other:
        path_only = os.open(served.sev, os.O_PATH)
        for wrong in (other.fileno(), path_only, 999_999, -1, vm, device, 1 << 30):
            assert op(kvm_sev.SNP_LAUNCH_START, start, wrong) == errno.ENOTTY
        os.close(path_only)
    sev = kernel.open(served.sev, os.O_RDONLY)
    assert op(kvm_sev.SNP_LAUNCH_START, start, sev) == 0
    # The number is what counts: closed, it is gone for the finish; opened again there, it is back.
    finish = kvm_sev.SnpLaunchFinish().encode()
    kernel.close(sev)
    assert op(kvm_sev.SNP_LAUNCH_FINISH, finish, sev) == errno.EBADF
    again = kernel.open(served.sev, os.O_RDWR)
    os.dup2(again, sev)
    assert op(kvm_sev.SNP_LAUNCH_FINISH, finish, -1) == 0
    if again != sev:
        os.close(sev)


def test_a_file_that_is_no_guest_memory_cannot_be_bound(served: Served) -> None:
    with ControlClient.connect(served.folder / "control.sock") as control:
        import ctypes

        device = control.open("/dev/kvm", 2)
        vm = control.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP)
        for fd, expected in ((control.fileno(), errno.EINVAL), (device, errno.EINVAL), (1 << 29, errno.EBADF)):
            region = kvm.UserMemoryRegion2(0, kvm.MEM_GUEST_MEMFD, 0, 4096, 0, 0, fd).encode()
            buffer = ctypes.create_string_buffer(region)
            with pytest.raises(OSError, match=r".") as refused:
                control.ioctl(vm, kvm.KVM_SET_USER_MEMORY_REGION2, ctypes.addressof(buffer))
            assert refused.value.errno == expected


def test_one_connections_descriptors_are_nobody_elses(served: Served) -> None:
    with (
        ControlClient.connect(served.folder / "control.sock") as one,
        ControlClient.connect(served.folder / "control.sock") as other,
    ):
        device = one.open("/dev/kvm", 2)
        vm = one.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP)
        for request in (kvm.KVM_CREATE_VCPU, kvm.KVM_CHECK_EXTENSION):
            with pytest.raises(OSError, match="Bad file descriptor"):
                other.ioctl(vm, request, 0)
        with pytest.raises(UsageError, match="not a guest"):
            other.launch_digest(vm)
        with pytest.raises(OSError, match="Bad file descriptor"):
            other.save_area(vm)
        with pytest.raises(OSError, match="No such file"):
            other.open("/dev/sev", 0)


def test_a_save_area_is_there_once_it_was_measured(served: Served, kernel: OverlayKernel) -> None:
    device = kernel.open(NO_KVM, os.O_RDWR)
    vm = kernel.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP)
    vcpu = kernel.ioctl(vm, kvm.KVM_CREATE_VCPU, 0)
    with pytest.raises(WrongState, match="not measured yet"):
        kernel.control.save_area(vcpu)
    with pytest.raises(UsageError, match="no vCPU"):
        kernel.control.save_area(vm)


OWNER = """
    import sys, time
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from tests.support.control import NO_KVM, launch
    from sevd.simulator.overlay import OverlayKernel

    folder = Path({folder!r})
    kept = launch(OverlayKernel(folder, NO_KVM), str(folder / "sev"))
    print("ready", flush=True)
    {then}
"""


@pytest.mark.parametrize("inherited", [False, True], ids=["alone", "its child has the socket"])
def test_a_process_that_is_killed_frees_its_guest_at_once(served: Served, inherited: bool) -> None:
    fork = "import os; child = os.fork(); child or time.sleep(60); print(child, flush=True) if child else None"
    then = f"{fork}; time.sleep(60)" if inherited else "time.sleep(60)"
    program = textwrap.dedent(OWNER).format(root=str(ROOT), folder=str(served.folder), then=then)
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        child = int(owner.stdout.readline()) if inherited else 0
        assert served.in_use() == (1, 1)
        killed = time.monotonic()
        owner.kill()
        until(lambda: served.in_use() == (0, 0))
        assert time.monotonic() - killed < 2
        until(lambda: len(served.server) == 0)
    finally:
        owner.kill()
        owner.wait()
        if child:
            os.kill(child, signal.SIGKILL)
        if owner.stdout is not None:
            owner.stdout.close()


def test_the_end_of_the_simulator_is_a_device_that_is_gone(served: Served, kernel: OverlayKernel) -> None:
    guest, _ = launch(kernel, served.sev)
    served.server.close()
    with pytest.raises(OSError, match="gone") as gone:
        kernel.asid(guest.vm_fd)
    assert gone.value.errno == errno.ENODEV
    with pytest.raises(DeviceMissing, match=r"control\.sock"):
        served.kernel()


def test_a_power_loss_ends_who_has_something(served: Served, kernel: OverlayKernel) -> None:
    guest, _ = launch(kernel, served.sev)
    with ControlClient.connect(served.folder / "control.sock") as admin:
        admin.call("power-loss")
        assert served.in_use() == (0, 0)
        assert admin.call("faults") == {"faults": [], "dead": False}
        with pytest.raises(OSError, match="gone"):
            kernel.asid(guest.vm_fd)
    after = served.kernel()
    launch(after, served.sev)
    after.exit()


def test_faults_over_the_socket(served: Served, kernel: OverlayKernel) -> None:
    with ControlClient.connect(served.folder / "control.sock") as control:
        control.fault("SNP_GCTX_CREATE:status=RESOURCE_LIMIT:times=1")
        assert (
            control.call("faults")["faults"] == [{"spec": "SNP_GCTX_CREATE:status=0x17:times=1", "happened": 0}]
            or (control.call("faults")["faults"])
        )
        with pytest.raises(UsageError, match="no command"):
            control.fault("NOTHING:hang")
        control.fault("SNP_LAUNCH_START:status=POLICY_FAILURE:times=1")
        control.fault("clear")
        control.fault("SNP_LAUNCH_START:status=POLICY_FAILURE:times=1")
        with pytest.raises(FirmwareError, match="POLICY_FAILURE"):
            launch(kernel, served.sev)
        launch(kernel, served.sev)[0].close()


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
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


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
    until(lambda: len(served.server) == 1)
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
    until(lambda: len(served.server) == 0)
