"""/dev/sev as Linux's ccp driver answers it (drivers/crypto/ccp/sev-dev.c), over the firmware model.

Order of checks, errnos and copy-back are the driver's. The envelope is copied back after every command that exists;
`error` is what the caller had in it while the firmware was not reached.

Not modelled yet: the legacy commands FACTORY_RESET, PEK_GEN, PEK_CSR, PDH_GEN, PDH_CERT_EXPORT and PEK_CERT_IMPORT,
because the firmware model has no SEV identity. After the driver's own write check they answer EIO with firmware status
UNSUPPORTED, as a platform does whose firmware lacks the command. Nothing else is missing from the device.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sev import status
from sev.abi import sev_device as abi
from sevd.simulator import kernel_era
from sevd.simulator.errnos import FirmwareRefused, Reply, fail
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.process import File, Process

if TYPE_CHECKING:
    from sevd.simulator.firmware import Firmware

T = TypeVar("T")

_ENVELOPE_SIZE = abi.IssueCmd.size()
_NEEDS_WRITE = frozenset({abi.FACTORY_RESET, abi.PEK_GEN, abi.PEK_CSR, abi.PDH_GEN, abi.PEK_CERT_IMPORT})
_ALLOCATION_MAX = 4 << 20
"""Bytes that the page allocator gives in one piece."""
_LEGACY = _NEEDS_WRITE | {abi.PDH_CERT_EXPORT}


class Ccp:
    """The driver: one secure processor behind one mutex.

    Args:
        firmware: The firmware model.
        era: Kernel generation.
    """

    def __init__(self, firmware: Firmware, era: kernel_era.KernelEra) -> None:
        self.firmware = firmware
        self.era = era
        self.lock = threading.RLock()
        self.present = True
        self.dead = False
        self.snp_initialised = False

    def open(self, flags: int) -> File:
        """Opens the device: nothing is checked, nothing is per descriptor but the access mode."""
        return SevFile(self, flags)

    def resolve(self, process: Process, fd: int) -> None:
        """Checks that a descriptor of a process is this device, whatever its mode. Raises OSError(EBADF)."""
        file = process.take(fd)
        try:
            if not isinstance(file, SevFile) or file.ccp is not self or file.path_only:
                fail(errno.EBADF)
        finally:
            file.drop()

    def call(self, reply: Reply, function: Callable[[], T]) -> T:
        """Has the firmware run one command.

        Raises:
            FirmwareRefused: EIO with the status, which also goes into the reply.
            OSError: EBUSY: the processor is dead since an earlier timeout; ETIMEDOUT: it has just died.
        """
        with self.lock:
            if self.dead:
                fail(errno.EBUSY)
            try:
                answer = function()
            except FirmwareStatus as refused:
                reply.error = refused.code & 0xFFFF
                raise FirmwareRefused(errno.EIO, reply.error, refused.pages_done) from None
            except TimeoutError:
                self.dead = True
                reply.error = 0
                fail(errno.ETIMEDOUT)
            reply.error = 0
            return answer

    def initialise(self, reply: Reply) -> None:
        """SNP_INIT_EX, as when kvm_amd is loaded; nothing if it was done. Raises OSError as `call`."""
        with self.lock:
            if not self.snp_initialised:
                self.call(reply, self.firmware.snp_init)
                # Every ASID is dirty after it.
                self.call(reply, self.firmware.snp_df_flush)
                self.snp_initialised = True
                # The legacy side comes up with SNP; where it does not, SNP guests do not miss it.
                with contextlib.suppress(OSError):
                    self.call(Reply(), self.firmware.init)

    def shut_down(self) -> None:
        """SNP_SHUTDOWN_EX, as when the machine goes down in order; what fails is left as it is."""
        with self.lock:
            if self.snp_initialised and not self.dead:
                try:
                    self.call(Reply(), self.firmware.shutdown)
                    self.call(Reply(), self.firmware.snp_df_flush)
                    self.call(Reply(), self.firmware.snp_shutdown)
                except OSError:
                    return
                self.snp_initialised = False

    def command(self, process: Process, file: SevFile, number: int, data: int, reply: Reply) -> None:
        """One command of the device, under the mutex."""
        if number in _NEEDS_WRITE and not file.writable:
            fail(errno.EPERM)
        if number in _LEGACY:
            reply.error = status.UNSUPPORTED
            fail(errno.EIO)
        if number == abi.PLATFORM_STATUS:
            process.memory.write(data, self.call(reply, self.firmware.platform_status))
        elif number == abi.GET_ID:
            self._check_id_version()
            process.memory.write(data, self.call(reply, self.firmware.get_id))
        elif number == abi.GET_ID2:
            self._get_id2(process, data, reply)
        elif number == abi.SNP_PLATFORM_STATUS:
            if not data:
                fail(errno.EINVAL)
            process.memory.write(data, self.call(reply, self.firmware.snp_platform_status))
        elif number == abi.SNP_COMMIT:
            self.call(reply, self.firmware.snp_commit)
        elif number == abi.SNP_SET_CONFIG:
            self._check_snp_write(file, number, data)
            config = process.memory.read(data, abi.SnpConfig.size())
            self.call(reply, lambda: self.firmware.snp_config(config))
        else:
            self._vlek_load(process, file, data, reply)

    def _check_id_version(self) -> None:
        # As the driver read it when it was loaded.
        if self.firmware.version[:2] < (0, 16):
            fail(abi.ENOTSUPP)

    def _get_id2(self, process: Process, data: int, reply: Reply) -> None:
        self._check_id_version()
        request = abi.GetId2.decode(process.memory.read(data, abi.GetId2.size()))
        if request.address and request.length > _ALLOCATION_MAX:
            fail(errno.ENOMEM)
        identifier = self.call(reply, self.firmware.get_id)
        enough = bool(request.address) and request.length >= len(identifier)
        if not enough:
            reply.error = status.INVALID_LENGTH
        process.memory.write(data, abi.GetId2(request.address, len(identifier)).encode())
        if not enough:
            fail(errno.EIO)
        process.memory.write(request.address, identifier)

    def _check_snp_write(self, file: SevFile, number: int, data: int) -> None:
        if not data:
            fail(errno.EINVAL)
        if not file.writable:
            fail(errno.EPERM)
        if not self.snp_initialised and self.era.without_snp[number] == kernel_era.ENODEV:
            fail(errno.ENODEV)

    def _vlek_load(self, process: Process, file: SevFile, data: int, reply: Reply) -> None:
        self._check_snp_write(file, abi.SNP_VLEK_LOAD, data)
        request = abi.SnpVlekLoad.decode(process.memory.read(data, abi.SnpVlekLoad.size()))
        if request.len != abi.SnpVlekLoad.size() or request.vlek_wrapped_version:
            fail(errno.EINVAL)
        if not request.vlek_wrapped_address:
            fail(errno.EINVAL)
        blob = process.memory.read(request.vlek_wrapped_address, abi.VLEK_BLOB_SIZE)
        self.call(reply, lambda: self.firmware.snp_vlek_load(blob))


class SevFile(File):
    """An open /dev/sev."""

    def __init__(self, ccp: Ccp, flags: int) -> None:
        super().__init__(flags)
        self.ccp = ccp

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """The one ioctl. Raises OSError with the driver's errno."""
        ccp = self.ccp
        if not ccp.present:
            fail(errno.ENODEV)
        if request != abi.SEV_ISSUE_CMD:
            fail(errno.EINVAL)
        envelope = abi.IssueCmd.decode(process.memory.read(argument, _ENVELOPE_SIZE))
        if envelope.cmd >= abi.COMMAND_MAX:
            fail(errno.EINVAL)
        reply = Reply()
        with ccp.lock:
            try:
                ccp.command(process, self, envelope.cmd, envelope.data, reply)
            finally:
                # Also where it failed; an envelope that went away meanwhile turns the result into EFAULT.
                error = envelope.error if reply.error is None else reply.error
                process.memory.write(argument, abi.IssueCmd(envelope.cmd, envelope.data, error).encode())
        return 0
