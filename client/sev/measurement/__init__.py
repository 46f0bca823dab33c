"""Expected launch digests: what a guest's attestation report must show as its measurement.

    firmware = Path("OVMF.fd").read_bytes()
    digest = sev.measurement.snp_launch_digest(firmware, vcpus=4, vcpu_type="EPYC-v4")

Nothing here opens a file, a device or a socket.
"""

from __future__ import annotations

from sev.measurement.plan import LaunchPlan, Region, Step, snp_launch_digest, snp_ovmf_hash, snp_plan

__all__ = ["LaunchPlan", "Region", "Step", "snp_launch_digest", "snp_ovmf_hash", "snp_plan"]
