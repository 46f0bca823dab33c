"""The worker process of a real host: `python -I -m sevd.worker FD` (see sevd.worker.process)."""

from __future__ import annotations

import os

from sev.launch.linux import LinuxKernel
from sevd.worker.process import main

if __name__ == "__main__":
    # What is left belongs to the kernel: an interpreter that tidies up first only takes longer.
    os._exit(main(lambda _: lambda _: (LinuxKernel(), None)))
