"""The software SEV host: firmware, /dev/sev, KVM's SEV side, and simulated processes on top. It protects nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sevd.simulator.simulator import Simulator

__all__ = ["Simulator"]


def __getattr__(name: str) -> object:
    """Loads the model when it is asked for: who only talks to a simulator elsewhere needs nothing of it."""
    if name == "Simulator":
        from sevd.simulator.simulator import Simulator

        return Simulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
