"""Events of a host as plain values; JSON form as in `sev.model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.records import record
from sev.wire import rfc3339, time

if TYPE_CHECKING:
    from datetime import datetime

    from sev.v1 import host_pb2


@record
class Event:
    """Something that happened on a host."""

    sequence: int
    event_time: datetime | None
    kind: str
    guest_id: str
    message: str
    simulated: bool
    details: dict[str, str]

    @classmethod
    def from_message(cls, message: host_pb2.Event) -> Event:
        """The event in a message."""
        return cls(
            message.sequence,
            time(message.event_time) if message.HasField("event_time") else None,
            message.kind,
            message.guest_id,
            message.message,
            message.simulated,
            dict(message.details),
        )

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "sequence": self.sequence,
            "event_time": rfc3339(self.event_time),
            "kind": self.kind,
            "guest_id": self.guest_id or None,
            "message": self.message,
            "simulated": self.simulated,
            "details": dict(self.details),
        }
