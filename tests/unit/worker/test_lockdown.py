"""What a worker cannot do any more: seen from outside, and tried from inside."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from sevd.worker import bpf, lockdown
from tests.support.needs import need_root
from tests.support.workers import card, descriptors, machine, status, workers

INSIDE = """
import ctypes, errno, json, mmap, os, signal, socket, sys, threading
from sevd.worker import lockdown
{before}
lockdown.settle(int(sys.argv[1]))
lockdown.lock_down(dumpable={dumpable})
libc = ctypes.CDLL(None, use_errno=True)

def tried(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def raw(number, *arguments):
    return "done" if libc.syscall(number, *arguments) >= 0 else errno.errorcode[ctypes.get_errno()]

{body}
os.write(int(sys.argv[1]), json.dumps(out).encode())
os._exit(0)
"""


def inside(body: str, *, before: str = "", dumpable: bool = False) -> dict[str, object]:
    """Runs code in a process that was locked down; answers its `out`."""
    reading, writing = os.pipe()
    code = INSIDE.format(before=before, body=body, dumpable=dumpable)
    process = subprocess.Popen([sys.executable, "-I", "-c", code, str(writing)], pass_fds=[writing])
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    assert process.wait(20) == 0
    out: dict[str, object] = json.loads(data)
    return out


def test_nothing_new_can_be_opened_started_or_watched() -> None:
    out = inside(
        """
out = {
    "open": tried(os.open, "/etc/passwd", os.O_RDONLY),
    "openat2": raw(437, -100, b"/etc/passwd", bytes(24), 24),
    "socket": tried(socket.socket),
    "connect": raw(42, 0, 0, 0),
    "bind": raw(49, 0, 0, 0),
    "fork": raw(57),
    "vfork": raw(58),
    "clone": raw(56, 17, 0, 0, 0, 0),
    "clone3": raw(435, 0, 0),
    "execve": raw(59, b"/bin/true", 0, 0),
    "execveat": raw(322, -100, b"/bin/true", 0, 0, 0),
    "ptrace": raw(101, 16, os.getpid(), 0, 0),
    "process_vm_readv": raw(310, os.getpid(), 0, 0, 0, 0, 0),
    "kill": tried(os.kill, os.getppid(), 0),
    "pidfd_open": raw(434, os.getpid(), 0),
    "mount": raw(165, b"none", b"/mnt", b"tmpfs", 0, 0),
    "umount": raw(166, b"/mnt", 0),
    "unshare": raw(272, 0x10000000),
    "setns": raw(308, 0, 0),
    "chroot": raw(161, b"/"),
    "bpf": raw(321, 0, 0, 0),
    "perf": raw(298, 0, 0, 0, 0, 0),
    "keyctl": raw(250, 0, 0, 0),
    "userfaultfd": raw(323, 0),
    "io_uring": raw(425, 1, 0),
    "init_module": raw(175, 0, 0, b""),
    "setuid": raw(105, 0),
    "capset": raw(126, 0, 0),
    "seccomp": raw(317, 1, 0, 0),
    "prctl dumpable": raw(157, 4, 1, 0, 0, 0),
    "rlimit": raw(302, 0, 4, 0, 0),
    "rename": tried(os.rename, "/a", "/b"),
    "unlink": raw(87, b"/nonexistent"),
    "unlinkat": raw(263, -100, b"/nonexistent", 0),
    "rmdir": raw(84, b"/nonexistent"),
    "another's thread": raw(234, os.getppid(), os.getppid(), 0),
    "signals of a socket": raw(16, int(sys.argv[1]), 0x8901, ctypes.byref(ctypes.c_int(os.getppid()))),
    "a terminal's": raw(16, 0, 0x5412, b"x"),
    "datagrams": raw(53, 1, 2, 0, (ctypes.c_int * 2)()),
    "x32 getpid": raw(0x40000000 + 39),
}
"""
    )
    expected = dict.fromkeys(out, "EPERM") | {"clone3": "ENOSYS"}
    assert out == expected


def test_what_a_guest_needs_still_works() -> None:
    out = inside(
        """
done = []
threads = [threading.Thread(target=done.append, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join(5) for thread in threads]
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
reading, writing = os.pipe()
socket.send_fds(ours, [b"x"], [reading])
data, fds, _, _ = socket.recv_fds(theirs, 10, 1)
pages = mmap.mmap(-1, 1 << 20)
pages[:5] = b"hello"
signal.signal(signal.SIGRTMIN, lambda number, frame: done.append("signal"))
signal.pthread_kill(threading.get_ident(), signal.SIGRTMIN)
try:
    raise ValueError("a failure that is told with its trace")
except ValueError:
    import traceback
    trace = traceback.format_exc()
from sev.errors import FirmwareError
out = {
    "threads": sorted(str(one) for one in done),
    "descriptor": len(fds),
    "pages": bytes(pages[:5]).decode(),
    "trace": "ValueError" in trace,
    "status": FirmwareError(0x16).message[:20],
    "random": len(os.urandom(8)),
}
"""
    )
    assert out == {
        "threads": ["0", "1", "2", "3", "signal"],
        "descriptor": 1,
        "pages": "hello",
        "trace": True,
        "status": "the firmware: INVALI",
        "random": 8,
    }


def test_threads_of_before_are_under_the_filter_too() -> None:
    before = """
go, found = threading.Event(), []
def late():
    go.wait(10)
    try:
        os.open("/etc/passwd", os.O_RDONLY)
    except OSError as error:
        found.append(errno.errorcode[error.errno])
thread = threading.Thread(target=late)
thread.start()
"""
    assert inside("go.set(); thread.join(5); out = {'late': found}", before=before) == {"late": ["EPERM"]}


def test_descriptors_and_privileges_that_were_inherited_are_gone() -> None:
    before = "kept = [os.dup(1) for _ in range(20)]\n[os.set_inheritable(fd, True) for fd in kept]"
    # What is open is told by trying, since nothing can be listed any more.
    body = """
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
out = {"open": [fd for fd in range(3, 200) if is_open(fd) and fd != int(sys.argv[1])], "cwd": "", "umask": 0}
"""
    assert inside(body, before=before)["open"] == []


def test_a_worker_with_a_guest_from_outside(tmp_path: Path) -> None:
    with workers(tmp_path) as made:
        guest = machine(made)
        pid = guest.pid
        seen = status(pid)
        assert seen["Seccomp"] == "2"
        assert seen["NoNewPrivs"] == "1"
        assert {seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert seen["Umask"] == "0077"
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) == pid != os.getsid(0)
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if "core" in line).split()[4:6] == ["0", "0"]
        assert Path(f"/proc/{pid}/environ").read_bytes() == b""
        need_root()
        kinds = sorted(target.split(":")[0].split("/")[-1] for target in descriptors(pid).values())
        folder = next(tmp_path.iterdir()).name
        # Three standard ones, the daemon's connection and the listener, the folder, KVM, the VM, the vCPU and memory.
        assert kinds == sorted(
            ["null"] * 3 + ["socket"] * 2 + [folder, "kvm", "anon_inode", "anon_inode"]
            + ["memfd"] * (len(descriptors(pid)) - 9)
        )  # fmt: skip
        assert not set(os.listdir(f"/proc/{pid}/task")) - {str(pid)}
        guest.close()


def test_no_descriptor_of_the_vm_is_in_this_process(tmp_path: Path) -> None:
    def of_guests() -> list[str]:
        return sorted(target for target in descriptors().values() if "kvm" in target or "guest_memfd" in target)

    before = of_guests()
    with workers(tmp_path) as made:
        guest = machine(made, card(vcpu_count=2, ap_reset_address=0x1000))
        assert of_guests() == before
        guest.close()


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = bpf.AUDIT_ARCH_X86_64) -> int:
    """What a filter says of a call: the kernel's classic BPF, as far as these programs use it."""
    data = struct.pack("<iIQ6Q", number, architecture, 0, *(arguments + (0,) * 6)[:6])
    at, accumulator = 0, 0
    while True:
        code, yes, no, k = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x15:
            at += yes if accumulator == k else no
        elif code == 0x54:
            accumulator &= k
        elif code == 0x45:
            at += yes if accumulator & k else no
        else:
            assert code == 0x06
            return int(k)


@pytest.mark.parametrize(
    ("number", "arguments", "verdict"),
    [
        (0, (), bpf.RET_ALLOW),
        (16, (3, 0xAE80), bpf.RET_ALLOW),
        (16, (3, 0xC0105300), bpf.RET_ALLOW),
        (16, (3, 0x5421), bpf.RET_ALLOW),
        (16, (3, 0x5452), bpf.RET_ERRNO | 1),
        (16, (3, 0x8901), bpf.RET_ERRNO | 1),
        (257, (), bpf.RET_ERRNO | 1),
        (59, (), bpf.RET_ERRNO | 1),
        (435, (), bpf.RET_ERRNO | 38),
        (56, (0x3D0F00,), bpf.RET_ALLOW),
        (56, (17,), bpf.RET_ERRNO | 1),
        (72, (3, 1), bpf.RET_ALLOW),
        (72, (3, 8), bpf.RET_ERRNO | 1),
        (53, (1, 0x80005), bpf.RET_ALLOW),
        (53, (1, 2), bpf.RET_ERRNO | 1),
        (234, (77, 1), bpf.RET_ALLOW),
        (234, (78, 1), bpf.RET_ERRNO | 1),
        (157, (15,), bpf.RET_ALLOW),
        (157, (4,), bpf.RET_ERRNO | 1),
        (0x40000000, (), bpf.RET_ERRNO | 1),
        (4096, (), bpf.RET_ERRNO | 1),
    ],
)
def test_the_filter_says(number: int, arguments: tuple[int, ...], verdict: int) -> None:
    program = bpf.allow_list(lockdown._ALLOWED.values(), lockdown.conditions(77), absent=[435])
    assert run(program, number, arguments) == verdict
    assert run(program, number, arguments, architecture=0x40000003) == bpf.RET_KILL_PROCESS
