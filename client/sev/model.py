"""What a host is, as a plain value. What it answers otherwise is in the modules beside this one.

Every class of `sev.model`, `sev.event_model`, `sev.snp_model`, `sev.endorsement_model` and `sev.guest_model` has
`document()`, the JSON form that commands print: snake_case names, byte strings in lower-case hex, times in RFC 3339,
TCBs by component with `raw`, and null for what is not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.records import record
from sev.wire import word

if TYPE_CHECKING:
    from sev.snp_model import DesiredPlatform
    from sev.v1 import host_pb2


@record
class AsidUse:
    """How many address space identifiers exist, and how many of them are bound to a guest."""

    total: int
    in_use: int

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {"total": self.total, "in_use": self.in_use}


@record
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
    kvm_vm_types: tuple[str, ...] = ()
    module_parameters: tuple[tuple[str, str], ...] = ()
    kernel_interface: str = ""
    kernel_era: str = ""
    desired_platform: DesiredPlatform | None = None

    @classmethod
    def from_message(cls, message: host_pb2.Host) -> HostInfo:
        """The host that a message describes."""
        from sev.v1 import host_pb2

        desired = None
        if message.HasField("desired_platform"):
            from sev.snp_model import DesiredPlatform

            desired = DesiredPlatform.from_message(message.desired_platform)
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
            kvm_vm_types=tuple(message.kvm_vm_types),
            module_parameters=tuple(sorted(message.module_parameters.items())),
            kernel_interface=message.kernel_interface,
            kernel_era=message.kernel_era,
            desired_platform=desired,
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
            "kvm_vm_types": list(self.kvm_vm_types),
            "module_parameters": dict(self.module_parameters),
            "kernel_interface": self.kernel_interface or None,
            "kernel_era": self.kernel_era or None,
            "desired_platform": self.desired_platform.document() if self.desired_platform else None,
            "daemon_version": self.daemon_version,
        }
