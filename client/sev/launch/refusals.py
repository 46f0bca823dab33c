"""From an errno and a firmware status to an error that says what to do."""

from __future__ import annotations

import errno
import os

from sev.abi.sev_device import NO_FW_CALL
from sev.errors import DeviceMissing, FirmwareError, KernelError, NotPermitted, SevError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_ABSENT = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

_REMEDIES = {
    errno.ETIMEDOUT: "The secure processor did not answer in time; the kernel talks to it no more. Reload the ccp "
    "module, or restart the machine.",
    errno.EBUSY: "The secure processor is busy, or the kernel gave it up after an earlier timeout: look at the "
    "kernel's log for ccp, and reload the ccp module if it says so.",
    errno.EIO: "The VM belongs to another process, or is dead: VM ioctls work in the process that created it only.",
    errno.ENOMEM: "The host is short of memory.",
    errno.EMFILE: "Too many open descriptors: raise the limit (LimitNOFILE= of the unit, ulimit -n).",
}


def number_of(error: OSError) -> int:
    """The errno of an OSError; EIO where it has none."""
    return error.errno or errno.EIO


def opening(error: OSError, path: str) -> SevError:
    """A device that could not be opened."""
    number = number_of(error)
    if number in _ABSENT:
        return DeviceMissing(f"{path}: {os.strerror(number)}", errno=number)
    if number in _FORBIDDEN:
        return NotPermitted(
            f"{path}: {os.strerror(number)}",
            errno=number,
            remedy=f"Ask whoever administers this machine for access to {path}, or ask the daemon instead.",
        )
    return KernelError(number, command=f"open {path}", remedy=_REMEDIES.get(number, ""))


def refused(error: OSError, command: str, status: int = 0, *, remedies: Mapping[int, str] | None = None) -> SevError:
    """An ioctl that failed.

    Args:
        error: What the kernel raised.
        command: The command's name.
        status: The envelope's `error`, cleared before the call: 0 where the firmware was not reached.
        remedies: What to do about an errno, where the command knows better than the table here.
    """
    number = number_of(error)
    if status and status != NO_FW_CALL:
        return FirmwareError(status, command=command, errno=number)
    remedy = (remedies or {}).get(number) or _REMEDIES.get(number, "")
    return KernelError(number, command=command, remedy=remedy)
