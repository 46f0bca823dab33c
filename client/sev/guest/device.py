"""/dev/sev-guest: reports, extended reports with the host's certificate table, derived keys.

    with SevGuestDevice() as platform:
        answer = platform.report(ReportRequest(challenge, certificates=True))

A request is an ioctl with addresses of a request and a response; what each outcome means is in `refusals`. One request
is under way at a time, as in the driver.

Source: include/uapi/linux/sev-guest.h; drivers/virt/coco/sev-guest.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from contextlib import contextmanager

from sev.abi import guest_device as abi
from sev.abi.guest_message import REPORT_SIZE
from sev.errors import InternalError, MalformedInput, NotOffered
from sev.guest import refusals
from sev.guest.answers import check_report, reported_level, trimmed_table
from sev.guest.levels import own_level
from sev.guest.model import KEY_FIELDS, ROOT_KEYS, SIGNING_KEYS, GuestReport, KeyRequest, ReportRequest
from sev.guest.patience import Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sev.launch.seam import Kernel, Memory

PATH = "/dev/sev-guest"

_LONG_KEY_REQUEST = 40
"""Bytes of MSG_KEY_REQ of version 2."""


class SevGuestDevice:
    """The device (sev.guest.model.GuestPlatform). Safe for use from several threads.

    Args:
        path: The device, or a file that a simulator serves.
        kernel: Where it is opened; the real one by default.
        patience: How long a busy host is waited for.
        vmpl: Privilege level asked for unless a request names one; None: the level this kernel runs at.
        long_key_requests: The kernel takes key requests of 40 bytes and sends them whole, which Linux does not.

    Raises:
        DeviceMissing: There is no such device, or it is another kind of file.
        NotPermitted: This user may not open it.
    """

    name = "sev-guest"

    def __init__(
        self,
        path: str = PATH,
        *,
        kernel: Kernel | None = None,
        patience: Patience | None = None,
        vmpl: int | None = None,
        long_key_requests: bool = False,
    ) -> None:
        if kernel is None:
            from sev.launch.linux import LinuxKernel

            kernel = LinuxKernel()
        self.path = path
        self.vmpl = own_level() if vmpl is None else vmpl
        self._kernel = kernel
        self._patience = patience or Patience()
        self._long = long_key_requests
        self._lock = threading.Lock()
        try:
            # The driver never looks at the access mode; read-only is the least that opens it.
            self._fd: int | None = kernel.open(path, os.O_RDONLY)
        except OSError as error:
            raise refusals.cannot_open(path, error) from None
        try:
            self._recognise()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SevGuestDevice:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the device; once more does nothing."""
        with self._lock:
            if self._fd is not None:
                self._kernel.close(self._fd)
                self._fd = None

    def report(self, request: ReportRequest) -> GuestReport:
        """An attestation report.

        Raises:
            FirmwareError: The firmware's status for the request: INVALID_PARAM for a VMPL below the kernel's own,
                INVALID_KEY where the key asked for is masked or not loaded.
            AnswerMismatch: The answer does not belong to the request.
            Throttled: The host is busy, still.
            ChannelDisabled: The kernel has no key for requests (any more).
            HostRefused: The hypervisor refused.
            KernelError: Another errno.
            NotOffered: Services of an SVSM are asked for, which only configfs-tsm can carry.
        """
        if request.service is not None:
            raise NotOffered(
                f"{self.path} does not carry requests to an SVSM",
                remedy="Use configfs-tsm (Linux 6.10 or newer, under an SVSM).",
                field="service",
            )
        vmpl = self.vmpl if request.vmpl is None else request.vmpl
        selection = SIGNING_KEYS[request.signing_key]
        wanted = abi.ReportRequest(request.report_data, vmpl, selection.to_bytes(4, "little") + bytes(24))
        version = request.message_version
        if request.certificates:
            response, table = self._patience.run(lambda: self._extended(wanted, version))
        else:
            response, table = self._patience.run(lambda: self._plain(wanted, version)), None
        name = "SNP_GET_EXT_REPORT" if request.certificates else "SNP_GET_REPORT"
        report = self._report_of(response, name)
        check_report(report, report_data=request.report_data, vmpl=vmpl)
        return GuestReport(report, request.report_data, reported_level(report), table, None, self.name)

    def derived_key(self, request: KeyRequest) -> bytes:
        """A derived key, 32 bytes, secret.

        Raises:
            NotOffered: A mitigation vector is asked for, and the kernel does not carry it.
            FirmwareError: The firmware's status: INVALID_PARAM for a VMPL below the kernel's own, an SVN above the ID
                block's or a TCB above the committed one; INVALID_KEY for a root key that is masked.
            Throttled, ChannelDisabled, HostRefused, KernelError: As for `report`.
        """
        vector = request.launch_mit_vector
        if vector is not None and not self._long:
            raise NotOffered(
                "the kernel's key request has 32 bytes and no room for a launch mitigation vector: the firmware would "
                "refuse the request, and the kernel then gives up its key",
                remedy="Leave the vector out; a kernel that takes 40 bytes has to be named: --long-request.",
                field="launch_mit_vector",
            )
        key = self._key(request, vector)
        from hmac import compare_digest

        # A kernel that copies 32 bytes only would have sent no vector, and nothing would tell.
        if vector and compare_digest(self._key(request, 0), key):
            raise NotOffered(
                "the launch mitigation vector did not reach the firmware: the key is the same without it",
                remedy="Leave the vector out; this kernel does not carry it.",
                field="launch_mit_vector",
            )
        return key

    def _recognise(self) -> None:
        """Asks what no other file answers like the driver: message version 0 is EINVAL, and nothing is sent.

        Raises:
            DeviceMissing: It is another kind of file, or its guest is gone.
        """
        with self._placed(bytearray(abi.IOCTL_SIZE)) as argument:
            number = 0
            try:
                self._kernel.ioctl(self._descriptor(), abi.SNP_GET_REPORT, argument)
            except OSError as error:
                number = error.errno or errno.EIO
        if number in (errno.ENODEV, errno.ENXIO):
            raise refusals.cannot_open(self.path, OSError(number, os.strerror(number)))
        if number != errno.EINVAL:
            raise refusals.another_file(self.path)

    def _descriptor(self) -> int:
        if self._fd is None:
            raise InternalError(f"{self.path}: the device was closed before")
        return self._fd

    def _key(self, request: KeyRequest, vector: int | None) -> bytes:
        vmpl = self.vmpl if request.vmpl is None else request.vmpl
        select = request.fields | (KEY_FIELDS["launch_mit_vector"] if vector is not None else 0)
        root = ROOT_KEYS[request.root_key] | SIGNING_KEYS[request.signing_key] << 1
        body = abi.DerivedKeyRequest(root, 0, select, vmpl, request.guest_svn, request.tcb_version).encode()
        if vector is not None:
            body += vector.to_bytes(8, "little")
            assert len(body) == _LONG_KEY_REQUEST
        response = self._patience.run(
            lambda: self._ask(abi.SNP_GET_DERIVED_KEY, bytearray(body), abi.KEY_RESPONSE_SIZE, request.message_version)
        )
        refusals.check_status(int.from_bytes(response[:4], "little"), "SNP_GET_DERIVED_KEY")
        key = response[abi.KEY_OFFSET : abi.KEY_OFFSET + abi.KEY_SIZE]
        if not any(key):
            raise MalformedInput("derived key: 32 zero bytes, which is no key", field="key")
        return key

    def _plain(self, wanted: abi.ReportRequest, version: int) -> bytes:
        return self._ask(abi.SNP_GET_REPORT, bytearray(wanted.encode()), abi.REPORT_RESPONSE_SIZE, version)

    def _extended(self, wanted: abi.ReportRequest, version: int) -> tuple[bytes, bytes]:
        """Response and certificate table.

        The largest buffer that the kernel takes is offered at once, without asking for the length first: every request
        counts where the host throttles, and a table cannot grow between two of them.
        """
        with _pages(abi.CERTS_MAX) as certs, self._placed(certs) as address:
            data = bytearray(abi.ExtReportRequest(wanted, address, abi.CERTS_MAX).encode())
            try:
                response = self._ask(abi.SNP_GET_EXT_REPORT, data, abi.REPORT_RESPONSE_SIZE, version)
            except refusals.TooSmall:
                raise refusals.table_too_large(abi.ExtReportRequest.decode(data).certs_len) from None
            return response, trimmed_table(bytes(certs))

    def _report_of(self, response: bytes, name: str) -> bytes:
        refusals.check_status(int.from_bytes(response[:4], "little"), name)
        size = int.from_bytes(response[4:8], "little")
        if size != REPORT_SIZE:
            raise MalformedInput(
                f"{name}: report size at offset 4 of the response is {size}, expected {REPORT_SIZE}", field="report"
            )
        return response[abi.REPORT_OFFSET : abi.REPORT_OFFSET + size]

    def _ask(self, command: int, data: bytearray, response_size: int, version: int) -> bytes:
        """One ioctl; what the kernel wrote into the response. `data` is changed where the kernel writes to it.

        Raises:
            Busy: Worth another attempt.
            TooSmall: The certificate buffer is; the length needed was written into `data`.
            SevError: Anything else.
        """
        response = bytearray(response_size)
        name = abi.command_name(command)
        with self._lock, self._placed(data) as asked, self._placed(response) as answered:
            fd = self._descriptor()
            # exitinfo2 is written back only where it is not zero.
            envelope = bytearray(abi.GuestRequestIoctl(version, asked, answered).encode())
            with self._placed(envelope) as argument:
                try:
                    self._kernel.ioctl(fd, command, argument)
                    number = 0
                except OSError as error:
                    number = error.errno or errno.EIO
            info = abi.GuestRequestIoctl.decode(envelope)
        if number or info.exitinfo2 not in (0, abi.EXITINFO2_UNSET):
            raise refusals.of_ioctl(name, self.path, number, info)
        return bytes(response)

    @contextmanager
    def _placed(self, data: bytearray | memoryview) -> Iterator[int]:
        memory: Memory = self._kernel.memory
        address = memory.place(data)
        try:
            yield address
        finally:
            memory.release(address)


@contextmanager
def _pages(size: int) -> Iterator[memoryview]:
    """Zeroed memory of whole pages, at a page."""
    with mmap.mmap(-1, size) as pages, memoryview(pages) as view:
        yield view
