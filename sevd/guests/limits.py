"""What one identity may hold. Every limit has a default, a unit and a reason."""

from __future__ import annotations

from sev.records import record


@record
class Limits:
    """Limits per identity that has none of its own, unless said otherwise.

    Attributes:
        guests: Guests in any state, FAILED and LOST ones included: each may hold an ASID until it is deleted.
        memory_bytes: Bytes of guest memory and firmware regions of all its guests together.
        launches_per_minute: Guests created within a minute.
        vcpus_per_guest: vCPUs of one guest; each costs one measured page and a descriptor.
        regions_per_update: Regions in one update call; one call is one message.
        watches: Watch streams open at once.
        watch_backlog: Guests whose change one watch stream has not fetched yet; beyond that the stream ends.
        chunk_bytes: Bytes of a launch update that go to the device in one piece (of everybody): the time for which
            the other guests wait. 2 MiB is hashed in about 5 ms.
    """

    guests: int = 64
    memory_bytes: int = 64 << 30
    vcpus_per_guest: int = 512
    regions_per_update: int = 4096
    watches: int = 32
    watch_backlog: int = 1024
    chunk_bytes: int = 2 << 20
    launches_per_minute: int = 240
