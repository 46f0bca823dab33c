"""A pytest plugin that takes one half of the library away: SEVD_HALF=sev has no module of SNP, SEVD_HALF=snp none of SEV.

    SEVD_HALF=snp python -m pytest -p tests.support.half tests/unit/attestation

So a build with one half alone is tried without making one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

SEV = (
    "sev.abi.amd_certificate", "sev.abi.kvm_sev_legacy", "sev.abi.legacy_report", "sev.abi.sev_certificate",
    "sev.abi.sev_policy", "sev.attestation.legacy", "sev.certs.amd_sev_roots", "sev.certs.amd_sev_signatures",
    "sev.certs.sev_chain", "sev.certs.sev_roots", "sev.certs.sev_signatures", "sev.certs.show_sev", "sev.certs.tree_sev",
    "sev.launch.sev",
    "sev.launch.sev_migration", "sev.measurement.legacy", "sev.session", "sev.cli.measure_legacy",
    "sev.cli.measurement", "sev.cli.platform", "sev.cli.platform_export", "sev.cli.secret",
    "sev.cli.session", "sev.cli.vmsa", "sev.cli.vmsa_sevctl", "sev.aio_migration", "sev.migration",
    "sev.migration_operations", "sev.sev_operations",
)  # fmt: skip
SNP = (
    "sev.abi.cert_table", "sev.abi.cpuid_page", "sev.abi.guest_device", "sev.abi.guest_message", "sev.abi.page_info",
    "sev.abi.policy", "sev.abi.report", "sev.abi.report_fields", "sev.abi.report_text", "sev.abi.tcb",
    "sev.attestation.appraisal", "sev.attestation.checks", "sev.attestation.collateral", "sev.attestation.evidence", "sev.attestation.policy",
    "sev.attestation.rules", "sev.attestation.values", "sev.attestation.verification", "sev.certs.chain", "sev.certs.crl",
    "sev.certs.der", "sev.certs.extensions", "sev.certs.files", "sev.certs.names", "sev.certs.roots", "sev.certs.tree_x509", "sev.certs.x509", "sev.guest",
    "sev.launch.snp", "sev.measurement.digest", "sev.measurement.id_block", "sev.measurement.plan", "sev.cli.attest",
    "sev.cli.attest_check",
    "sev.cli.id_block", "sev.cli.snp",
)  # fmt: skip
"""Modules of the library that are of one half alone; the others are shared."""

ABSENT = {"sev": SNP, "snp": SEV}
"""What is missing where only this half is there."""


def is_absent(name: str, absent: Sequence[str]) -> bool:
    """Whether a module is one of these, or lies in one of these packages."""
    return any(name == one or name.startswith(f"{one}.") for one in absent)


class Absent(MetaPathFinder):
    """Finds that some modules are not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> None:
        """Raises ModuleNotFoundError for a module that is absent; finds nothing itself."""
        if is_absent(fullname, self.names):
            raise ModuleNotFoundError(f"{fullname} is not in this half", name=fullname)


if half := os.environ.get("SEVD_HALF"):
    with contextlib.suppress(ImportError):
        from hypothesis import settings

        # Few examples: what is asked here is whether the tests find their modules.
        settings.register_profile("half", max_examples=5, deadline=None)
        settings.load_profile("half")
    loaded = [name for name in sys.modules if name == "sev" or name.startswith("sev.")]
    assert not loaded, loaded
    sys.meta_path.insert(0, Absent(ABSENT[half]))
