"""What every worker process does: settings, a guest, lockdown, service. Which kernel is below is its caller's choice.

Started as `python -I -m MODULE FD`, where FD is the worker's end of a socket pair. The first message there is the
settings: `sev` and `kvm`, the devices, and whatever else the module that was started understands. The worker answers
that it is ready, and waits for its guest.
"""

from __future__ import annotations

import gc
import socket
import sys

from sev.errors import SevError
from sev.launch.vcpu import allow_interrupts
from sevd.guests.model import LEGACY, GuestType
from sevd.worker import lockdown, run_link, wire
from sevd.worker.guest import WorkerGuest
from sevd.worker.server import ORPHAN, Server
from sevd.worker.vcpus import Vcpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.launch.seam import Kernel
    from sevd.guests.machine import SimulatedView

    Kernels = Callable[[GuestType], tuple[Kernel, SimulatedView | None]]


def main(kernels: Callable[[dict[str, object]], Kernels], *, dumpable: bool = False) -> int:
    """Runs the worker; answers its exit code.

    Args:
        kernels: Makes of the settings what answers the kernel for a type of guest, and the model's view where it is
            one. Raises SevError.
        dumpable: Others of the same user may look into the process (sevd.worker.lockdown).
    """
    arguments = sys.argv[1:]
    if len(arguments) != 1 or not arguments[0].isdecimal():
        sys.stderr.write("a worker is started by sevd, with the number of a socket\n")
        return 2
    first = socket.socket(fileno=int(arguments[0]))
    lockdown.settle(first.fileno())
    try:
        settings, fds = wire.receive(first)
        wire.close_all(fds)
        server = compose(settings, first, kernels(settings), dumpable=dumpable)
        wire.send(first, {"ready": True})
    except OSError:
        return ORPHAN
    except SevError as error:
        wire.send(first, {"error": wire.error_document(error)})
        return ORPHAN
    gc.freeze()
    return server.serve()


def compose(settings: dict[str, object], first: socket.socket, kernels: Kernels, *, dumpable: bool = False) -> Server:
    """The server of a worker with these settings. Raises SevError."""
    guest = WorkerGuest(kernels, sev_path=wire.text(settings, "sev"), kvm_path=wire.text(settings, "kvm"))

    def created(server: Server) -> None:
        tell = getattr(guest.kernel, "fileno", None)
        server.lifeline = tell() if tell is not None else -1
        assert guest.kernel is not None
        assert guest.machine is not None
        vcpus = guest.vcpus = Vcpus(guest.kernel, guest.machine.vm)
        server.run = lambda connection: run_link.start(connection, vcpus)
        server.stop = vcpus.close
        allow_interrupts()
        locks_memory = guest.card is not None and guest.card.request.type in LEGACY
        lockdown.lock_down(dumpable=dumpable, locks_memory=locks_memory)

    return Server(guest, first, created)
