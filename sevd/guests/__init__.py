"""Hosted guests: registry, launch state machine, memory. The daemon owns these VMs; clients drive them step by step."""

from __future__ import annotations

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
