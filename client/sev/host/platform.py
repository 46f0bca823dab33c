"""Checks of the devices and of what KVM and the firmware answer through them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from sev.abi import kvm, kvm_sev
from sev.abi import sev_device as abi
from sev.errors import DeviceMissing, SevError
from sev.host import era
from sev.host.machine import CCP, KERNEL_LOG
from sev.host.result import SEV, SEV_ES, SEV_SNP, TECHNOLOGIES, Checks, NotSeen, Outcome, failed, passed, skipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.host.machine import Machine

CHECKS = Checks()
_check = CHECKS.check

SNP_API = (1, 51)
"""The oldest firmware API with SNP as the kernel uses it."""

_FIRMWARE = (
    "Update the SEV firmware: the package linux-firmware (amd/amd_sev_*.sbin) and a reload of ccp, or a newer BIOS."
)
_INIT = f"Load kvm_amd with sev_snp=1: it initialises SNP. {KERNEL_LOG}"


def _present(identifier: str, title: str, path_of: Callable[[Machine], str], why: str, remedy: str) -> None:
    @_check(identifier, "devices", title, decides=TECHNOLOGIES)
    def look(machine: Machine) -> Outcome:
        path = path_of(machine)
        number = machine.opened(path, write=False)
        if number in (errno.ENOENT, errno.ENOTDIR):
            if "sev" in identifier and not machine.has_sev:
                return failed(f"there is no {path}", "It comes with a processor that shows SEV: see cpu.sev.")
            if "sev" in identifier and machine.names(CCP) is None:
                return failed(f"there is no {path}", "It comes with the module ccp: see module.ccp.")
            return failed(f"there is no {path}: {why}", remedy)
        if number in (errno.ENODEV, errno.ENXIO):
            return failed(f"{path} is there, and no driver answers ({os.strerror(number)})", remedy)
        return passed(f"{path} is there")


_present(
    "device.sev", "SEV device", lambda machine: machine.reader.sev_path,
    "the driver ccp found no processor with usable SEV firmware",
    f"Enable SEV in the BIOS and load ccp (modprobe ccp). {KERNEL_LOG}",
)  # fmt: skip
_present(
    "device.kvm", "KVM device", lambda machine: machine.reader.kvm_path,
    "KVM is not loaded", "Enable SVM in the BIOS and load KVM (modprobe kvm_amd).",
)  # fmt: skip


def _access(identifier: str, title: str, path_of: Callable[[Machine], str], after: str, *, write: bool) -> None:
    @_check(identifier, "devices", title, about=TECHNOLOGIES, after=(after,))
    def look(machine: Machine) -> Outcome:
        path, user = path_of(machine), machine.reader.user()
        number = machine.opened(path, write=write)
        if not number:
            return passed(f"{path} can be opened for {'writing' if write else 'reading'} by uid {user}")
        reason = f"{path} cannot be opened for {'writing' if write else 'reading'} by uid {user}: {os.strerror(number)}"
        if number in (errno.EACCES, errno.EPERM) and user:
            return skipped(reason, "Run as root, or let sevd open it: this user then needs no access.")
        return failed(reason, "Look at the device's owner and mode, and at what confines this process.")


_access("device.sev-read", "SEV device readable", lambda m: m.reader.sev_path, "device.sev", write=False)
_access("device.sev-write", "SEV device writable", lambda m: m.reader.sev_path, "device.sev", write=True)
_access("device.kvm-open", "KVM device usable", lambda m: m.reader.kvm_path, "device.kvm", write=True)


@_check("kvm.api", "kvm", "KVM API", required=TECHNOLOGIES, after=("device.kvm",))
def _api(machine: Machine) -> Outcome:
    version = machine.kvm_version()
    if version == kvm.API_VERSION:
        return passed(f"version {version}")
    return failed(f"version {version}, expected {kvm.API_VERSION}", "Use a kernel with the stable KVM API.")


@_check("kvm.interface", "kvm", "generation of the kernel's interface", about=TECHNOLOGIES, after=("device.kvm",))
def _interface(machine: Machine) -> Outcome:
    seen = era.interface(machine)
    if not seen.offers:
        return skipped("KVM offers none of the interfaces by which its generations are told apart")
    return passed(f"{seen.text()} ({', '.join(seen.offers)})")


def _type(identifier: str, number: int, name: str, technology: str) -> None:
    @_check(
        identifier, "kvm", f"VM type {name}", required=(technology,), after=(f"kvm.{technology}", "device.kvm")
    )  # fmt: skip
    def look(machine: Machine) -> Outcome:
        types = machine.vm_types()
        if types >> number & 1:
            return passed(f"KVM_CAP_VM_TYPES has bit {number}")
        if not machine.kvm_attribute(kvm.SEV_ATTR_VMSA_FEATURES) and not types >> kvm.VM_TYPE_SEV & 7:
            if technology == SEV_SNP:
                return failed("this kernel's KVM has no SEV-SNP guests", "Use a kernel from 6.11 on.")
            return passed("an older kernel: legacy VMs without a type")
        if technology == SEV_ES:
            return failed(
                "KVM offers no SEV-ES guests although the processor has them: kernels from 7.2 on hold them back where "
                "the SNP firmware is new enough for SNP (AMD-SB-3023), or no ASID is left for them",
                "Use SEV-SNP instead, or raise the BIOS's minimum SEV non-ES ASID.",
            )
        return failed(f"KVM_CAP_VM_TYPES (0x{types:x}) lacks bit {number}", KERNEL_LOG)


_type("kvm.type-sev", kvm.VM_TYPE_SEV, "SEV", SEV)
_type("kvm.type-sev-es", kvm.VM_TYPE_SEV_ES, "SEV-ES", SEV_ES)
_type("kvm.type-sev-snp", kvm.VM_TYPE_SNP, "SNP", SEV_SNP)


def _refused(error: SevError, what: str, remedy: str) -> Outcome:
    return failed(f"{what}: {error.message}", error.remedy or remedy)


@_check("firmware.answers", "firmware", "firmware answers", required=TECHNOLOGIES, after=("device.sev",))
def _answers(machine: Machine) -> Outcome:
    try:
        status = machine.platform_status()
    except SevError as error:
        return _refused(error, "PLATFORM_STATUS", f"Reload ccp, or reboot: the secure processor hangs. {KERNEL_LOG}")
    return passed(f"version {status.api_major}.{status.api_minor}.{status.build}, {status.guest_count} guests")


@_check("firmware.version", "firmware", "firmware new enough for SNP", required=(SEV_SNP,), after=("firmware.answers",))
def _version(machine: Machine) -> Outcome:
    status = machine.platform_status()
    text = f"{status.api_major}.{status.api_minor}.{status.build}"
    if (status.api_major, status.api_minor) >= SNP_API:
        return passed(text)
    return failed(f"{text}; SEV-SNP needs 1.51", _FIRMWARE)


@_check("firmware.state", "firmware", "SEV initialised", about=TECHNOLOGIES, after=("firmware.answers",))
def _state(machine: Machine) -> Outcome:
    state = machine.platform_status().state
    if state in (abi.STATE_INIT, abi.STATE_WORKING):
        return passed(abi.STATE_NAMES[state])
    if state == abi.STATE_UNINIT:
        return failed("the platform is UNINIT", "Load kvm_amd; the first launch of a guest initialises it as well.")
    return failed(f"the firmware answers state {state}, which is none", _FIRMWARE)


@_check("firmware.sev-es", "firmware", "initialised for SEV-ES", required=(SEV_ES,), after=("firmware.state",))
def _es(machine: Machine) -> Outcome:
    if machine.platform_status().flags & abi.FLAG_CONFIG_ES:
        return passed("the firmware was initialised with SEV-ES")
    return failed("the firmware was initialised without SEV-ES", f"Reload ccp and kvm_amd with sev_es=1. {KERNEL_LOG}")


@_check("snp.state", "snp", "SNP initialised", required=(SEV_SNP,), after=("cpu.sev-snp", "device.sev"))
def _snp_state(machine: Machine) -> Outcome:
    try:
        status = machine.snp_status()
    except DeviceMissing:
        return failed("SNP is not initialised: the kernel refuses SNP_PLATFORM_STATUS", _INIT)
    except SevError as error:
        return _refused(error, "SNP_PLATFORM_STATUS", _INIT)
    if status.state == abi.STATE_INIT:
        return passed(f"INIT, {status.guest_count} guests")
    return failed("the SNP firmware is UNINIT", _INIT)


@_check("snp.rmp-initialized", "snp", "RMP initialised", required=(SEV_SNP,), after=("snp.state",))
def _rmp(machine: Machine) -> Outcome:
    if machine.snp_status().flags & abi.SNP_FLAG_RMP_INITIALIZED:
        return passed("the firmware initialised the RMP")
    return failed("the firmware has not initialised the RMP", _INIT)


@_check("snp.alias-check", "snp", "memory alias check", about=(SEV_SNP,), after=("snp.state",))
def _alias(machine: Machine) -> Outcome:
    if machine.snp_status().flags & abi.SNP_FLAG_ALIAS_CHECK_COMPLETE:
        return passed("complete since the last boot")
    return failed(
        "the firmware has not checked memory for aliases (CVE-2024-21944): a forged memory module could get round SNP",
        "Update the BIOS and the SEV firmware to versions with the check.",
    )


@_check("snp.tcb", "snp", "reported TCB is the running one", about=(SEV_SNP,), after=("snp.state",))
def _tcb(machine: Machine) -> Outcome:
    status, product = machine.snp_status(), machine.product
    if status.current_tcb == status.reported_tcb:
        return passed(f"{status.current_tcb:016x}")
    names = ""
    if product is not None and product.has_snp:
        from sev.abi.tcb import TcbVersion

        current = TcbVersion.from_int(status.current_tcb, product)
        reported = TcbVersion.from_int(status.reported_tcb, product)
        differ = [name for name, value in current.components().items() if reported.components().get(name) != value]
        names = f" ({', '.join(differ)})" if differ else ""
    return failed(
        f"current {status.current_tcb:016x}, reported {status.reported_tcb:016x}{names}: reports show the latter",
        "sev snp commit, then sev snp config reset; or leave it if the older TCB is reported on purpose.",
    )


@_check("feature.secure-tsc", "features", "Secure TSC", about=(SEV_SNP,), after=("cpu.sev-snp", "device.kvm"))
def _secure_tsc(machine: Machine) -> Outcome:
    features = machine.kvm_attribute(kvm.SEV_ATTR_VMSA_FEATURES)
    if features is not None and features & kvm_sev.VMSA_SECURE_TSC:
        return passed("KVM offers it")
    if not machine.sev_bit(8):
        return skipped("the processor does not have it")
    return skipped("the processor has it and KVM does not offer it", "Use a kernel from 6.18 on.")


@_check("feature.ciphertext-hiding", "features", "ciphertext hiding", about=(SEV_SNP,), after=("snp.state",))
def _ciphertext_hiding(machine: Machine) -> Outcome:
    bits = machine.snp_status().bits
    if bits & abi.SNP_CIPHERTEXT_HIDING_EN:
        return passed("on")
    if bits & abi.SNP_CIPHERTEXT_HIDING_CAP:
        return skipped("possible, and off", "Load kvm_amd with ciphertext_hiding_asids=N (kernel 6.18 and later).")
    return skipped("the firmware does not offer it")


@_check("feature.debug-swap", "features", "debug registers swapped", about=(SEV_ES, SEV_SNP), after=("cpu.sev-es",))
def _debug_swap(machine: Machine) -> Outcome:
    if not machine.sev_bit(14, "debug_swap"):
        return skipped("the processor does not have it")
    features = machine.kvm_attribute(kvm.SEV_ATTR_VMSA_FEATURES)
    if features is None:
        raise NotSeen("this kernel does not tell which features it offers")
    if features & kvm_sev.VMSA_DEBUG_SWAP:
        return passed("KVM offers it")
    return skipped("the processor has it and KVM does not offer it")
