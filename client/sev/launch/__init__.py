"""Launch drivers for the process that owns the VM, and typed platform commands.

`Snp` launches a SEV-SNP guest in this process through a `Kernel` (sev.launch.seam): the real one is
`sev.launch.linux.LinuxKernel`. `SevDevice` issues the commands of /dev/sev.
"""

from __future__ import annotations

from sev.launch.platform import SevDevice
from sev.launch.snp import Snp

__all__ = ["SevDevice", "Snp"]
