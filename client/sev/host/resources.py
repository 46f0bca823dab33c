"""Checks of what guests use up: ASIDs as the misc cgroup counts them, lockable memory; and known weaknesses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.host.machine import CGROUP
from sev.host.result import SEV, SEV_ES, SEV_SNP, Checks, Outcome, failed, passed, skipped

if TYPE_CHECKING:
    from sev.host.machine import Machine

CHECKS = Checks()
_check = CHECKS.check

VULNERABILITIES = "/sys/firmware/sev/vulnerabilities"
MEMLOCK_ENOUGH = 1 << 32
"""Bytes; a SEV guest's memory is locked as a whole."""


def _capacity(identifier: str, key: str, what: str, required: tuple[str, ...], after: str) -> None:
    @_check(identifier, "resources", f"free ASIDs for {what}", required=required, after=(after,))
    def look(machine: Machine) -> Outcome:
        capacity, current = machine.counters("misc.capacity"), machine.counters("misc.current")
        if capacity is None or key not in capacity:
            return skipped(
                f"{CGROUP}/misc.capacity does not tell: no unified cgroup with the controller misc at its root",
                "Mount cgroup2 and build the kernel with CONFIG_CGROUP_MISC to see how many are in use.",
            )
        total, used = capacity[key], (current or {}).get(key)
        if used is None:
            # The root's use is told on newer kernels only.
            return passed(f"{total} in all; how many are in use is not told")
        if used < total:
            return passed(f"{total - used} of {total}")
        return failed(f"all {total} are in use", f"End guests of {what}, or raise their share in the BIOS.")


_capacity("asids.sev", "sev", "SEV", (SEV,), "cpu.asids-sev")
_capacity("asids.sev-es", "sev_es", "SEV-ES and SEV-SNP", (SEV_ES, SEV_SNP), "cpu.asids-sev-es")


@_check("limits.memlock", "resources", "lockable memory", about=(SEV, SEV_ES), after=("cpu.sev",))
def _memlock(machine: Machine) -> Outcome:
    limit = machine.reader.memlock()
    if limit is None:
        return passed("unlimited")
    text = f"{limit >> 20} MiB"
    if not machine.reader.user():
        return passed(f"{text}; root with CAP_IPC_LOCK is not bound by it")
    if limit >= MEMLOCK_ENOUGH:
        return passed(text)
    return failed(
        f"{text} for uid {machine.reader.user()}: SEV and SEV-ES guests lock all their memory",
        "Raise RLIMIT_MEMLOCK (LimitMEMLOCK= of the unit, memlock in limits.conf) above the guest's memory.",
    )


@_check("firmware.mitigations", "resources", "mitigations verified", about=(SEV_SNP,), after=("device.sev",))
def _mitigations(machine: Machine) -> Outcome:
    if machine.names(VULNERABILITIES) is None:
        return skipped(f"there is no {VULNERABILITIES}: the kernel (7.3 and later) or the firmware does not offer it")
    supported = _hex(machine.text(f"{VULNERABILITIES}/supported_mitigations", 32))
    verified = _hex(machine.text(f"{VULNERABILITIES}/verified_mitigations", 32))
    if supported is None or verified is None:
        return skipped(f"{VULNERABILITIES} has values that are no numbers")
    left = supported & ~verified
    if not left:
        return passed(f"all that the firmware supports (0x{supported:x})")
    return failed(
        f"supported 0x{supported:x}, verified 0x{verified:x}: reports show 0x{left:x} as missing",
        f"Verify each by writing its one bit to {VULNERABILITIES}/verified_mitigations, as root.",
    )


def _hex(text: str | None) -> int | None:
    try:
        return int(text or "", 0)
    except ValueError:
        try:
            return int(text or "", 16)
        except ValueError:
            return None
