"""The worker process: `python -I -m sevd.worker FD`, where FD is the worker's end of a socket pair.

The first message there is the settings: `sev` and `kvm`, the devices, and `simulator`, the directory of a running
sevd-simulator or nothing. The worker answers that it is ready, and waits for its guest. This module alone knows which
kernel is below.
"""

from __future__ import annotations

import gc
import os
import socket
import sys

from sev.errors import SevError
from sev.launch.linux import LinuxKernel
from sev.launch.vcpu import allow_interrupts
from sevd.guests.model import GuestType
from sevd.worker import lockdown, run_link, wire
from sevd.worker.guest import WorkerGuest
from sevd.worker.server import ORPHAN, Server
from sevd.worker.vcpus import Vcpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.launch.seam import Kernel
    from sevd.guests.machine import SimulatedView


def main(argv: list[str] | None = None) -> int:
    """Runs the worker; answers its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or not arguments[0].isdecimal():
        sys.stderr.write("sevd.worker is started by sevd, with the number of a socket\n")
        return 2
    first = socket.socket(fileno=int(arguments[0]))
    lockdown.settle(first.fileno())
    try:
        settings, fds = wire.receive(first)
        wire.close_all(fds)
        server = compose(settings, first)
        wire.send(first, {"ready": True})
    except OSError:
        return ORPHAN
    except SevError as error:
        wire.send(first, {"error": wire.error_document(error)})
        return ORPHAN
    gc.freeze()
    return server.serve()


def compose(settings: dict[str, object], first: socket.socket) -> Server:
    """The server of a worker with these settings. Raises SevError."""
    sev_path, kvm_path = wire.text(settings, "sev"), wire.text(settings, "kvm")
    simulator = wire.text(settings, "simulator") if settings.get("simulator") else ""
    guest = WorkerGuest(_kernels(simulator, kvm_path), sev_path=sev_path, kvm_path=kvm_path)

    def created(server: Server) -> None:
        tell = getattr(guest.kernel, "fileno", None)
        server.lifeline = tell() if tell is not None else -1
        assert guest.kernel is not None
        assert guest.machine is not None
        vcpus = guest.vcpus = Vcpus(guest.kernel, guest.machine.vm)
        server.run = lambda connection: run_link.start(connection, vcpus)
        server.stop = vcpus.close
        allow_interrupts()
        lockdown.lock_down(dumpable=bool(simulator))

    return Server(guest, first, created)


def _kernels(simulator: str, kvm_path: str) -> Callable[[GuestType], tuple[Kernel, SimulatedView | None]]:
    """Which kernel a guest of a type stands on: plain guests always on the real one."""
    if not simulator:
        return lambda _: (LinuxKernel(), None)
    from pathlib import Path

    from sevd.simulator.overlay import OverlayKernel
    from sevd.worker.simulated import RemoteView

    def kernel(kind: GuestType) -> tuple[Kernel, SimulatedView | None]:
        if kind is GuestType.PLAIN:
            return LinuxKernel(), None
        overlay = OverlayKernel(Path(simulator), kvm_path)
        return overlay, RemoteView(overlay)

    return kernel


if __name__ == "__main__":
    # What is left belongs to the kernel: an interpreter that tidies up first only takes longer.
    os._exit(main())
