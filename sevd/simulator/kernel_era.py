"""Kernel releases whose /dev/sev answers differently, as one table (drivers/crypto/ccp/sev-dev.c, by release).

    A    6.10 to 6.15     SNP commands need SNP; implicit INIT of legacy commands stays
    B    6.16 to 6.18     implicit initialisation of SNP too, and shutdown after the command
    B2   late 6.18 to 7.0 as B, but SNP_PLATFORM_STATUS asks the firmware as it is
    C    7.1.13, 7.2, 7.3, and 6.12.107 through backports

They differ in what happens while the platform, or SNP, is not initialised; on a host that is up they all answer alike.
What is said of 7.3 holds for the rest of the simulated kernel in every era.
"""

from __future__ import annotations

from sev.abi import sev_device
from sev.records import record

AS_IS = "as-is"
"""The firmware is asked whatever the state."""
ENODEV = "enodev"
"""ENODEV, after the tests for data and for write access."""
EINVAL = "einval"
"""EINVAL, before all other tests."""
AROUND = "around"
"""SNP is initialised before the command and shut down after it."""


@record
class KernelEra:
    """What one generation of kernels does.

    Attributes:
        name: As --kernel-era takes it.
        release: As uname tells it.
        without_snp: What each SNP command of /dev/sev does while SNP is not initialised.
        init_with_snp: The implicit INIT of legacy commands initialises SNP first, and tells a failure as status
            INVALID_PLATFORM_STATE instead of INIT's own.
        shutdown_after: What was initialised for one command is shut down after it, SNP included.
        export_inits_first: PDH_CERT_EXPORT tests for write access and initialises before it reads its structure.
        masks_es_at_snp_svn: SNP security version in CURRENT_TCB from which SEV-ES VMs are no longer offered, by CPU
            family (AMD-SB-3023); empty where the kernel does not look.
        pins_within_ram: More guest memory than the machine has is EINVAL.
    """

    name: str
    release: str
    without_snp: dict[int, str]
    init_with_snp: bool
    shutdown_after: bool
    export_inits_first: bool
    masks_es_at_snp_svn: dict[int, int]
    pins_within_ram: bool = False


def _rules(status: str, commit: str, change: str) -> dict[int, str]:
    return {
        sev_device.SNP_PLATFORM_STATUS: status,
        sev_device.SNP_COMMIT: commit,
        sev_device.SNP_SET_CONFIG: change,
        sev_device.SNP_VLEK_LOAD: change,
    }


ERA_A = KernelEra(
    name="A",
    release="6.14.0-simulated",
    without_snp=_rules(EINVAL, EINVAL, EINVAL),
    init_with_snp=False,
    shutdown_after=False,
    export_inits_first=True,
    masks_es_at_snp_svn={},
)
ERA_B = KernelEra(
    name="B",
    release="6.17.8-simulated",
    without_snp=_rules(AROUND, AROUND, AROUND),
    init_with_snp=True,
    shutdown_after=True,
    export_inits_first=False,
    masks_es_at_snp_svn={},
)
ERA_B2 = KernelEra(
    name="B2",
    release="6.19.6-simulated",
    without_snp=_rules(AS_IS, AROUND, AROUND),
    init_with_snp=True,
    shutdown_after=True,
    export_inits_first=False,
    masks_es_at_snp_svn={},
)
ERA_C = KernelEra(
    name="C",
    release="7.3.0-simulated",
    without_snp=_rules(AS_IS, AS_IS, ENODEV),
    init_with_snp=False,
    shutdown_after=True,
    export_inits_first=False,
    masks_es_at_snp_svn={0x19: 0x1B, 0x1A: 4},
    pins_within_ram=True,
)

ERAS = {era.name: era for era in (ERA_A, ERA_B, ERA_B2, ERA_C)}
DEFAULT = "C"
