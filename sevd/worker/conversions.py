"""Memory that changes between private and shared while a guest runs: what the guest asks for, and what faults ask for.

KVM keeps the attribute of every page (KVM_SET_MEMORY_ATTRIBUTES); the pages of the side that is left are freed, so that
a guest that converts back and forth does not hold its memory twice. Guests without private memory have nothing to
convert: to them everything is shared already.
"""

from __future__ import annotations

import errno
import logging
import threading

from sev.abi import kvm
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.abi.kvm_run import Hypercall, MemoryFault
    from sev.launch.machine import Machine
    from sev.launch.seam import Kernel

PAGE = 4096
_ENCRYPTED = 1 << 4
"""In the attributes of KVM_HC_MAP_GPA_RANGE: the pages become private."""

_TRANSIENT = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.EBUSY})
_ADDRESS_LIMIT = 1 << 52

log = logging.getLogger(__name__)


class Conversions:
    """The memory attributes of one machine. From any thread."""

    def __init__(self, kernel: Kernel, machine: Machine) -> None:
        self._kernel = kernel
        self._machine = machine
        self._lock = threading.Lock()

    def hypercall(self, asked: Hypercall) -> int:
        """KVM_HC_MAP_GPA_RANGE: (address, pages of 4 KiB, attributes). Answers 0, EINVAL or EAGAIN for the guest."""
        if asked.number != kvm.HC_MAP_GPA_RANGE or len(asked.arguments) < 3:
            return errno.EINVAL
        gpa, pages, attributes = asked.arguments[:3]
        if gpa % PAGE or not 0 < pages <= _ADDRESS_LIMIT // PAGE or gpa >= _ADDRESS_LIMIT:
            return errno.EINVAL
        return self.convert(gpa, pages * PAGE, private=bool(attributes & _ENCRYPTED))

    def fault(self, fault: MemoryFault) -> bool:
        """Whether an access of the other kind can go on now."""
        start = fault.gpa - fault.gpa % PAGE
        end = -(-(fault.gpa + max(fault.size, 1)) // PAGE) * PAGE
        try:
            self._machine.private_pages(start, end - start)
        except UsageError:
            return False
        return self.convert(start, end - start, private=fault.private) in (0, errno.EAGAIN)

    def convert(self, gpa: int, size: int, *, private: bool) -> int:
        """Makes whole pages private or shared; what they held is lost. Answers 0 or an errno."""
        try:
            fd, offset = self._machine.private_pages(gpa, size)
        except UsageError:
            told = self._machine.on_conversion
            if told is None:
                return errno.EINVAL if private else 0
            told(gpa, size, private)  # a matter of the guest's own page tables: only who migrates it needs to know
            return 0
        with self._lock:
            wanted = kvm.MEMORY_ATTRIBUTE_PRIVATE if private else 0
            address = self._kernel.memory.place(kvm.MemoryAttributes(gpa, size, wanted).encode())
            try:
                self._kernel.ioctl(self._machine.vm_fd, kvm.KVM_SET_MEMORY_ATTRIBUTES, address)
            except OSError as error:
                return errno.EAGAIN if error.errno in _TRANSIENT else errno.EINVAL
            finally:
                self._kernel.memory.release(address)
            if private:
                memory = self._machine.guest_memory
                if memory is None:
                    return 0
                part = memory.find(gpa, size)
                fd, offset = memory.fd, part.offset + gpa - part.gpa
            try:
                self._kernel.discard(fd, offset, size)
            except OSError as error:  # the pages stay held: a matter of memory, not of the guest
                log.warning("%d bytes at 0x%x are held twice: %s", size, gpa, error.strerror)
        return 0
