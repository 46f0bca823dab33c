"""/dev/sev: platform commands, typed, with errno and firmware status turned into errors.

One `SevDevice` is one open descriptor. Commands are serialised by the kernel; each blocks until the firmware has
answered (usually milliseconds; the kernel gives up after 100 seconds).
"""

from __future__ import annotations

import errno
import os

from sev import status as statuses
from sev.abi import sev_device as abi
from sev.errors import DeviceMissing, FirmwareError, MalformedInput, NotOffered, NotPermitted, SevError
from sev.launch.refusals import number_of, opening, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from sev.launch.seam import Kernel


class SevDevice:
    """An open /dev/sev.

    Args:
        kernel: The kernel as this process sees it.
        path: The device.
        writable: Open for reading and writing; commands that change the platform need it.

    Raises:
        DeviceMissing: The device is not there.
        NotPermitted: This process may not open it.
        KernelError: It cannot be opened for another reason.
    """

    def __init__(self, kernel: Kernel, path: str = "/dev/sev", *, writable: bool = True) -> None:
        self._kernel = kernel
        self.path = path
        try:
            self._fd = kernel.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise opening(error, path) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the descriptor; once more does nothing. Closing changes nothing on the platform."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._kernel.close(fd)

    def snp_status(self) -> bytes:
        """SNP_PLATFORM_STATUS: 32 bytes as the firmware wrote them (sev.abi.sev_device.SnpStatus)."""
        return self._filled(abi.SNP_PLATFORM_STATUS, abi.SnpStatus.size())

    def snp_commit(self) -> None:
        """SNP_COMMIT: the running firmware becomes the oldest that will ever be accepted. Cannot be undone."""
        self._issue(abi.SNP_COMMIT, 0)

    def snp_set_config(self, config: bytes) -> None:
        """SNP_SET_CONFIG: 64 bytes (sev.abi.sev_device.SnpConfig); the firmware checks them.

        Raises:
            MalformedInput: Not 64 bytes.
            FirmwareError: INVALID_PARAM: a TCB above the committed one, or a reserved bit.
        """
        if len(config) != abi.SnpConfig.size():
            raise MalformedInput(f"SNP_CONFIG: {len(config)} bytes where exactly 64 were expected", field="config")
        self._with(abi.SNP_SET_CONFIG, bytearray(config))

    def snp_vlek_load(self, hashstick: bytes) -> None:
        """SNP_VLEK_LOAD: a wrapped VLEK hashstick, 432 bytes, as the key distribution service gives it.

        Raises:
            MalformedInput: Not 432 bytes.
            FirmwareError: BAD_SVN: made for another reported TCB; BAD_MEASUREMENT: made for another chip.
        """
        if len(hashstick) != abi.VLEK_BLOB_SIZE:
            raise MalformedInput(
                f"VLEK hashstick: {len(hashstick)} bytes where exactly {abi.VLEK_BLOB_SIZE} were expected",
                field="hashstick",
            )
        address = self._kernel.memory.place(hashstick)
        try:
            size = abi.SnpVlekLoad.size()
            self._with(abi.SNP_VLEK_LOAD, bytearray(abi.SnpVlekLoad(size, 0, address).encode()))
        finally:
            self._kernel.memory.release(address)

    def platform_status(self) -> bytes:
        """PLATFORM_STATUS of SEV: 12 bytes as the firmware wrote them (sev.abi.sev_device.PlatformStatus)."""
        return self._filled(abi.PLATFORM_STATUS, abi.PlatformStatus.size())

    def get_id(self) -> bytes:
        """The chip's identifier: 64 bytes for each socket, through GET_ID2 and its length probe.

        Raises:
            NotOffered: The firmware is older than API 0.16.
            FirmwareError: The firmware refused.
        """
        request = bytearray(abi.GetId2(0, 0).encode())
        try:
            self._with(abi.GET_ID2, request)
        except FirmwareError as error:
            if error.firmware_status != statuses.INVALID_LENGTH:
                raise
        length = abi.GetId2.decode(request).length
        if not 0 < length <= abi.BLOB_MAX:
            raise MalformedInput(
                f"GET_ID2: the length probe answered {length}, expected 1 to {abi.BLOB_MAX}", field="length"
            )
        identifier = bytearray(length)
        address = self._kernel.memory.place(identifier)
        try:
            request[:] = abi.GetId2(address, length).encode()
            self._with(abi.GET_ID2, request)
        finally:
            self._kernel.memory.release(address)
        return bytes(identifier[: abi.GetId2.decode(request).length])

    def _filled(self, command: int, size: int) -> bytes:
        buffer = bytearray(size)
        self._with(command, buffer)
        return bytes(buffer)

    def _with(self, command: int, buffer: bytearray) -> None:
        """Issues a command whose data is `buffer`, which the kernel may change."""
        memory = self._kernel.memory
        address = memory.place(buffer)
        try:
            self._issue(command, address)
        finally:
            memory.release(address)

    def _issue(self, command: int, data: int) -> None:
        memory = self._kernel.memory
        envelope = bytearray(abi.IssueCmd(command, data).encode())
        address = memory.place(envelope)
        try:
            self._kernel.ioctl(self._fd, abi.SEV_ISSUE_CMD, address)
        except OSError as error:
            raise _failed(error, command, abi.IssueCmd.decode(envelope).error, self.path) from None
        finally:
            memory.release(address)


def _failed(error: OSError, command: int, status: int, path: str) -> SevError:
    name, number = abi.command_name(command), number_of(error)
    if number == errno.ENODEV:
        return DeviceMissing(f"{name}: SNP is not initialised on this host", command=name, errno=number)
    if number == errno.EPERM:
        return NotPermitted(
            f"{name}: {path} is open for reading only",
            command=name,
            errno=number,
            remedy=f"This command needs {path} open for writing.",
        )
    if number == abi.ENOTSUPP:
        return NotOffered(f"{name}: the firmware is older than API 0.16", command=name, errno=number)
    return refused(error, name, status)
