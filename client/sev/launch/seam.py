"""What a process asks of the kernel, as a small protocol: open, ioctl, and the memory that ioctls point into.

The launch drivers (sev.launch.snp …) and the daemon's platform code are written against `Kernel`. `sev.launch.linux`
is the real one; the simulator offers another (`sevd.simulator`), with its own descriptor table and address space, so
that the very same driver code runs on both.

Addresses are integers of the process's address space. A structure is `place`d, its address goes into another structure
or into `ioctl`, and it is `read` back afterwards.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Memory(Protocol):
        """The address space of one process."""

        def place(self, data: bytes | bytearray | memoryview) -> int:
            """Puts data at an address of its own and answers that address.

            A bytearray or a writable memoryview is shared, not copied: the kernel's writes appear in it. Bytes are
            copied. The address is page-aligned if the size is a multiple of 4096. Valid until `release`.
            """

        def read(self, address: int, size: int) -> bytes:
            """Copies size bytes out. Raises OSError(EFAULT) if they are not all placed."""

        def write(self, address: int, data: bytes) -> None:
            """Copies data in. Raises OSError(EFAULT) if it does not fit what is placed there."""

        def release(self, address: int) -> None:
            """Gives an address back; what was placed there is the caller's alone again."""

    class Kernel(Protocol):
        """The kernel as one process sees it."""

        @property
        def memory(self) -> Memory:
            """The process's address space."""

        def open(self, path: str, flags: int) -> int:
            """open(2) of a device: a descriptor number. Raises OSError with the kernel's errno."""

        def close(self, fd: int) -> None:
            """close(2). Raises OSError(EBADF)."""

        def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
            """ioctl(2): `argument` is a value or an address in `memory`. Raises OSError with the kernel's errno.

            Structures are copied back by the kernel's own rules, also where an error is raised.
            """

        def ioctls(self, fd: int, request: int, arguments: Sequence[int]) -> tuple[int, int]:
            """The same ioctl with one argument after the other, until one fails: (how many succeeded, errno or 0).

            For commands that move page after page: what lies between this process and the kernel is crossed once.
            """

        def map(self, fd: int, size: int) -> memoryview:
            """mmap(2), shared and writable, of `size` bytes from the start of a descriptor: a vCPU's struct kvm_run.

            Raises OSError with the kernel's errno. Valid until `unmap`.
            """

        def unmap(self, view: memoryview) -> None:
            """Gives back what `map` answered; no view of it may be left in use."""

        def discard(self, fd: int, offset: int, size: int) -> None:
            """fallocate(2) with PUNCH_HOLE and KEEP_SIZE: frees whole pages of a memfd or guest_memfd, which read as
            zeros afterwards. Raises OSError with the kernel's errno."""
