"""Launch drivers for the process that owns the VM, and typed platform commands.

`Snp` launches a SEV-SNP guest in this process through a `Kernel` (sev.launch.seam): the real one is
`sev.launch.linux.LinuxKernel`. `Sev` and `SevEs` launch guests of the older generations, `Plain` makes an ordinary VM
in the same steps. `SevDevice` issues the commands of /dev/sev. Each is loaded when it is asked for: a process that
launches needs no platform command, and the reverse.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.launch.plain import Plain
    from sev.launch.platform import SevDevice
    from sev.launch.sev import Sev, SevEs
    from sev.launch.snp import Snp

__all__ = ["Plain", "Sev", "SevDevice", "SevEs", "Snp"]

_HOMES = {"Plain": "plain", "Sev": "sev", "SevDevice": "platform", "SevEs": "sev", "Snp": "snp"}


def __getattr__(name: str) -> object:
    """A public name, from the module that it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
