"""What one identity may use at once. The configuration's `limits.*` hold for everybody, an identity's own go before."""

from __future__ import annotations

from sev.records import record


@record
class IdentityLimits:
    """Limits that the configuration gives to one identity; None: what `limits.*` says, for its role.

    Attributes:
        connections: Open connections.
        calls: Calls in flight, streams included.
        guests: Guests in any state.
        guest_memory: Bytes of guest memory.
        watches: Streams of guests and of events.
        launches_per_minute: Guests created within a minute, of any type.
        bytes_in_flight: Bytes of requests that have been received and are not done with, uploads included.
    """

    connections: int | None = None
    calls: int | None = None
    guests: int | None = None
    guest_memory: int | None = None
    watches: int | None = None
    launches_per_minute: int | None = None
    bytes_in_flight: int | None = None


NO_LIMITS_OF_ITS_OWN = IdentityLimits()
"""Of an identity for which the configuration's `limits.*` hold."""
