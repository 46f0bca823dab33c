"""Hosted guests: registry, launch state machine, memory. The daemon owns these VMs; clients drive them step by step."""

from __future__ import annotations

from sevd.guests.limits import Limits
from sevd.guests.model import CreateGuest, Guest, GuestState, GuestType, PageType, Region

__all__ = ["CreateGuest", "Guest", "GuestState", "GuestType", "Limits", "PageType", "Region"]
