"""Hosted guests: registry, launch state machine, memory. The daemon owns these VMs; clients drive them step by step.

Names are loaded when they are asked for: a worker needs the values here, and none of the daemon's machinery.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sevd.guests.limits import Limits
    from sevd.guests.machine import KeyRequest, SimulatedView
    from sevd.guests.memory import MemoryLoader
    from sevd.guests.model import CreateGuest, Guest, GuestState, GuestType, PageType, Region
    from sevd.guests.service import Guests
    from sevd.guests.watch import Watch

__all__ = [
    "CreateGuest",
    "Guest",
    "GuestState",
    "GuestType",
    "Guests",
    "KeyRequest",
    "Limits",
    "MemoryLoader",
    "PageType",
    "Region",
    "SimulatedView",
    "Watch",
]

_HOMES = {
    "Guests": "service",
    "KeyRequest": "machine",
    "Limits": "limits",
    "MemoryLoader": "memory",
    "SimulatedView": "machine",
    "Watch": "watch",
}


def __getattr__(name: str) -> object:
    """A public name, from the module that it lives in."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'model')}"), name)
