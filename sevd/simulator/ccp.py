"""/dev/sev as Linux's ccp driver answers it (drivers/crypto/ccp/sev-dev.c), over the firmware model.

Here is what the driver knows and does by itself: one mutex, the envelope, the cached state of the platform, bringing it
up and down, the file of INIT_EX. The commands are in `ccp_commands`.

Order of checks, errnos and copy-back are the driver's. The envelope is copied back after every command that exists;
`error` is what the caller had in it while the firmware was not reached. The cached state of legacy SEV is UNINIT or
INIT and follows the driver's own INIT and SHUTDOWN only; FACTORY_RESET alone asks the firmware.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sev import status
from sev.abi import sev_device as abi
from sevd.simulator import kernel_era
from sevd.simulator.errnos import FirmwareRefused, PowerLost, Reply, fail
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.legacy_store import NV_SIZE
from sevd.simulator.process import File, Process

if TYPE_CHECKING:
    from sevd.simulator.firmware import Firmware

T = TypeVar("T")

_ENVELOPE_SIZE = abi.IssueCmd.size()
_SNP_API = (1, 51)
"""The oldest firmware on which Linux initialises SNP."""


class Ccp:
    """The driver: one secure processor behind one mutex.

    Args:
        firmware: The firmware model.
        era: Kernel generation.
        init_ex_path: The module's parameter of that name: the file, 32 KiB, in which the platform's persistent store
            lies instead of the chip's flash; made when it is first written.
    """

    def __init__(
        self, firmware: Firmware, era: kernel_era.KernelEra, *, init_ex_path: str | os.PathLike[str] | None = None
    ) -> None:
        self.firmware = firmware
        self.era = era
        self.lock = threading.RLock()
        self.present = True
        self.dead = False
        self.on_power_loss: Callable[[], None] = self.power_cycle
        self.initialised = False
        self.snp_initialised = False
        self._init_ex_path = None if init_ex_path is None else Path(init_ex_path)
        self._nv: bytearray | None = None

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

    def call(self, reply: Reply, function: Callable[[], T], *, changes_store: bool = False) -> T:
        """Has the firmware run one command.

        Args:
            reply: Takes the status.
            function: The command.
            changes_store: It changes the persistent store, which goes to the file of INIT_EX afterwards.

        Raises:
            FirmwareRefused: EIO with the status, which also goes into the reply.
            OSError: EBUSY: the processor is dead since an earlier timeout; ETIMEDOUT: it has just died; ENODEV: the
                power failed, and is back; others: the file could not be written.
        """
        with self.lock:
            if self.dead:
                fail(errno.EBUSY)
            try:
                answer = function()
            except FirmwareStatus as refused:
                reply.error = refused.code & 0xFFFF
                raise FirmwareRefused(errno.EIO, reply.error, refused.pages_done, refused.lengths) from None
            except TimeoutError:
                self.dead = True
                reply.error = 0
                fail(errno.ETIMEDOUT)
            except PowerLost:
                # Whoever asked is as dead as everybody on that host; this is for callers outside of it.
                self.on_power_loss()
                fail(errno.ENODEV)
            reply.error = 0
            if changes_store:
                self._write_store()
            return answer

    # Up and down.

    def power_cycle(self) -> None:
        """Power off and on again: the driver knows nothing, and the firmware what it has stored."""
        with self.lock:
            self.firmware.power_cycle()
            self.dead = self.initialised = self.snp_initialised = False
            self._nv = None

    def initialise(self, reply: Reply) -> None:
        """SNP where there is SNP, then legacy SEV, as when kvm_amd is loaded or a VM starts. Raises OSError as `call`.

        Nothing if legacy SEV was initialised: the driver looks at nothing else.
        """
        with self.lock:
            if not self.initialised:
                if self.firmware.product.has_snp:
                    self.initialise_snp(reply)
                self._initialise_legacy(reply)

    def initialise_snp(self, reply: Reply) -> None:
        """SNP_INIT_EX; nothing if it was done.

        Raises:
            OSError: ENODEV: no SNP on this processor; EOPNOTSUPP: the firmware is too old; others as `call`.
        """
        with self.lock:
            if not self.firmware.product.has_snp:
                fail(errno.ENODEV)
            if not self.snp_initialised:
                if self.firmware.version[:2] < _SNP_API:
                    fail(errno.EOPNOTSUPP)
                self.call(reply, self.firmware.snp_init)
                # Every ASID is dirty after it.
                self.call(reply, self.firmware.snp_df_flush)
                self.snp_initialised = True

    def _initialise_legacy(self, reply: Reply) -> None:
        """INIT or INIT_EX with SEV-ES, again if the store was not this chip's, then DF_FLUSH."""
        if self.initialised:
            return
        self._nv = self._read_store()
        inner = Reply()
        try:
            try:
                self._issue_init(inner)
            except FirmwareRefused as refused:
                if refused.status != status.SECURE_DATA_INVALID:
                    raise
                self._issue_init(inner)
        finally:
            reply.error = abi.NO_FW_CALL if inner.error is None else inner.error
        self.initialised = True
        self.call(reply, self.firmware.df_flush)

    def _issue_init(self, reply: Reply) -> None:
        nv = self._nv
        if nv is None:
            self.call(reply, self.firmware.init)
        else:
            self.call(reply, lambda: self.firmware.init_ex(nv), changes_store=True)

    def shut_down(self) -> None:
        """Everything, as when kvm_amd is unloaded or a command ends that needed it; what fails is left as it is."""
        with self.lock:
            with contextlib.suppress(OSError):
                self.shut_down_legacy(Reply())
            self._nv = None
            with contextlib.suppress(OSError):
                self.shut_down_snp(Reply())

    def shut_down_legacy(self, reply: Reply) -> None:
        """SHUTDOWN, if the driver knows of an INIT. Raises OSError as `call`."""
        with self.lock:
            if self.initialised:
                self.call(reply, self.firmware.shutdown)
                self.initialised = False

    def shut_down_snp(self, reply: Reply) -> None:
        """SNP_SHUTDOWN_EX, if SNP is initialised, with a flush and once more where it asks for one. Raises OSError."""
        with self.lock:
            if not self.snp_initialised:
                return
            try:
                self.call(reply, self.firmware.snp_shutdown)
            except FirmwareRefused as refused:
                if refused.status != status.DF_FLUSH_REQUIRED:
                    raise
                self.call(reply, self.firmware.snp_df_flush)
                self.call(reply, self.firmware.snp_shutdown)
            self.snp_initialised = False

    @contextlib.contextmanager
    def legacy_ready(self, reply: Reply) -> Iterator[None]:
        """Legacy SEV is up inside of it: initialised for it, and shut down after it, by the era's rules.

        The shutdown takes SNP with it, also an SNP that was up before: so it is after a FACTORY_RESET.
        """
        implicit = not self.initialised
        if implicit:
            if self.era.init_with_snp:
                try:
                    self.initialise(Reply())
                except OSError:
                    reply.error = status.INVALID_PLATFORM_STATE
                    raise
            else:
                self._initialise_legacy(reply)
        try:
            yield
        finally:
            if implicit and self.era.shutdown_after:
                self.shut_down()

    @contextlib.contextmanager
    def snp_ready(self, reply: Reply, command: int) -> Iterator[None]:
        """SNP is up inside of it, where the era brings it up for this command."""
        implicit = not self.snp_initialised and self.era.without_snp[command] == kernel_era.AROUND
        if implicit:
            try:
                self.initialise_snp(Reply())
            except OSError:
                reply.error = status.INVALID_PLATFORM_STATE
                raise
        try:
            yield
        finally:
            if implicit:
                with contextlib.suppress(OSError):
                    self.shut_down_snp(Reply())

    # The file of INIT_EX.

    def _read_store(self) -> bytearray | None:
        """The store in the file; all ones while there is none. Raises OSError: the open's, or EIO for a short file."""
        if self._init_ex_path is None:
            return None
        try:
            with self._init_ex_path.open("rb") as file:
                data = bytearray(file.read(NV_SIZE))
        except FileNotFoundError:
            return bytearray(b"\xff" * NV_SIZE)
        if len(data) != NV_SIZE:
            fail(errno.EIO)
        return data

    def _write_store(self) -> None:
        if self._init_ex_path is not None and self._nv is not None:
            # In place, as the driver writes it: a power loss in between costs the store, and INIT makes a new one.
            descriptor = os.open(self._init_ex_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                written = os.write(descriptor, self._nv)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if written != NV_SIZE:
                fail(errno.EIO)


class SevFile(File):
    """An open /dev/sev."""

    def __init__(self, ccp: Ccp, flags: int) -> None:
        super().__init__(flags)
        self.ccp = ccp

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """The one ioctl. Raises OSError with the driver's errno."""
        from sevd.simulator import ccp_commands

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
                ccp_commands.run(ccp_commands.Call(ccp, process, self.writable, envelope.data, reply), envelope.cmd)
            finally:
                # Also where it failed; an envelope that went away meanwhile turns the result into EFAULT.
                error = envelope.error if reply.error is None else reply.error
                process.memory.write(argument, abi.IssueCmd(envelope.cmd, envelope.data, error).encode())
        return 0
