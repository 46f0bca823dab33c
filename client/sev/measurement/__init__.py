"""Expected launch digests: what a guest's attestation report must show as its measurement.

    firmware = Path("OVMF.fd").read_bytes()
    digest = sev.measurement.snp_launch_digest(firmware, vcpus=4, vcpu_type="EPYC-v4")

Nothing here opens a file, a device or a socket. Everything is loaded when first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.measurement.plan import LaunchPlan, Region, Step, snp_launch_digest, snp_ovmf_hash, snp_plan

__all__ = ["LaunchPlan", "Region", "Step", "snp_launch_digest", "snp_ovmf_hash", "snp_plan"]


def __getattr__(name: str) -> object:
    """Loads a public name on first use (PEP 562)."""
    if name in __all__:
        from sev.measurement import plan

        return getattr(plan, name)
    raise AttributeError(f"module 'sev.measurement' has no attribute {name!r}")
