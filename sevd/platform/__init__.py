"""Platform logic without gRPC: what the host is, what the SNP platform says, and changes to it."""

from __future__ import annotations

from sevd.platform.device import PlatformDevice
from sevd.platform.host import HostPlatform
from sevd.platform.snp import SnpPlatform
from sevd.platform.views import AsidUse, DeviceHealth, FirmwareVersion, HostView, SnpState, SnpStatusView

__all__ = [
    "AsidUse",
    "DeviceHealth",
    "FirmwareVersion",
    "HostPlatform",
    "HostView",
    "PlatformDevice",
    "SnpPlatform",
    "SnpState",
    "SnpStatusView",
]
