"""Named machines and what the checks must find on each: which fail, which are skipped, and the verdicts."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from sev.abi import kvm
from sev.abi.sev_device import PlatformStatus, SnpStatus
from sev.errors import DeviceMissing, UsageError
from sev.host import machine as places
from sev.host.result import FAILED, PASSED, SKIPPED, TECHNOLOGIES
from sev.host.verdict import CHECKS, check_host
from sev.products import cpuid_signature
from tests.support import machines
from tests.support.machines import FakeReader, brand, cpuinfo, genoa, silent, vendor

PARAMETERS = f"{places.KVM_AMD}/parameters"
PSP = f"{places.PSP}/0000:42:00.1"
NO_SNP = machines.GENOA_EAX & ~(1 << 4)


@dataclass(frozen=True)
class Case:
    """A machine; ids that must fail, exactly; some ids that must be skipped; for which technologies it is able."""

    reader: FakeReader
    fails: frozenset[str] = frozenset()
    skips: frozenset[str] = frozenset()
    able: tuple[str, ...] = ()


def case(reader: FakeReader, fails: str = "", skips: str = "", able: tuple[str, ...] = ()) -> Case:
    return Case(reader, frozenset(fails.split()), frozenset(skips.split()), able)


ALL = TECHNOLOGIES
BOTH_LEGACY = ("sev", "sev-es")

INTEL = FakeReader(
    files={
        "/proc/cmdline": "quiet",
        "/sys/devices/system/cpu/present": "0-7",
        "/sys/devices/system/cpu/online": "0-7",
        "/proc/cpuinfo": cpuinfo("GenuineIntel", "fpu vmx", model_name="Intel(R) Xeon(R)"),
    },
    leaves={
        (0, 0): vendor("GenuineIntel"),
        (1, 0): (0x806F8, 0, 0x7FFEFBFF, 0),
        **brand("Intel(R) Xeon(R) Platinum 8480+"),
    },
    devices={"/dev/kvm": "rw"},
    extensions={kvm.CAP_EXIT_HYPERCALL: 1 << 12},
)
LAPTOP = genoa().but(
    files={
        f"{PARAMETERS}/sev": "N", f"{PARAMETERS}/sev_es": "N", f"{PARAMETERS}/sev_snp": "N",
    },
    leaves={
        (1, 0): (cpuid_signature(0x19, 0x74, 1), 0, 0x7EFA320B, 0),
        **brand("AMD Ryzen 7 7840U w/ Radeon 780M Graphics"),
        (0x8000001F, 0): (0x1, 0x133, 0, 0),
    },
    msrs={places.SYSCFG: 0},
    devices={"/dev/sev": None},
)  # fmt: skip
VIRTUAL = genoa().but(
    files={
        f"{PARAMETERS}/sev": "N", f"{PARAMETERS}/sev_es": "N", f"{PARAMETERS}/sev_snp": "N",
        f"{places.CCP}/parameters/psp_init_on_probe": None, f"{places.CCP}/parameters/init_ex_path": None,
    },
    leaves={(1, 0): (cpuid_signature(0x19, 0x11, 1), 0, 1 << 31, 0), (0x8000001F, 0): (0, 0, 0, 0)},
    msrs=errno.EIO,
    devices={"/dev/sev": None},
)  # fmt: skip
CONFIDENTIAL = VIRTUAL.but(leaves={(0x8000001F, 0): (0x1A, 0x33, 0, 0)})
MILAN_OFF = genoa().but(
    files={f"{PARAMETERS}/sev_snp": "N"},
    leaves={
        (1, 0): (cpuid_signature(0x19, 0x01, 1), 0, 0x7EFA320B, 0),
        **brand("AMD EPYC 7763 64-Core Processor"),
        (0x8000001F, 0): (0x0101FD3B, 0x4173, 509, 100),
    },
    msrs={places.SYSCFG: 1 << 23, places.RMP_BASE: 0, places.RMP_END: 0},
    snp=DeviceMissing("SNP_PLATFORM_STATUS: SNP is not initialised on this host"),
    extensions={kvm.CAP_VM_TYPES: 0b01101},
)
ROME = genoa().but(
    files={f"{PARAMETERS}/sev_snp": "N"},
    leaves={
        (1, 0): (cpuid_signature(0x17, 0x31, 0), 0, 0x7EFA320B, 0),
        **brand("AMD EPYC 7742 64-Core Processor"),
        (0x8000001F, 0): (0xB, 0x173, 509, 6),
    },
    msrs={places.SYSCFG: 1 << 23},
    extensions={kvm.CAP_VM_TYPES: 0b01101},
)
OLD_KERNEL = genoa().but(
    files={f"{PARAMETERS}/sev_snp": None, f"{PARAMETERS}/ciphertext_hiding_asids": None},
    extensions={kvm.CAP_VM_TYPES: None, kvm.CAP_MEMORY_ATTRIBUTES: None, kvm.CAP_GUEST_MEMFD_FLAGS: None},
    attributes={0: None, 1: None, 2: None},
    snp=DeviceMissing("no such command"),
)
STRANGER = genoa().but(
    uid=1000,
    locked=8 << 20,
    msrs=errno.EACCES,
    devices={"/dev/sev": errno.EACCES, "/dev/kvm": errno.EACCES},
    files={
        "/proc/iomem": "00000000-00000000 : System RAM\n",
        f"{places.CGROUP}/misc.capacity": errno.EACCES,
        "/sys/firmware/sev/vulnerabilities/supported_mitigations": errno.EACCES,
    },
)

CASES: dict[str, Case] = {
    "Genoa, all green": case(genoa(), able=ALL),
    "an Intel server": case(
        INTEL,
        "cpu.vendor device.sev",
        "cpu.sev cpu.sev-snp bios.memory-encryption kvm.sev kvm.sev-snp firmware.answers snp.state",
    ),
    "an Arm server": case(
        FakeReader(machine="aarch64", files={"/proc/cmdline": ""}),
        "cpu.architecture device.sev device.kvm",
        "cpu.vendor cpu.sev kvm.sev",
    ),
    "an AMD laptop": case(
        LAPTOP,
        "cpu.brand cpu.line cpu.sev cpu.sev-es cpu.sev-snp cpu.vmpl bios.memory-encryption device.sev",
        "kvm.sev rmp.address snp.state",
    ),
    "a virtual machine with SEV hidden": case(
        VIRTUAL,
        "cpu.bare-metal cpu.sme cpu.sev cpu.sev-es cpu.sev-snp cpu.vmpl device.sev",
        "bios.memory-encryption bios.smm-lock kvm.sev",
    ),
    "a host below a hypervisor that lets it run SNP": case(
        genoa().but(leaves={(1, 0): (cpuid_signature(0x19, 0x11, 1), 0, 1 << 31, 0)}), able=ALL),
    "a confidential guest": case(CONFIDENTIAL, "cpu.bare-metal cpu.sme cpu.vmpl device.sev kvm.sev kvm.sev-es "
                                 "kvm.sev-snp module.ccp cpu.asids-sev cpu.asids-sev-es"),
    "Milan with SNP off in the BIOS": case(
        MILAN_OFF, "bios.snp bios.vmpl rmp.address kvm.sev-snp snp.state",
        "rmp.coverage snp.tcb kvm.type-sev-snp", BOTH_LEGACY,
    ),
    "Rome, which has no SNP": case(ROME, "cpu.sev-snp cpu.vmpl", "bios.snp snp.state kvm.sev-snp", BOTH_LEGACY),
    "sev=nosnp": case(
        genoa().but(
            files={"/proc/cmdline": "ro sev=debug,nosnp quiet", f"{PARAMETERS}/sev_snp": "N"},
            snp=DeviceMissing("SNP is not initialised"), extensions={kvm.CAP_VM_TYPES: 0b01101},
        ),
        "kernel.command-line kvm.sev-snp snp.state", "kvm.type-sev-snp", BOTH_LEGACY,
    ),
    "no RMP": case(
        genoa().but(msrs={places.RMP_BASE: 0, places.RMP_END: 0}, files={f"{PARAMETERS}/sev_snp": "N"},
                    snp=DeviceMissing("SNP is not initialised"), extensions={kvm.CAP_VM_TYPES: 0b01101}),
        "rmp.address kvm.sev-snp snp.state", "rmp.coverage", BOTH_LEGACY,
    ),
    "an RMP that does not cover all memory": case(
        genoa().but(msrs={places.RMP_END: 0x10_0000_0000 + 0x4000 + (32 << 30) // 256 - 1}),
        "rmp.coverage", able=BOTH_LEGACY,
    ),
    "an RMP that ends before it starts": case(
        genoa().but(msrs={places.RMP_END: 0x1000}), "rmp.address", "rmp.coverage", BOTH_LEGACY),
    "a segmented RMP": case(genoa().but(
        leaves={(0x8000001F, 0): (machines.GENOA_EAX | 1 << 23, 0x4173, 1006, 100)},
        msrs={places.RMP_CFG: 1 | 30 << 8, places.RMP_END: 0}), able=ALL),
    "an RMP that the firmware did not initialise": case(
        genoa().but(snp=SnpStatus(1, 55, 1, 2, 40, 0, 0, machines.TCB, machines.TCB)),
        "snp.rmp-initialized", "feature.ciphertext-hiding", BOTH_LEGACY,
    ),
    "no alias check": case(
        genoa().but(snp=SnpStatus(1, 55, 1, 1, 40, 0x60, 0, machines.TCB, machines.TCB)), "snp.alias-check", able=ALL),
    "firmware 1.49": case(
        genoa().but(platform=PlatformStatus(1, 49, 1, 0x100, 3, 0), snp=DeviceMissing("SNP is not initialised"),
                    files={f"{PARAMETERS}/sev_snp": "N"}, extensions={kvm.CAP_VM_TYPES: 0b01101}),
        "firmware.version kvm.sev-snp snp.state", able=BOTH_LEGACY,
    ),
    "another TCB is reported": case(
        genoa().but(snp=SnpStatus(1, 55, 1, 3, 40, 0x68, 0, machines.TCB, machines.TCB - (1 << 48))),
        "snp.tcb", able=ALL),
    "SMM not locked": case(genoa().but(msrs={places.HWCR: 0}), "bios.smm-lock"),
    "memory encryption off": case(genoa().but(msrs={places.SYSCFG: 0}),
                                  "bios.memory-encryption bios.snp bios.vmpl"),
    "the msr module not loaded": case(
        genoa().but(msrs=errno.ENOENT), "", "bios.memory-encryption bios.snp bios.smm-lock rmp.address", ALL),
    "ccp not loaded": case(
        genoa().but(files={name: None for name in genoa().files if name.startswith((places.CCP, places.PSP))},
                    devices={"/dev/sev": None}),
        "module.ccp device.sev", "psp.device firmware.answers",
    ),
    "kvm_amd not loaded": case(
        genoa().but(files={name: None for name in genoa().files if name.startswith(places.KVM_AMD)},
                    devices={"/dev/kvm": None}),
        "module.kvm-amd device.kvm", "kvm.sev kvm.sev-es kvm.sev-snp kvm.api kvm.type-sev-snp",
    ),
    "a kernel older than SNP": case(
        OLD_KERNEL, "kvm.sev-snp snp.state", "kvm.ciphertext-hiding-asids", BOTH_LEGACY),
    "SEV-ES held back by the kernel": case(
        genoa().but(extensions={kvm.CAP_VM_TYPES: 0b10101}), "kvm.type-sev-es", able=("sev", "sev-snp")),
    "all ASIDs for SEV without ES": case(
        genoa().but(leaves={(0x8000001F, 0): (machines.GENOA_EAX, 0x4173, 1006, 1)},
                    files={f"{places.CGROUP}/misc.capacity": "sev 1006\n"}),
        "cpu.asids-sev-es", "asids.sev-es", ("sev",)),
    "all ASIDs for SEV-ES": case(
        genoa().but(leaves={(0x8000001F, 0): (machines.GENOA_EAX, 0x4173, 1006, 1007)}),
        "cpu.asids-sev", "asids.sev", ("sev-es", "sev-snp")),
    "all ASIDs in use": case(
        genoa().but(files={f"{places.CGROUP}/misc.current": "sev 1\nsev_es 99\n"}), "asids.sev-es", able=("sev",)),
    "no misc controller": case(
        genoa().but(files={f"{places.CGROUP}/misc.capacity": None, f"{places.CGROUP}/misc.current": None}),
        "", "asids.sev asids.sev-es", ALL),
    "no IOMMU": case(
        genoa().but(files={**{name: None for name in genoa().files if "iommu" in name}, "/sys/class/iommu/dmar0/x": "",
                           "/proc/cmdline": "amd_iommu=off"}),
        "kernel.iommu", "kernel.iommu-mode", BOTH_LEGACY),
    "an IOMMU without SNP": case(
        genoa().but(files={"/sys/class/iommu/ivhd1/amd-iommu/features": "246577efa2254afa\n"}),
        "kernel.iommu", "kernel.iommu-mode", BOTH_LEGACY),
    "an IOMMU in passthrough": case(
        genoa().but(files={"/proc/cmdline": "iommu=pt"}), "kernel.iommu-mode", able=ALL),
    "processors offline": case(
        genoa().but(files={"/sys/devices/system/cpu/online": "0-95\n"}), "kernel.processors", able=ALL),
    "a secure processor that hangs": case(
        genoa().but(platform=silent(), snp=silent()), "firmware.answers snp.state", "firmware.version snp.tcb"),
    "a platform not initialised": case(
        genoa().but(platform=PlatformStatus(1, 55, 0, 0, 40, 0)), "firmware.state", "firmware.sev-es", ALL),
    "a platform without ES": case(
        genoa().but(platform=PlatformStatus(1, 55, 1, 0, 40, 0)), "firmware.sev-es", able=("sev", "sev-snp")),
    "an engineering sample": case(
        genoa().but(files={f"{PSP}/fused_part": "0", f"{PSP}/debug_lock_on": "0", f"{PSP}/anti_rollback_status": None}),
        "psp.fused psp.debug-lock", "psp.anti-rollback", ALL),
    "mitigations not verified": case(
        genoa().but(files={"/sys/firmware/sev/vulnerabilities/verified_mitigations": "0x5"}),
        "firmware.mitigations", able=ALL),
    "no CPUID, only /proc/cpuinfo": case(
        genoa().but(leaves=None), "", "cpu.vmpl cpu.c-bit cpu.asids-sev cpu.page-flush", ALL),
    "another user": case(
        STRANGER, "limits.memlock",
        "bios.snp rmp.address device.sev-read device.sev-write device.kvm-open kvm.api kvm.type-sev-snp "
        "firmware.answers snp.state asids.sev firmware.mitigations", ALL),
    "a /dev/sev without a driver": case(
        genoa().but(devices={"/dev/sev": errno.ENODEV}), "device.sev", "firmware.answers snp.state"),
    "no secure processor on the bus": case(
        genoa().but(files={name: None for name in genoa().files if name.startswith(f"{PSP}/")}),
        "psp.device", "psp.fused", ALL),
    "firmware initialised late, nothing extra offered": case(
        genoa().but(
            files={f"{places.CCP}/parameters/psp_init_on_probe": "N",
                   f"{PARAMETERS}/ciphertext_hiding_asids": "0"},
            attributes={kvm.SEV_ATTR_VMSA_FEATURES: 0},
            snp=SnpStatus(1, 55, 1, 3, 40, 0x20, 0, machines.TCB, machines.TCB)),
        "", "ccp.init kvm.ciphertext-hiding-asids feature.secure-tsc feature.ciphertext-hiding feature.debug-swap", ALL),
    "KVM without an interface": case(
        genoa().but(extensions=dict.fromkeys(genoa().extensions), attributes=dict.fromkeys(genoa().attributes)),
        "kvm.type-sev-snp", "kvm.interface feature.debug-swap", BOTH_LEGACY),
    "KVM that lacks a type": case(
        genoa().but(extensions={kvm.CAP_VM_TYPES: 0b01001}), "kvm.type-sev kvm.type-sev-snp", able=("sev-es",)),
    "CPUID without a C-bit or VMPLs": case(
        genoa().but(leaves={(0x8000001F, 0): (machines.GENOA_EAX, 0, 1006, 100)}),
        "cpu.c-bit cpu.vmpl-count", able=ALL),
    "nothing can be looked at": case(
        FakeReader(devices={"/dev/sev": errno.EACCES, "/dev/kvm": errno.EACCES}, uid=1000), "",
        "cpu.vendor cpu.sev kernel.command-line kvm.sev device.sev-read asids.sev"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_machine(name: str) -> None:
    wanted = CASES[name]
    checked = check_host(wanted.reader)
    results = {check.id: check for check in checked.checks}
    assert {check.id for check in checked.checks if check.result == FAILED} == wanted.fails
    skipped = {check.id for check in checked.checks if check.result == SKIPPED}
    assert wanted.skips <= skipped
    assert tuple(one.technology for one in checked.abilities if one.able) == wanted.able
    assert checked.able is bool(wanted.able)
    for check in checked.checks:
        assert check.reason, check.id
        assert check.remedy or check.result != FAILED, check.id
    for one in checked.abilities:
        assert bool(one.blocked_by) is not one.able
        assert {results[blocked].result for blocked in one.blocked_by} <= {FAILED, SKIPPED}


@pytest.mark.parametrize("technology", TECHNOLOGIES)
@pytest.mark.parametrize("name", CASES)
def test_for_one_technology(name: str, technology: str) -> None:
    wanted = CASES[name]
    checked = check_host(wanted.reader, technology)
    assert checked.able is (technology in wanted.able)
    assert len(checked.checks) >= 20
    assert all(technology in check.about for check in checked.checks)
    document = checked.document()
    assert document["able"] is checked.able
    assert document["for"] == technology


def test_every_check_is_met_with_each_of_its_results() -> None:
    """Across the machines, every check passes somewhere, and is failed or skipped somewhere for a reason of its own."""
    seen: dict[str, set[str]] = {check.id: set() for check in CHECKS}
    for one in CASES.values():
        for check in check_host(one.reader).checks:
            if not check.reason.startswith("not looked at"):
                seen[check.id].add(check.result)
    assert [name for name, results in seen.items() if PASSED not in results] == []
    only_passed = {name for name, results in seen.items() if results == {PASSED}}
    assert only_passed == {"rmp.segmented"}


def test_declarations() -> None:
    ids = [check.id for check in CHECKS]
    assert len(ids) == len(set(ids)) >= 60
    for check in CHECKS:
        assert set(check.after) <= set(ids)
        assert {*check.decides, *check.required} <= set(check.about) <= set(TECHNOLOGIES)
        assert not set(check.decides) & set(check.required)


def test_what_decides_needs_no_root() -> None:
    """All that another user may not look at, taken away: no check that decides is skipped for it."""
    decides = [check.id for check in CHECKS if check.decides]
    results = {check.id: check.result for check in check_host(STRANGER).checks}
    assert {results[name] for name in decides} == {PASSED}


def test_an_unknown_technology() -> None:
    with pytest.raises(UsageError, match="expected one of sev, sev-es, sev-snp"):
        check_host(genoa(), "snp")


def test_reasons_are_precise() -> None:
    def reason(reader: FakeReader, name: str) -> str:
        return next(check.reason + " " + check.remedy for check in check_host(reader).checks if check.id == name)

    assert "GenuineIntel" in reason(INTEL, "cpu.vendor")
    assert "Ryzen" in reason(LAPTOP, "cpu.brand")
    assert "hypervisor" in reason(VIRTUAL, "cpu.sev-snp")
    assert "sev attest check" in reason(CONFIDENTIAL, "cpu.bare-metal")
    assert "sev=debug,nosnp" in reason(CASES["sev=nosnp"].reader, "kernel.command-line")
    assert "1.49.3" in reason(CASES["firmware 1.49"].reader, "firmware.version")
    assert "(snp)" in reason(CASES["another TCB is reported"].reader, "snp.tcb")
    assert "covers 32 GiB, memory ends at 64.0 GiB" in reason(
        CASES["an RMP that does not cover all memory"].reader, "rmp.coverage"
    )
    assert "ivhd1" in reason(CASES["an IOMMU without SNP"].reader, "kernel.iommu")
    assert "AMD-SB-3023" in reason(CASES["SEV-ES held back by the kernel"].reader, "kvm.type-sev-es")
    assert "Run as root" in reason(STRANGER, "device.sev-read")
    assert "0x2" in reason(CASES["mitigations not verified"].reader, "firmware.mitigations")


PEERS = {
    # What the `ok` commands of other tools look at, and where it is here.
    "vendor and microcode support": "cpu.vendor",
    "EPYC": "cpu.brand",
    "SME": "cpu.sme",
    "SME enabled, SYSCFG bit 23": "bios.memory-encryption",
    "SEV": "cpu.sev",
    "SEV-ES": "cpu.sev-es",
    "SNP": "cpu.sev-snp",
    "SNP enabled, SYSCFG bit 24": "bios.snp",
    "VMPL": "cpu.vmpl",
    "VMPL enabled, SYSCFG bit 25": "bios.vmpl",
    "number of VMPLs": "cpu.vmpl-count",
    "physical address bit reduction, C-bit location": "cpu.c-bit",
    "number of encrypted guests": "cpu.asids-sev",
    "minimum ASID of SEV without ES": "cpu.asids-sev-es",
    "page flush MSR": "cpu.page-flush",
    "firmware 1.51": "firmware.version",
    "SEV initialised": "firmware.state",
    "SEV-ES initialised": "firmware.sev-es",
    "SNP initialised": "snp.state",
    "RMP addresses": "rmp.address",
    "RMP initialised": "snp.rmp-initialized",
    "alias check": "snp.alias-check",
    "/dev/sev readable": "device.sev-read",
    "/dev/sev writable": "device.sev-write",
    "KVM supported": "kvm.api",
    "kvm_amd.sev": "kvm.sev",
    "kvm_amd.sev_es": "kvm.sev-es",
    "kvm_amd.sev_snp": "kvm.sev-snp",
    "memlock limit": "limits.memlock",
    "platform TCB and reported TCB": "snp.tcb",
    "Secure TSC": "feature.secure-tsc",
    "ciphertext hiding": "feature.ciphertext-hiding",
}


def test_what_other_tools_look_at_is_looked_at_here() -> None:
    results = {check.id: check.result for check in check_host(genoa()).checks}
    assert {name for name, one in PEERS.items() if results.get(one) != PASSED} == set()
