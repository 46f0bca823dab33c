"""Kernel releases that answer differently, as one table (Linux sources; eras differ in what they do before SNP is up).

Era C is Linux 7.1.13, 7.2, 7.3 and 6.12.107 and later; what is said of 7.3 holds for the rest of the layer too.
"""

from __future__ import annotations

from sev.abi import sev_device
from sev.records import record

AS_IS = "as-is"
"""The firmware is asked whatever the state."""
ENODEV = "enodev"
"""ENODEV while SNP is not initialised."""


@record
class KernelEra:
    """What one generation of kernels does.

    Attributes:
        name: Letter.
        release: As uname tells it.
        without_snp: What each SNP command of /dev/sev does while SNP is not initialised.
        masks_es_at_snp_svn: SNP security version in CURRENT_TCB from which SEV-ES VMs are no longer offered, by CPU
            family (AMD-SB-3023); empty where the kernel does not look.
    """

    name: str
    release: str
    without_snp: dict[int, str]
    masks_es_at_snp_svn: dict[int, int]


ERA_C = KernelEra(
    name="C",
    release="7.3.0-simulated",
    without_snp={
        sev_device.SNP_PLATFORM_STATUS: AS_IS,
        sev_device.SNP_COMMIT: AS_IS,
        sev_device.SNP_SET_CONFIG: ENODEV,
        sev_device.SNP_VLEK_LOAD: ENODEV,
    },
    masks_es_at_snp_svn={0x19: 0x1B, 0x1A: 4},
)

ERAS = {era.name: era for era in (ERA_C,)}
DEFAULT = "C"
