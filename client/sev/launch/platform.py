"""/dev/sev: platform commands, typed, with errno and firmware status turned into errors.

One `SevDevice` is one open descriptor. Commands are serialised by the kernel; each blocks until the firmware has
answered (usually milliseconds; the kernel gives up after 100 seconds).

Where legacy SEV is not initialised (after `reset`, say), the kernel initialises it for `pek_generate`, `pek_csr`,
`pdh_generate`, `pdh_export` and `pek_import`, and newer kernels shut down everything afterwards, SNP included. An error
that the firmware or the state of the platform caused says in its metadata what that state is (`state`).
"""

from __future__ import annotations

import errno
import os
import time

from sev import status as statuses
from sev.abi import sev_device as abi
from sev.errors import DeviceMissing, FirmwareError, MalformedInput, NotOffered, NotPermitted, SevError, WrongState
from sev.launch.refusals import number_of, opening, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from sev.launch.seam import Kernel


class SevDevice:
    """An open /dev/sev.

    Args:
        kernel: The kernel as this process sees it.
        path: The device.
        writable: Open for reading and writing; commands that change the platform need it.
        observe: Told of every command that ended: its name, errno (0: success), firmware status, seconds.

    Raises:
        DeviceMissing: The device is not there.
        NotPermitted: This process may not open it.
        KernelError: It cannot be opened for another reason.
    """

    def __init__(
        self,
        kernel: Kernel,
        path: str = "/dev/sev",
        *,
        writable: bool = True,
        observe: Callable[[str, int, int, float], None] | None = None,
    ) -> None:
        self._kernel = kernel
        self._observe = observe
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

    def reset(self) -> None:
        """FACTORY_RESET: the platform's keys and its owner are gone. Cannot be undone; chains of before are worthless.

        Legacy SEV is not initialised afterwards; the next command that needs it may shut SNP down after itself.

        Raises:
            WrongState: SEV or SEV-ES guests are running.
        """
        self._issue(abi.FACTORY_RESET, 0)

    def pek_generate(self) -> None:
        """PEK_GEN: new OCA, PEK and PDH; the platform owns itself. Cannot be undone.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE: guests are running.
        """
        self._issue(abi.PEK_GEN, 0)

    def pek_csr(self) -> bytes:
        """PEK_CSR: the PEK's certificate without signatures, 2084 bytes, for an owner's OCA to sign."""
        return self._fetch(abi.PEK_CSR, abi.PekCsr, "PEK_CSR")

    def pdh_generate(self) -> None:
        """PDH_GEN: a new PDH; launch blobs made for the old one are refused from now on. Guests may run."""
        self._issue(abi.PDH_GEN, 0)

    def pdh_export(self) -> tuple[bytes, bytes]:
        """PDH_CERT_EXPORT: the PDH's certificate, 2084 bytes; PEK, OCA and CEK in a row, 6252. The CEK is not signed.

        A descriptor that is open for reading is enough while legacy SEV is initialised.
        """
        lengths = self._lengths_of_export()
        pdh, chain = bytearray(lengths[0]), bytearray(lengths[1])
        memory = self._kernel.memory
        at_pdh = memory.place(pdh)
        try:
            at_chain = memory.place(chain)
            try:
                request = bytearray(abi.PdhCertExport(at_pdh, len(pdh), at_chain, len(chain)).encode())
                self._with(abi.PDH_CERT_EXPORT, request)
            finally:
                memory.release(at_chain)
        finally:
            memory.release(at_pdh)
        answer = abi.PdhCertExport.decode(request)
        return bytes(pdh[: answer.pdh_cert_len]), bytes(chain[: answer.cert_chain_len])

    def _lengths_of_export(self) -> tuple[int, int]:
        request = bytearray(abi.PdhCertExport(0, 0, 0, 0).encode())
        self._probe(abi.PDH_CERT_EXPORT, request)
        answer = abi.PdhCertExport.decode(request)
        return (
            _plausible(answer.pdh_cert_len, "PDH_CERT_EXPORT"),
            _plausible(answer.cert_chain_len, "PDH_CERT_EXPORT"),
        )

    def pek_import(self, pek: bytes, oca: bytes) -> None:
        """PEK_CERT_IMPORT: gives the platform an owner.

        Args:
            pek: What `pek_csr` gave, signed by the owner's OCA; 2084 bytes.
            oca: The OCA's certificate, self-signed; 2084 bytes.

        Raises:
            MalformedInput: One of them is not 2084 bytes.
            FirmwareError: ALREADY_OWNED; INVALID_CERTIFICATE: not this platform's PEK, or no OCA; BAD_SIGNATURE.
        """
        from sev.abi.sev_certificate import SIZE

        for name, data in (("PEK", pek), ("OCA", oca)):
            if len(data) != SIZE:
                raise MalformedInput(
                    f"{name} certificate: {len(data)} bytes where exactly {SIZE} were expected",
                    field=name.lower(),
                )
        memory = self._kernel.memory
        at_pek = memory.place(bytes(pek))
        try:
            at_oca = memory.place(bytes(oca))
            try:
                request = abi.PekCertImport(at_pek, len(pek), at_oca, len(oca))
                self._with(abi.PEK_CERT_IMPORT, bytearray(request.encode()))
            finally:
                memory.release(at_oca)
        finally:
            memory.release(at_pek)

    def get_id(self) -> bytes:
        """The chip's identifier: 64 bytes for each socket, through GET_ID2 and its length probe.

        Raises:
            NotOffered: The firmware is older than API 0.16.
            FirmwareError: The firmware refused.
        """
        return self._fetch(abi.GET_ID2, abi.GetId2, "GET_ID2")

    def get_ids(self) -> tuple[bytes, bytes]:
        """GET_ID, which GET_ID2 replaced: the identifiers of two sockets, 64 bytes each; the second zero without one.

        Raises:
            NotOffered: The firmware is older than API 0.16.
        """
        both = self._filled(abi.GET_ID, abi.GET_ID_SIZE)
        return both[: abi.ID_SIZE], both[abi.ID_SIZE :]

    def _fetch(self, command: int, form: type[abi.PekCsr] | type[abi.GetId2], name: str) -> bytes:
        """The blob of a command whose structure is an address and a length, after asking for the length."""
        request = bytearray(form(0, 0).encode())
        self._probe(command, request)
        buffer = bytearray(_plausible(form.decode(request).length, name))
        address = self._kernel.memory.place(buffer)
        try:
            request[:] = form(address, len(buffer)).encode()
            self._with(command, request)
        finally:
            self._kernel.memory.release(address)
        return bytes(buffer[: form.decode(request).length])

    def _probe(self, command: int, request: bytearray) -> None:
        """Asks for lengths, which succeeds by failing with INVALID_LENGTH."""
        try:
            self._with(command, request)
        except FirmwareError as error:
            if error.firmware_status != statuses.INVALID_LENGTH:
                raise

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
        number, status = self._attempt(command, data)
        if number:
            raise self._failed(number, command, status)

    def _attempt(self, command: int, data: int) -> tuple[int, int]:
        """errno (0: success) and firmware status."""
        memory = self._kernel.memory
        envelope = bytearray(abi.IssueCmd(command, data).encode())
        address = memory.place(envelope)
        number = status = 0
        began = time.monotonic()
        try:
            self._kernel.ioctl(self._fd, abi.SEV_ISSUE_CMD, address)
        except OSError as error:
            number, status = number_of(error), abi.IssueCmd.decode(envelope).error
        finally:
            memory.release(address)
        if self._observe is not None:
            self._observe(abi.command_name(command), number, status, time.monotonic() - began)
        return number, status

    def _failed(self, number: int, command: int, status: int) -> SevError:
        name = abi.command_name(command)
        if number == errno.ENODEV or (number == errno.EINVAL and command in _SNP):
            # Old kernels say EINVAL; the structures here are what they want, so nothing else can be meant.
            what = "SNP is not initialised on this host" if command in _SNP else "no secure processor with SEV"
            return DeviceMissing(f"{name}: {what}", command=name, errno=number)
        if number == errno.EPERM:
            return NotPermitted(
                f"{name}: {self.path} is open for reading only",
                command=name,
                errno=number,
                remedy=f"This command needs {self.path} open for writing.",
            )
        if number == abi.ENOTSUPP:
            return NotOffered(f"{name}: the firmware is older than API 0.16", command=name, errno=number)
        state = "" if number in _SILENT or status == statuses.INVALID_LENGTH else self._state(command)
        if command == abi.FACTORY_RESET and number == errno.EBUSY and state == "WORKING":
            return WrongState(
                f"{name}: SEV or SEV-ES guests are running",
                command=name,
                errno=number,
                remedy="End all guests first.",
                metadata={"state": state, "allowed": "UNINIT, INIT"},
            )
        failed = refused(OSError(number, os.strerror(number)), name, status)
        if state:
            failed.metadata["state"] = state
        return failed

    def _state(self, command: int) -> str:
        """What the platform that a command is for says of its state, for errors; empty if it says nothing."""
        size = abi.SnpStatus.size() if command in _SNP else abi.PlatformStatus.size()
        answer = bytearray(size)
        address = self._kernel.memory.place(answer)
        try:
            number, _ = self._attempt(abi.SNP_PLATFORM_STATUS if command in _SNP else abi.PLATFORM_STATUS, address)
        finally:
            self._kernel.memory.release(address)
        value = answer[2]  # in both structures
        return "" if number or value >= len(abi.STATE_NAMES) else abi.STATE_NAMES[value]


_SNP = frozenset({abi.SNP_PLATFORM_STATUS, abi.SNP_COMMIT, abi.SNP_SET_CONFIG, abi.SNP_VLEK_LOAD})
_SILENT = frozenset({errno.EBADF, errno.EFAULT, errno.ETIMEDOUT})
"""Failures that say nothing of the platform's state."""


def _plausible(length: int, command: str) -> int:
    if not 0 < length <= abi.BLOB_MAX:
        raise MalformedInput(
            f"{command}: the length probe answered {length}, expected 1 to {abi.BLOB_MAX}", field="length"
        )
    return length
