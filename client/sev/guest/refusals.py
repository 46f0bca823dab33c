"""What the answers of /dev/sev-guest mean: errno, exitinfo2 and the status in the response, as errors.

errno       exitinfo2                   meaning                                              error
ENOTTY      0                           no key: wiped, or none                               ChannelDisabled
EIO         0                           sequence numbers used up                             ChannelDisabled
EIO         host's half 1               certificate buffer too small, length written back    TooSmall
EIO         host's half 2               throttled                                            tried again
EIO         all ones                    the host was not reached                             HostRefused
EIO         host's half, other          the hypervisor refused                               HostRefused
EIO         firmware's half             the firmware refused the command                     FirmwareError
EAGAIN, EBUSY, EINTR                    nothing was sent                                     tried again
ETIMEDOUT                               throttled for a minute, inside the kernel            Throttled
EBADMSG                                 the response does not authenticate                   HostRefused
others                                                                                       KernelError
"""

from __future__ import annotations

import errno
import os

from sev import status
from sev.abi import guest_device as abi
from sev.errors import DeviceMissing, FirmwareError, KernelError, NotOffered, NotPermitted, SevError
from sev.guest.errors import RELOAD, WIPES, ChannelDisabled, HostRefused, Throttled
from sev.guest.patience import Busy

REPEATABLE = (errno.EAGAIN, errno.EBUSY, errno.EINTR)
"""Errnos of requests that were not sent."""

NO_GUEST = (
    "Run this inside an SEV-SNP guest, with the driver loaded (modprobe sev-guest); sev attest check says what is "
    "missing. In containers the device has to be passed in. Guests on Azure get their reports from their vTPM instead."
)

_STATUS_REMEDIES = {
    status.INVALID_PARAM: "Ask for a VMPL that is not below the kernel's own (cat /sys/devices/system/cpu/sev/vmpl), "
    "for an SVN not above the ID block's and for a TCB not above the committed one.",
    status.INVALID_KEY: "The key asked for is masked or not loaded on this host: leave the choice of key to the "
    "firmware, or ask whoever runs the host.",
}


class TooSmall(Exception):
    """The certificate buffer is too small; the kernel wrote how many bytes are needed. Never leaves this package."""


def cannot_open(path: str, error: OSError) -> SevError:
    """The error for a device that does not open."""
    why = os.strerror(error.errno or errno.EIO)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV):
        return DeviceMissing(f"{path}: {why}", remedy=NO_GUEST, errno=error.errno)
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(
            f"{path} cannot be opened: {why}",
            remedy="Run as root, or let a udev rule give the device to a group.",
            errno=error.errno,
        )
    return KernelError(error.errno or errno.EIO, message=f"{path} cannot be opened: {why}", remedy=NO_GUEST)


def another_file(path: str) -> SevError:
    """The error for a file that does not answer as the device does."""
    return DeviceMissing(f"{path}: this is no sev-guest device", remedy=NO_GUEST, errno=errno.ENOTTY)


def of_ioctl(name: str, path: str, number: int, info: abi.GuestRequestIoctl) -> SevError:
    """The error for an ioctl that failed, or succeeded and left an error behind.

    Args:
        name: The ioctl.
        path: The device.
        number: Errno; 0: the ioctl succeeded.
        info: The envelope as it came back.

    Raises:
        Busy: Worth another attempt.
        TooSmall: The certificate buffer is.
    """
    exitinfo2 = info.exitinfo2
    unsent = exitinfo2 in (0, abi.EXITINFO2_UNSET)
    if number in REPEATABLE:
        raise Busy(f"{path} is busy: {os.strerror(number)}")
    if exitinfo2 == abi.EXITINFO2_NO_FW_CALL:
        return HostRefused(f"{name}: the request did not reach the host", errno=number or None, command=name)
    extended = name == abi.command_name(abi.SNP_GET_EXT_REPORT)
    if not unsent and extended and info.vmm_error == abi.VMM_ERROR_INVALID_LEN:
        raise TooSmall
    if not unsent and info.vmm_error == abi.VMM_ERROR_BUSY and number != errno.ETIMEDOUT:
        raise Busy(f"{name}: the host throttles guest requests")
    if number == errno.ETIMEDOUT:
        return Throttled(
            f"{name}: the host throttled this guest for longer than the kernel waits (one minute)",
            errno=number,
            command=name,
            remedy=f"{WIPES} {RELOAD}",
        )
    if number == errno.ENOTTY:
        return ChannelDisabled(
            f"{name}: {path} takes no guest requests: the kernel's key for them (VMPCK) was wiped after an earlier "
            "failure, or is not there",
            errno=number,
            command=name,
        )
    if number == errno.EIO and unsent:
        return ChannelDisabled(
            f"{name}: the sequence numbers of the kernel's key (VMPCK) are used up", errno=number, command=name
        )
    if number == errno.EBADMSG:
        return HostRefused(
            f"{name}: the response does not authenticate: it was changed on its way, or is none of this guest's",
            errno=number,
            command=name,
        )
    if not unsent and info.vmm_error:
        return HostRefused(
            f"{name}: the hypervisor refused with its error {info.vmm_error:#x}",
            errno=number or None,
            command=name,
            metadata={"vmm_error": str(info.vmm_error)},
        )
    if not unsent and info.fw_error:
        entry = status.lookup(info.fw_error)
        return FirmwareError(
            info.fw_error, command=name, errno=number or None, remedy=f"{entry.remedy} {WIPES} {RELOAD}".strip()
        )
    if number == errno.EINVAL:
        return KernelError(
            number,
            command=name,
            message=f"{name}: the kernel refuses the request as it is (EINVAL); nothing was sent",
            remedy="Leave the message version at 1; certificate buffers larger than 16 KiB are not taken.",
        )
    return KernelError(number, command=name, remedy=RELOAD)


def check_status(code: int, name: str) -> None:
    """Raises FirmwareError for a status in a response other than SUCCESS. The channel is not harmed by it."""
    if code:
        raise FirmwareError(code, command=name, remedy=_STATUS_REMEDIES.get(code, ""))


def table_too_large(needed: int) -> SevError:
    """The error for a host whose certificates do not fit the largest buffer that the kernel takes."""
    return NotOffered(
        f"the host's certificate table takes {needed} bytes, and the kernel passes {abi.CERTS_MAX} at most",
        remedy="Ask for a report without certificates, and fetch them elsewhere.",
        field="certificates",
    )
