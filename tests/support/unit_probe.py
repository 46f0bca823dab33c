"""Run as a service: says, as JSON, what a process with the unit's directives can do, by trying it."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import subprocess
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_SYSCALLS: dict[str, tuple[int, ...]] = {
    "mount": (165, 0, 0, 0, 0, 0),
    "unshare": (272, 0x10000000),
    "ptrace": (101, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "io_uring_setup": (425, 1, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0),
    "keyctl": (250, 0, 0, 0, 0, 0),
    "personality": (135, 0x0400000),
    "setuid": (105, 1),
    "clock_settime": (227, 0, 0),
    "reboot": (169, 0, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "iopl": (172, 3),
    "init_module": (175, 0, 0, 0),
    "process_vm_readv": (310, 0, 0, 0, 0, 0, 0),
    "sched_setscheduler": (144, 0, 1, 0),
    "sethostname": (170, 0, 0),
    "chown": (92, 0, 0, 0),
    "swapon": (167, 0, 0),
    "syslog": (103, 3, 0, 0),
    "settimeofday": (164, 0, 0),
}
"""Numbers of x86-64 with harmless arguments: what the filter let through would fail otherwise, or do nothing."""

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_PR_GET_SECUREBITS = 27


def _errno(action: object) -> str:
    assert callable(action)
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "done"


def _write(path: str) -> str:
    return _errno(lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)))


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


def _open(path: str) -> str:
    return _errno(lambda: os.close(os.open(path, os.O_RDWR)))


def _socket(family: int) -> str:
    return _errno(lambda: socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC).close())


def _syscall(*arguments: int) -> str:
    if _libc.syscall(*(ctypes.c_long(one) for one in arguments)) == -1:
        return errno.errorcode.get(ctypes.get_errno(), "?")
    return "done"


def _program(folder: str) -> str:
    path = f"{folder}/program"
    with open(path, "w", encoding="ascii") as file:
        file.write("#!/bin/true\n")
    os.chmod(path, 0o700)
    try:
        return _errno(lambda: subprocess.run([path], check=False))
    finally:
        os.unlink(path)


def _program_of_x32() -> int:
    """The signal that ends a process that makes a system call of another architecture (getpid of x32); 0 for none."""
    call = "import ctypes; ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39))"
    return max(0, -subprocess.run([sys.executable, "-c", call], check=False).returncode)


def main() -> None:
    """Tries everything, and prints it."""
    with open("/proc/self/status", encoding="ascii") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
    writes = (
        "/usr/x",
        "/etc/x",
        "/var/x",
        "/etc/sevd/x",
        "/run/x",
        "/run/systemd/x",
        "/home/x",
        "/root/x",
        "/sys/x",
        "/proc/sys/kernel/hostname",
    )
    places = ("/var/lib/sevd/x", "/tmp/x", *sys.argv[1:])
    sockets = ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK")
    found = {
        **{f"status {name}": status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")},
        **{f"write {path}": _write(path) for path in (*writes, *places)},
        **{f"open /dev/{name}": _open(f"/dev/{name}") for name in ("null", "kvm", "fuse", "kmsg", "mem", "sev")},
        **{f"socket {name}": _socket(getattr(socket, name)) for name in sockets},
        **{f"call {name}": _syscall(*arguments) for name, arguments in _SYSCALLS.items()},
        "write and execute": _errno(lambda: mmap.mmap(-1, 4096, prot=7).close()),
        "set-user-id": _errno(lambda: os.chmod(places[0], 0o4700)),
        "program in state": _program("/var/lib/sevd"),
        "program in tmp": _program("/tmp"),
        "program of the system": _errno(lambda: subprocess.run(["/bin/true"], check=True)),
        "memfd": _errno(lambda: os.close(os.memfd_create("x", os.MFD_ALLOW_SEALING))),
        "pidfd": _errno(lambda: os.close(os.pidfd_open(os.getpid()))),
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "interfaces": [name for _, name in socket.if_nameindex()] if _socket(socket.AF_NETLINK) == "done" else "hidden",
        "boot": os.path.exists("/proc/sys/kernel/random/boot_id"),
        "processor": os.path.exists("/proc/cpuinfo"),
        "manager": os.path.exists("/proc/1/cgroup"),
        "foreign system call": _program_of_x32(),
        "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in _NAMESPACES},
        "secure bits": _libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0),
        "umask": os.umask(0o077),
        "out of memory": int(_read("/proc/self/oom_score_adj")),
        "homes": sorted(os.listdir("/home")) if os.access("/home", os.R_OK) else [],
        "left outside": os.path.exists("/tmp/left-outside"),
        "devices": sorted(os.listdir("/dev")),
        "credential": _read(f"{os.environ.get('CREDENTIALS_DIRECTORY', '/nonexistent')}/sevd-tls.key"),
        "control groups": _write("/sys/fs/cgroup/cgroup.procs"),
    }
    for place in places:
        os.unlink(place)
    print(f"PROBE {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
