"""One vCPU that runs: KVM_RUN, what it returned with, the answer to it, and a way to interrupt it from elsewhere.

    vcpu = Vcpu(kernel, fd, mmap_size)
    exit = vcpu.run()              # on the vCPU's own thread
    vcpu.complete(data)            # the answer to a read, before the next run
    vcpu.interrupt()               # from any other thread: the run that goes on, or the next one, ends with Interrupted

An interruption cannot be lost: the byte `immediate_exit` makes the next KVM_RUN return at once, and a signal ends one
that runs already. The signal needs a handler (`allow_interrupts`), installed without SA_RESTART.
"""

from __future__ import annotations

import errno
import signal
import struct
import threading

from sev.abi import kvm, kvm_run
from sev.errors import UsageError
from sev.launch.refusals import refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.abi.kvm_run import Exit
    from sev.launch.seam import Kernel

SIGNAL = signal.SIGRTMIN
"""Ends a KVM_RUN; nothing else in a process that runs vCPUs may use it."""

_EHWPOISON = 133
_RUN = kvm.KVM_RUN
_AT_DATA = struct.Struct("<Q").unpack_from
_REMEDIES = {
    errno.EBADF: "The SEV device's descriptor was closed: it must stay open for the life of the guest.",
    errno.EINVAL: "The guest cannot be entered: its launch was not finished, or its state is not valid.",
    errno.EOPNOTSUPP: "Guests do not execute in the daemon's own simulator. Run sevd-simulator beside the daemon "
    "(sevd --simulator DIR) on a machine that has /dev/kvm.",
}


def allow_interrupts() -> None:
    """Prepares the process for `Vcpu.interrupt`; to be called once, on the main thread.

    Python installs its handlers without SA_RESTART, which is what ends KVM_RUN.
    """
    signal.signal(SIGNAL, _nothing)


def _nothing(number: int, frame: object) -> None:
    """The signal's whole effect is that it arrived."""


class Vcpu:
    """A vCPU of this process.

    Args:
        kernel: The kernel as this process sees it.
        fd: The vCPU's descriptor; stays the caller's.
        mmap_size: Bytes of its shared mapping (KVM_GET_VCPU_MMAP_SIZE).

    Raises:
        KernelError: It cannot be mapped.
    """

    def __init__(self, kernel: Kernel, fd: int, mmap_size: int) -> None:
        self._kernel = kernel
        self._fd = fd
        self._lock = threading.Lock()
        self._thread = 0
        self._pending: Exit | None = None
        if mmap_size < kvm_run.SIZE:
            raise UsageError(f"mmap_size: {mmap_size}, expected at least {kvm_run.SIZE}", field="mmap_size")
        try:
            self._page = kernel.map(fd, mmap_size)
        except OSError as error:
            raise refused(error, "mmap of a vCPU", remedies=_REMEDIES) from None

    def run(self) -> Exit:
        """Enters the guest until it asks for something, or until `interrupt`.

        Raises:
            KernelError: KVM_RUN failed; the guest cannot go on.
            MalformedInput: What the kernel says makes no sense.
        """
        page = self._page
        self._pending = None
        try:
            self._kernel.ioctl(self._fd, _RUN)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN):
                page[kvm_run.IMMEDIATE_EXIT] = 0
                return kvm_run.INTERRUPTED
            if error.errno not in (errno.EFAULT, _EHWPOISON):
                raise refused(error, "KVM_RUN", remedies=_REMEDIES) from None
            found = kvm_run.decode(page)
            if not isinstance(found, kvm_run.MemoryFault):
                raise refused(error, "KVM_RUN", remedies=_REMEDIES) from None
        else:
            found = kvm_run.decode(page)
        self._pending = found
        return found

    def complete(self, data: bytes) -> None:
        """Answers the last exit, a read: the guest goes on with it in the next `run`.

        Raises:
            UsageError: The last exit was no read, or wants another number of bytes.
        """
        pending, page = self._pending, self._page
        if isinstance(pending, kvm_run.PortRead):
            wanted, (at,) = pending.size * pending.repeat, _AT_DATA(page, kvm_run.MMIO_DATA)
        elif isinstance(pending, kvm_run.MmioRead):
            wanted, at = pending.size, kvm_run.MMIO_DATA
        else:
            wanted, at = 0, 0
        if len(data) != wanted:
            raise UsageError(f"data: {len(data)} bytes, expected {wanted}", field="data")
        page[at : at + wanted] = data

    def answer_hypercall(self, value: int) -> None:
        """Answers the last exit, a hypercall (KVM takes 0, EINVAL and EAGAIN for MAP_GPA_RANGE).

        Raises:
            UsageError: The last exit was no hypercall.
        """
        if not isinstance(self._pending, kvm_run.Hypercall):
            raise UsageError("the vCPU did not ask with a hypercall", field="value")
        struct.pack_into("<Q", self._page, kvm_run.HYPERCALL_RET, value & 0xFFFF_FFFF_FFFF_FFFF)

    def enter(self) -> None:
        """The calling thread runs this vCPU from now on; `interrupt` signals it. To be followed by `leave`."""
        with self._lock:
            self._thread = threading.get_ident()

    def leave(self) -> None:
        """The calling thread runs it no more, and may end."""
        with self._lock:
            self._thread = 0

    def interrupt(self) -> None:
        """Ends the run under way, or else the next one, with Interrupted. From any thread, any number of times."""
        with self._lock:
            if self._page.nbytes:
                self._page[kvm_run.IMMEDIATE_EXIT] = 1
            if self._thread:
                signal.pthread_kill(self._thread, SIGNAL)

    def close(self) -> None:
        """Gives the mapping back. No run may be under way."""
        with self._lock:
            page, self._page = self._page, memoryview(b"")
        if page.nbytes:
            self._kernel.unmap(page)
