"""What a worker gives up: at its start what no worker needs, and once its guest exists nearly everything else.

After `lock_down` the process cannot open or remove a file, open a socket, start a program or a process, trace or signal
another one, mount, or change who it is; it holds no capability and can get none; it leaves no core. What is left is
what a VM takes: ioctl, memory, threads, and the sockets that are open. (One whose guest's memory is locked, and that
could not do away with RLIMIT_MEMLOCK, keeps CAP_IPC_LOCK if it had that.)

The end of the daemon is not its end: it is in a session of its own, and no signal comes with the daemon's death.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import resource
import struct
import sys

from sev.errors import KernelError, NotOffered
from sevd.worker import bpf

_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECCOMP_MODE_FILTER = 2
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_SYS_SECCOMP = 317
_SYS_CAPSET = 126
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = 64
_CAP_IPC_LOCK = 14

_CLONE_THREAD = 0x10000

_ALLOWED = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "readv": 19, "writev": 20, "pipe": 22,
    "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "nanosleep": 35, "getpid": 39,
    "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "getsockname": 51, "getpeername": 52,
    "setsockopt": 54, "getsockopt": 55, "exit": 60, "gettimeofday": 96, "getuid": 102, "getgid": 104, "geteuid": 107,
    "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204,
    "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
    "epoll_wait": 232, "epoll_ctl": 233, "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "epoll_pwait": 281,
    "fallocate": 285, "accept4": 288, "eventfd2": 290, "epoll_create1": 291, "pipe2": 293, "getrandom": 318,
    "membarrier": 324, "rseq": 334,
}  # fmt: skip
"""What Python and a VM need once everything is imported and opened. Numbers of x86-64."""

_CONNECTED_KINDS = (1, 5)
_SOCK_CLOEXEC = 0x80000
_FIONBIO, _FIOCLEX = 0x5421, 0x5451
_KVM, _SEV = 0xAE, ord("S")


def conditions(pid: int) -> dict[int, bpf.Condition]:
    """Calls of the process with this number that are admitted with some arguments only."""
    return {
        # ioctl: KVM's and the SEV device's, and what Python does to descriptors; none that makes a socket send signals
        16: bpf.Condition(1, equal=(_FIONBIO, _FIOCLEX), types=(_KVM, _SEV)),
        # socketpair: not of datagrams, which can be sent to any socket of the machine
        53: bpf.Condition(1, equal=(*_CONNECTED_KINDS, *(kind | _SOCK_CLOEXEC for kind in _CONNECTED_KINDS))),
        56: bpf.Condition(0, bits=_CLONE_THREAD),  # clone: threads, no processes
        # fcntl: descriptor and status flags, F_DUPFD_CLOEXEC (mmap), F_GET_SEALS
        72: bpf.Condition(1, equal=(1, 2, 3, 4, 1030, 1034)),
        157: bpf.Condition(0, equal=(_PR_SET_NAME,)),  # prctl: the name of a thread
        234: bpf.Condition(0, equal=(pid,)),  # tgkill: its own threads, which are made to leave the guest
    }


_CLONE3 = 435
"""Its arguments are in memory, where a filter cannot look: libraries fall back to clone."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def settle(keep: int) -> None:
    """At the start: no descriptor but the standard ones and `keep`, no core, no directory that somebody may unmount."""
    os.closerange(3, keep)
    _close_from(keep + 1)
    os.set_inheritable(keep, False)
    os.umask(0o077)
    os.chdir("/")
    with contextlib.suppress(OSError):
        os.setsid()
    with contextlib.suppress(PermissionError):  # an outer filter may refuse it; the unit has set it then
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lock_memory()


def _lock_memory() -> None:
    """SEV locks a guest's memory, and counts it again once the capability to lock any amount is given up."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for wanted in (resource.RLIM_INFINITY, hard):
        with contextlib.suppress(OSError, ValueError):  # more than it has only root may have
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (wanted, wanted))
            return


def lock_down(*, dumpable: bool, locks_memory: bool = False) -> None:
    """Gives up everything that a guest does not need. Whatever is to be imported or opened was.

    Args:
        locks_memory: Commands of the guest lock memory (SEV, SEV-ES), also while it is launched.
        dumpable: Others of the same user may look into the process. A simulator that is not root needs that; a guest
            that is protected, or stands for itself, does not.

    Raises:
        KernelError: The kernel refused; the worker must not go on.
        NotOffered: This processor is not x86-64.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64" or struct.calcsize("P") != 8:
        raise NotOffered("workers run on x86-64 Linux")
    _load_the_rest()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    limited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY
    _drop_capabilities(keep=1 << _CAP_IPC_LOCK if locks_memory and limited else 0)
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(dumpable))
    _install(bpf.allow_list(_ALLOWED.values(), conditions(os.getpid()), absent=[_CLONE3]))


def _load_the_rest() -> None:
    """Modules and data that are first needed when something goes wrong."""
    import linecache
    import traceback

    from sev import status

    status.lookup(0)
    hashlib.sha384(b"").digest()  # the first one reads OpenSSL's configuration
    os.strerror(errno.EPERM)
    del linecache, traceback


def _drop_capabilities(*, keep: int = 0) -> None:
    """Empty sets: bounding, ambient, inheritable, permitted, effective; of the last two what is to be kept, if held."""
    for capability in range(_CAPABILITIES):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # needs CAP_SETPCAP; without any, nothing can be gained
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    keep &= _held()[1]
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), 8)
    low, high = keep & 0xFFFF_FFFF, keep >> 32
    sets = struct.pack("<6I", low, low, 0, high, high, 0)
    if _libc.syscall(_SYS_CAPSET, header, sets) and any(held & ~keep for held in _held()):
        raise KernelError(ctypes.get_errno(), command="capset")


def _held() -> tuple[int, int, int]:
    """Inheritable, permitted and effective capabilities of this thread, as the kernel shows them."""
    with open("/proc/thread-self/status", encoding="ascii") as file:
        found = dict(line.rstrip().split(":\t", 1) for line in file if line.startswith("Cap"))
    inheritable, permitted, effective = (int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff"))
    return inheritable, permitted, effective


def _install(program: bytes) -> None:
    """Puts all threads under the filter."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    if not _libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, header):
        return
    if ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        raise KernelError(ctypes.get_errno(), command="seccomp")
    # An outer filter may know only the older call, which does for a process with one thread.
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header), 0, 0):
        raise KernelError(ctypes.get_errno(), command="prctl PR_SET_SECCOMP")


def _prctl(name: str, option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise KernelError(ctypes.get_errno(), command=f"prctl {name}")


def _close_from(first: int) -> None:
    """Closes every descriptor from a number on that is open."""
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) >= first:
            with contextlib.suppress(OSError):
                os.close(int(entry))
