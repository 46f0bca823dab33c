"""The software SEV host: firmware, /dev/sev, KVM's SEV side, and simulated processes on top. It protects nothing."""

from __future__ import annotations

from sevd.simulator.simulator import Simulator

__all__ = ["Simulator"]
