"""The worker process of a simulated host: `python -I -m sevd.daemon_worker FD` (see sevd.worker.process).

A composition root as sevd.daemon is: these two alone know the simulator. Its settings have `simulator` too: the
directory of a running sevd-simulator.
"""

from __future__ import annotations

import os
from pathlib import Path

from sev.launch.linux import LinuxKernel
from sevd.guests.model import GuestType
from sevd.simulator.overlay import OverlayKernel
from sevd.worker import wire
from sevd.worker.process import main
from sevd.worker.simulated import RemoteView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.launch.seam import Kernel
    from sevd.guests.machine import SimulatedView
    from sevd.worker.process import Kernels


def kernels(settings: dict[str, object]) -> Kernels:
    """The simulated KVM on the real one where that is there; for plain guests the real one alone."""
    directory, kvm_path = Path(wire.text(settings, "simulator")), wire.text(settings, "kvm")

    def kernel(kind: GuestType) -> tuple[Kernel, SimulatedView | None]:
        if kind is GuestType.PLAIN:
            return LinuxKernel(), None
        overlay = OverlayKernel(directory, kvm_path)
        return overlay, RemoteView(overlay)

    return kernel


if __name__ == "__main__":
    # The simulator reads and writes this process's memory, as a kernel would.
    os._exit(main(kernels, dumpable=True))
