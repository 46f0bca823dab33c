"""mount(2) and umount2(2) for FUSE, and what is mounted now (/proc/self/mountinfo).

A mount outlives the process that served it: its files then answer ENOTCONN until it is unmounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from pathlib import Path

from sev.errors import DeviceMissing, KernelError, NotPermitted, SevError

DEVICE = "/dev/fuse"
FILE_SYSTEM = "fuse.sevd-simulator"
"""As mount tables show it."""

_NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8
_MNT_DETACH = 2
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class CannotServeFiles(DeviceMissing):
    """This machine has no FUSE."""

    default_remedy = (
        "Load the kernel module fuse (modprobe fuse); in a container, hand in /dev/fuse (--device /dev/fuse). "
        "Without it there is the simulator in the daemon's own process: sevd --simulate."
    )


def mount(target: Path) -> int:
    """Mounts an empty FUSE file system on a directory; answers the descriptor to serve it through.

    Raises:
        CannotServeFiles: There is no FUSE here.
        NotPermitted: This process may not mount, or may not open /dev/fuse.
        KernelError: The kernel refuses for another reason.
    """
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(error) from None
    options = (
        f"fd={descriptor},rootmode=40755,user_id={os.geteuid()},group_id={os.getegid()},default_permissions,allow_other"
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(
        b"sevd-simulator",
        os.fsencode(target),
        FILE_SYSTEM.encode(),
        ctypes.c_ulong(_NOSUID_NODEV_NOEXEC),
        options.encode(),
    ):
        number = ctypes.get_errno()
        os.close(descriptor)
        raise _cannot_mount(number, target)
    return descriptor


def unmount(target: Path) -> None:
    """Takes the topmost mount away at once; who has files of it open keeps them. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(target), _MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def mounts(target: Path) -> list[str]:
    """The file-system types mounted exactly there, oldest first."""
    wanted = os.fsencode(target)
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            left, _, right = line.partition(b" - ")
            fields = left.split()
            if _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), fields[4]) == wanted:
                found.append(right.split()[0].decode("ascii", "replace"))
    return found


def remove_stale(target: Path) -> int:
    """Unmounts what servers that were killed have left there; answers how many mounts that were.

    Only to be called by whoever holds the lock that a living server would hold.

    Raises:
        NotPermitted: Something else is mounted there, or this process may not unmount.
    """
    count = 0
    while kinds := mounts(target):
        if kinds[-1] != FILE_SYSTEM:
            raise NotPermitted(
                f"{target}: a file system of type {kinds[-1]} is mounted there, which is not ours",
                remedy="Unmount it, or name another directory with --device-dir.",
            )
        try:
            unmount(target)
        except OSError as error:
            raise NotPermitted(
                f"{target}: the mount of an earlier simulator cannot be removed: {error.strerror}",
                remedy=f"As root: umount -l {target}",
            ) from None
        count += 1
    return count


def unmount_quietly(target: Path) -> None:
    """Unmounts; nothing if it was unmounted by somebody else."""
    with contextlib.suppress(OSError):
        unmount(target)


def _cannot_open(error: OSError) -> SevError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(f"{DEVICE} may not be opened by uid {os.geteuid()}", remedy=_ROOT)
    return CannotServeFiles(f"{DEVICE} cannot be opened: {error.strerror}", errno=error.errno or 0)


def _cannot_mount(number: int, target: Path) -> SevError:
    if number in (errno.EPERM, errno.EACCES):
        return NotPermitted(f"uid {os.geteuid()} may not mount on {target}", remedy=_ROOT)
    if number == errno.ENODEV:
        return CannotServeFiles("the kernel knows no file system fuse", errno=number)
    return KernelError(number, command="mount", message=f"{target}: mount: {os.strerror(number)}")


_ROOT = (
    "Run sevd-simulator as root, or in a user namespace of its own (unshare --user --map-root-user --mount). "
    "As any user there is the simulator in the daemon's own process: sevd --simulate."
)
