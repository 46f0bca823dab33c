"""What the daemon answers, as plain values: hosts, SNP status, endorsements, events.

Every class has `document()`, the JSON form that commands print: snake_case names, byte strings in lower-case hex,
times in RFC 3339, TCBs by component with `raw`, and null for what is not known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from sev.wire import rfc3339, tcb, time, word

if TYPE_CHECKING:
    from sev.abi.tcb import TcbVersion
    from sev.v1 import endorsement_pb2, host_pb2, snp_platform_pb2


@dataclass(frozen=True, slots=True)
class AsidUse:
    """How many address space identifiers exist, and how many of them are bound to a guest."""

    total: int
    in_use: int

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {"total": self.total, "in_use": self.in_use}


@dataclass(frozen=True, slots=True)
class HostInfo:
    """What a host is. Texts are empty, and `chip_id` is, where the daemon does not know."""

    product: str
    simulated: bool
    firmware: str
    api_version: str
    kernel: str
    sev_asids: AsidUse
    sev_es_asids: AsidUse
    chip_id: bytes
    technologies: tuple[str, ...]
    missing: tuple[str, ...]
    device_health: str
    daemon_version: str
    guest_count: int
    cpu_family: int
    cpu_model: int
    cpu_stepping: int

    @classmethod
    def from_message(cls, message: host_pb2.Host) -> HostInfo:
        """The host that a message describes."""
        from sev.v1 import host_pb2

        version = message.firmware_version
        return cls(
            product=message.product,
            simulated=message.simulated,
            firmware=message.firmware,
            api_version=f"{version.major}.{version.minor}" if message.HasField("firmware_version") else "",
            kernel=message.kernel,
            sev_asids=AsidUse(message.sev_asids.total, message.sev_asids.in_use),
            sev_es_asids=AsidUse(message.sev_es_asids.total, message.sev_es_asids.in_use),
            chip_id=message.chip_id,
            technologies=tuple(message.technologies),
            missing=tuple(message.missing),
            device_health=word(host_pb2.DeviceHealth, "DEVICE_HEALTH_", message.device_health),
            daemon_version=message.daemon_version,
            guest_count=message.guest_count,
            cpu_family=message.cpu_family,
            cpu_model=message.cpu_model,
            cpu_stepping=message.cpu_stepping,
        )

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev host show --json` prints it."""
        return {
            "product": self.product or None,
            "simulated": self.simulated,
            "firmware": self.firmware or None,
            "api_version": self.api_version or None,
            "kernel": self.kernel or None,
            "asids": {"sev": self.sev_asids.document(), "sev_es": self.sev_es_asids.document()},
            "chip_id": self.chip_id.hex() or None,
            "technologies": list(self.technologies),
            "missing": list(self.missing),
            "device_health": self.device_health,
            "guest_count": self.guest_count,
            "cpu": {"family": self.cpu_family, "model": self.cpu_model, "stepping": self.cpu_stepping},
            "daemon_version": self.daemon_version,
        }


@dataclass(frozen=True, slots=True)
class SnpStatus:
    """SNP_PLATFORM_STATUS, decoded. `committed_tcb` is None where no report tells it; `raw` has 32 bytes."""

    state: str
    firmware: str
    api_version: str
    guest_count: int
    current_tcb: TcbVersion
    reported_tcb: TcbVersion
    committed_tcb: TcbVersion | None
    mask_chip_id: bool
    mask_chip_key: bool
    vlek_loaded: bool
    rmp_initialized: bool
    alias_check_complete: bool
    feature_info: bool
    rapl_dis: bool
    ciphertext_hiding_cap: bool
    ciphertext_hiding_en: bool
    raw: bytes

    @classmethod
    def from_message(cls, message: snp_platform_pb2.SnpStatus) -> SnpStatus:
        """The status that a message describes."""
        from sev.v1 import snp_platform_pb2

        version = message.firmware_version
        return cls(
            state=word(snp_platform_pb2.SnpState, "SNP_STATE_", message.state),
            firmware=f"{version.major}.{version.minor}.{version.build}",
            api_version=f"{version.major}.{version.minor}",
            guest_count=message.guest_count,
            current_tcb=tcb(message.current_tcb),
            reported_tcb=tcb(message.reported_tcb),
            committed_tcb=tcb(message.committed_tcb) if message.HasField("committed_tcb") else None,
            mask_chip_id=message.mask_chip_id,
            mask_chip_key=message.mask_chip_key,
            vlek_loaded=message.vlek_loaded,
            rmp_initialized=message.rmp_initialized,
            alias_check_complete=message.alias_check_complete,
            feature_info=message.feature_info,
            rapl_dis=message.rapl_dis,
            ciphertext_hiding_cap=message.ciphertext_hiding_cap,
            ciphertext_hiding_en=message.ciphertext_hiding_en,
            raw=message.raw,
        )

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev snp status --json` prints it."""
        return {
            "state": self.state,
            "firmware": self.firmware,
            "api_version": self.api_version,
            "guest_count": self.guest_count,
            "current_tcb": self.current_tcb.document(),
            "reported_tcb": self.reported_tcb.document(),
            "committed_tcb": self.committed_tcb.document() if self.committed_tcb else None,
            "mask_chip_id": self.mask_chip_id,
            "mask_chip_key": self.mask_chip_key,
            "vlek_loaded": self.vlek_loaded,
            "rmp_initialized": self.rmp_initialized,
            "alias_check_complete": self.alias_check_complete,
            "feature_info": self.feature_info,
            "rapl_dis": self.rapl_dis,
            "ciphertext_hiding_cap": self.ciphertext_hiding_cap,
            "ciphertext_hiding_en": self.ciphertext_hiding_en,
            "raw": self.raw.hex(),
        }


@dataclass(frozen=True, slots=True)
class Endorsement:
    """One certificate or list: `kind` is ark, ask, asvk, vcek, vlek or crl; `tcb` for VCEK and VLEK only."""

    kind: str
    der: bytes
    tcb: TcbVersion | None
    origin: str

    @classmethod
    def from_message(cls, message: endorsement_pb2.Endorsement) -> Endorsement:
        """The certificate in a message."""
        from sev.v1 import endorsement_pb2

        return cls(
            kind=word(endorsement_pb2.EndorsementKind, "ENDORSEMENT_KIND_", message.kind),
            der=message.der,
            tcb=tcb(message.tcb) if message.HasField("tcb") else None,
            origin=message.origin,
        )

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "kind": self.kind,
            "tcb": self.tcb.document() if self.tcb else None,
            "origin": self.origin,
            "bytes": len(self.der),
        }


@dataclass(frozen=True, slots=True)
class Endorsements:
    """The certificates at hand for a chip, its certificate table for guests, and what is missing for a chain."""

    endorsements: tuple[Endorsement, ...]
    certificate_table: bytes
    missing: tuple[str, ...]
    simulated: bool

    @classmethod
    def from_message(cls, message: endorsement_pb2.GetEndorsementsResponse) -> Endorsements:
        """The certificates in a message."""
        return cls(
            tuple(Endorsement.from_message(one) for one in message.endorsements),
            message.certificate_table,
            tuple(message.missing),
            message.simulated,
        )

    def of_kind(self, kind: str) -> Endorsement | None:
        """The first of this kind; None if there is none."""
        return next((one for one in self.endorsements if one.kind == kind), None)

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "endorsements": [one.document() for one in self.endorsements],
            "certificate_table_bytes": len(self.certificate_table),
            "missing": list(self.missing),
            "simulated": self.simulated,
        }


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on a host."""

    sequence: int
    event_time: datetime | None
    kind: str
    guest_id: str
    message: str
    simulated: bool
    details: dict[str, str] = field(hash=False)

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
