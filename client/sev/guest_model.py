"""What the daemon answers about guests, as plain values; JSON forms as in `sev.model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.records import record
from sev.wire import rfc3339, time, word

if TYPE_CHECKING:
    from datetime import datetime

    from sev.v1 import guest_pb2, simulator_pb2


@record
class Guest:
    """A hosted guest.

    `launch_digest` has 48 bytes of an SNP guest from state "ready" on, 32 of an SEV or SEV-ES guest from "measured" on
    (where the host can tell), and none before; a plain guest never has one. `measurement` is what LAUNCH_MEASURE
    answered, 48 bytes, of an SEV or SEV-ES guest from "measured" on. `protected` is true if its technology protects it
    from its host: not where there is none, nor on a simulated host.
    """

    guest_id: str
    type: str
    state: str
    owner: str
    vcpu_count: int
    memory_bytes: int
    policy: int
    launch_digest: bytes
    asid: int
    create_time: datetime | None
    failure: str
    simulated: bool
    label: str
    updated_pages: int
    protected: bool = False
    measurement: bytes = b""

    @classmethod
    def from_message(cls, message: guest_pb2.Guest) -> Guest:
        """The guest that a message describes."""
        from sev.v1 import guest_pb2

        return cls(
            guest_id=message.guest_id,
            type=word(guest_pb2.GuestType, "GUEST_TYPE_", message.type).replace("_", "-"),
            state=word(guest_pb2.GuestState, "GUEST_STATE_", message.state),
            owner=message.owner,
            vcpu_count=message.vcpu_count,
            memory_bytes=message.memory_bytes,
            policy=message.policy,
            launch_digest=message.launch_digest,
            asid=message.asid,
            create_time=time(message.create_time) if message.HasField("create_time") else None,
            failure=message.failure,
            simulated=message.simulated,
            label=message.label,
            updated_pages=message.updated_pages,
            protected=message.protected,
            measurement=message.measurement,
        )

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev guest show --json` prints it."""
        return {
            "guest_id": self.guest_id,
            "type": self.type,
            "state": self.state,
            "owner": self.owner,
            "vcpu_count": self.vcpu_count,
            "memory_bytes": self.memory_bytes,
            "policy": f"{self.policy:#x}" if self.policy else None,
            "launch_digest": self.launch_digest.hex() or None,
            "asid": self.asid or None,
            "create_time": rfc3339(self.create_time),
            "failure": self.failure or None,
            "simulated": self.simulated,
            "label": self.label or None,
            "updated_pages": self.updated_pages,
            "protected": self.protected,
            "measurement": self.measurement.hex() or None,
        }


@record
class LaunchedGuest:
    """A guest that was launched, or measured, and the digest that it ought to have.

    `secret_gpa` and `secret_size` are the area for secrets that the firmware image of an SEV or SEV-ES guest names; 0
    where it names none.
    """

    guest: Guest
    expected_digest: bytes
    secret_gpa: int = 0
    secret_size: int = 0

    @property
    def as_expected(self) -> bool:
        """Whether the firmware measured what was predicted."""
        return self.guest.launch_digest == self.expected_digest

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev guest launch --json` prints it."""
        out: dict[str, object] = {
            "guest_id": self.guest.guest_id,
            "type": self.guest.type,
            "state": self.guest.state,
            "launch_digest": self.guest.launch_digest.hex(),
            "expected_digest": self.expected_digest.hex(),
        }
        if self.guest.measurement:
            out["measurement"] = self.guest.measurement.hex()
            out["secret_gpa"] = f"{self.secret_gpa:#x}" if self.secret_gpa else None
            out["secret_size"] = self.secret_size or None
        return out


@record
class GuestReport:
    """An attestation report (1184 bytes) and the certificate table that the host hands to guests."""

    report: bytes
    certificate_table: bytes

    @classmethod
    def from_message(cls, message: simulator_pb2.RequestGuestReportResponse) -> GuestReport:
        """The report in a message."""
        return cls(message.report, message.certificate_table)
