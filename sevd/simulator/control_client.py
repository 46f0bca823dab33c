"""The other end of the simulator's control socket: what a program asks a running simulator (sevd.simulator.control).

    with ControlClient.connect(directory / "control.sock") as control:
        fd = control.open("/dev/kvm", os.O_RDWR)
        vm = control.ioctl(fd, KVM_CREATE_VM, 4)
        control.fault("SNP_COMMIT:status=0x16:times=1")

Refusals of the simulated kernel are OSErrors with its errno, all others the errors of sev.errors. Where the simulator
is gone everything answers ENODEV, as after the removal of a device. Safe for use from several threads: one request at a
time is under way.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

from sev import packets
from sev.errors import DeviceMissing, MalformedInput, NotPermitted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

PATH = "/dev/kvm"
"""What `open` opens."""

COPY, OPEN, SEAL = "copy", "open", "seal"
"""What becomes of SEV guest memory that is moved: nothing, what the guest reads, what lies there when it writes."""

IOCTLS_MAX = 1024
"""Most ioctls of one request."""

LENT_RANGES, LENT_MAX = 64, 1 << 20
"""Most ranges of memory that the process lends for one request, and bytes of each."""


class ControlClient:
    """A connection; the simulator sees one process in it.

    Args:
        sock: The connected socket, closed with this.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, path: Path) -> ControlClient:
        """Connects to a simulator's socket.

        Raises:
            DeviceMissing: There is no simulator.
            NotPermitted: It is not for this user.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            # By way of the folder's descriptor: its path may be longer than a socket's can be.
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)
        except OSError as error:
            sock.close()
            if error.errno in (errno.EACCES, errno.EPERM):
                raise NotPermitted(f"{path}: {error.strerror}", remedy="Ask as the user of the simulator.") from None
            raise DeviceMissing(
                f"{path}: {error.strerror or error}",
                remedy="Start sevd-simulator with this --device-dir.",
                errno=error.errno,
            ) from None
        return cls(sock)

    def fileno(self) -> int:
        """The socket's descriptor: poll(2) tells POLLHUP when the simulator is gone. -1 once closed."""
        return self._sock.fileno()

    def call(self, op: str, **fields: object) -> dict[str, object]:
        """One request; its answer.

        Raises:
            OSError: The simulated kernel's errno; ENODEV: the simulator is gone.
            SevError: It was refused otherwise.
        """
        answer, fds = self._exchange({"op": op, **fields})
        packets.close_all(fds)
        return answer

    def open(self, path: str, flags: int) -> int:
        """open(2) of a simulated device. Raises OSError."""
        return packets.whole(self.call("open", path=path, flags=flags), "fd")

    def close_descriptor(self, fd: int) -> None:
        """close(2). Raises OSError."""
        self.call("close", fd=fd)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """ioctl(2); addresses are those of this process. Raises OSError."""
        return packets.whole(self.call("ioctl", fd=fd, request=request, argument=argument), "result")

    def ioctls(
        self,
        fd: int,
        request: int,
        arguments: Sequence[int],
        *,
        change: str = COPY,
        moves: Sequence[tuple[int, int, int]] = (),
        lent: Sequence[tuple[int, int]] = (),
    ) -> tuple[int, int]:
        """The same ioctl again and again, until one fails, in one exchange: (how many succeeded, errno or 0).

        Args:
            fd: The descriptor.
            request: The ioctl.
            arguments: Its arguments, at most IOCTLS_MAX.
            change: What `moves` do: COPY, OPEN or SEAL.
            moves: Guest memory that is moved before, as `transfer` does it: (source, target, bytes).
            lent: Ranges of memory that nobody else touches meanwhile, (address, bytes): they are copied once each way.

        Raises:
            OSError: A move failed, and nothing was begun.
        """
        fields = {"arguments": list(arguments), "change": change, "moves": [list(move) for move in moves]}
        fields["lent"] = [list(one) for one in lent]
        answer = self.call("ioctls", fd=fd, request=request, **fields)
        return packets.whole(answer, "done"), packets.whole(answer, "failed")

    def create_memory(self, fd: int, request: int, argument: int) -> tuple[int, int]:
        """KVM_CREATE_GUEST_MEMFD: the simulated descriptor, and one of the memory itself, the caller's to close.

        Raises:
            OSError: As the ioctl's.
        """
        answer, fds = self._exchange({"op": "ioctl", "fd": fd, "request": request, "argument": argument})
        if len(fds) != 1:
            packets.close_all(fds)
            raise MalformedInput(f"{len(fds)} descriptors came with the guest's memory, expected 1", field="fds")
        return packets.whole(answer, "result"), fds[0]

    def discard(self, fd: int, offset: int, size: int) -> None:
        """fallocate(2) with PUNCH_HOLE of a guest_memfd. Raises OSError."""
        self.call("discard", fd=fd, offset=offset, size=size)

    def name(self, fd: int, guest_id: str) -> None:
        """Names the guest of a VM. Raises UsageError: no possible name, taken, or no guest."""
        self.call("name", fd=fd, guest_id=guest_id)

    def launch_digest(self, fd: int) -> bytes:
        """A VM's launch digest, 48 bytes; 32 of an SEV or SEV-ES guest."""
        return packets.octets(self.call("digest", fd=fd), "digest")

    def asid(self, fd: int) -> int:
        """A VM's ASID."""
        return packets.whole(self.call("asid", fd=fd), "asid")

    def report(self, fd: int, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
        """A report as the guest gets it, 1184 bytes. Raises FirmwareError."""
        asked = {"report_data": report_data.hex(), "vmpl": vmpl, "key_selection": key_selection}
        return packets.octets(self.call("report", fd=fd, **asked), "report")

    def key(self, fd: int, **request: int) -> bytes:
        """A derived key as the guest gets it, 32 bytes, secret; fields as of sevd.guests.machine.KeyRequest."""
        return packets.octets(self.call("key", fd=fd, **request), "key")

    def save_area(self, fd: int) -> bytes:
        """The VMSA of a vCPU as it was measured, 4096 bytes. Raises WrongState before."""
        return packets.octets(self.call("vmsa", fd=fd), "page")

    def transfer(
        self, fd: int, change: str, source: int, target: int, size: int, *, then: tuple[int, int] | None = None
    ) -> int:
        """Copies this process's memory as SEV guest memory is (sevd.simulator.control_memory).

        Args:
            fd: The guest's VM.
            change: COPY, OPEN or SEAL.
            source: Address.
            target: Address.
            size: Bytes.
            then: Request and argument of an ioctl of that VM, which follows; its result is answered, else 0.

        Raises:
            OSError: EFAULT, or the ioctl's.
        """
        more = {} if then is None else {"request": then[0], "argument": then[1]}
        answer = self.call("memory", fd=fd, change=change, source=source, target=target, size=size, **more)
        return packets.whole(answer, "result") if then is not None else 0

    def fault(self, spec: str) -> None:
        """Injects a fault (sevd.simulator.faults). Raises UsageError for no fault, NotPermitted."""
        self.call("fault", spec=spec)

    def update_firmware(self, version: str, tcb: str = "", *, commit: bool = False) -> None:
        """Has another firmware run (sevd.simulator.firmware_update). Raises UsageError, FirmwareError, NotPermitted."""
        self.call("firmware-update", version=version, tcb=tcb, commit=commit)

    def close(self) -> None:
        """Ends the connection: everything it held is closed."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, message: dict[str, object]) -> tuple[dict[str, object], list[int]]:
        try:
            with self._lock:
                answer, fds = packets.call(self._sock, message)
        except (packets.Closed, OSError):
            raise OSError(errno.ENODEV, "the simulator is gone") from None
        number = answer.get("errno")
        if number is not None:
            packets.close_all(fds)
            code = number if isinstance(number, int) and number > 0 else errno.EIO
            raise OSError(code, os.strerror(code))
        return answer, fds
