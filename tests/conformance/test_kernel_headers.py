"""Every structure, ioctl number and constant of the kernel's ABI here, against the kernel's own headers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sev import status
from sev.abi import guest_device, kvm, kvm_run, kvm_sev, kvm_sev_legacy, kvm_vcpu, sev_device
from sev.abi.record import Record
from tests.support import kernel_headers
from tests.support.kernel_headers import Headers, Item, bit_field, constant, member, size

STRUCTURES: dict[type[Record], tuple[str, dict[str, str]]] = {
    # (our class): (the kernel's type, our field to the kernel's where they differ; "" for bit-fields, checked apart)
    sev_device.IssueCmd: ("struct sev_issue_cmd", {}),
    sev_device.PlatformStatus: ("struct sev_user_data_status", {}),
    sev_device.PekCsr: ("struct sev_user_data_pek_csr", {}),
    sev_device.PdhCertExport: ("struct sev_user_data_pdh_cert_export", {}),
    sev_device.PekCertImport: ("struct sev_user_data_pek_cert_import", {}),
    sev_device.GetId2: ("struct sev_user_data_get_id2", {}),
    sev_device.SnpStatus: (
        "struct sev_user_data_snp_status",
        {"flags": "", "bits": "", "current_tcb": "current_tcb_version", "reported_tcb": "reported_tcb_version"},
    ),
    sev_device.SnpConfig: ("struct sev_user_data_snp_config", {"masks": "", "reserved": "rsvd1"}),
    sev_device.SnpVlekLoad: ("struct sev_user_data_snp_vlek_load", {}),
    kvm.EnableCap: ("struct kvm_enable_cap", {f"arg{number}": f"args[{number}]" for number in range(4)}),
    kvm.DeviceAttr: ("struct kvm_device_attr", {}),
    kvm.UserMemoryRegion: ("struct kvm_userspace_memory_region", {}),
    kvm.UserMemoryRegion2: ("struct kvm_userspace_memory_region2", {}),
    kvm.CreateGuestMemfd: ("struct kvm_create_guest_memfd", {"size_bytes": "size"}),
    kvm.MemoryAttributes: ("struct kvm_memory_attributes", {"size_bytes": "size"}),
    kvm.PreFaultMemory: ("struct kvm_pre_fault_memory", {"size_bytes": "size"}),
    kvm.EncRegion: ("struct kvm_enc_region", {"size_bytes": "size"}),
    kvm_sev.SevCmd: ("struct kvm_sev_cmd", {}),
    kvm_sev.SevInit: ("struct kvm_sev_init", {}),
    kvm_sev.SnpLaunchStart: ("struct kvm_sev_snp_launch_start", {}),
    kvm_sev.SnpLaunchUpdate: ("struct kvm_sev_snp_launch_update", {}),
    kvm_sev.SnpLaunchFinish: ("struct kvm_sev_snp_launch_finish", {}),
    kvm_sev_legacy.LaunchStart: ("struct kvm_sev_launch_start", {}),
    kvm_sev_legacy.LaunchUpdateData: ("struct kvm_sev_launch_update_data", {}),
    kvm_sev_legacy.LaunchSecret: ("struct kvm_sev_launch_secret", {}),
    kvm_sev_legacy.LaunchMeasure: ("struct kvm_sev_launch_measure", {}),
    kvm_sev_legacy.GuestStatus: ("struct kvm_sev_guest_status", {}),
    kvm_sev_legacy.Debug: ("struct kvm_sev_dbg", {}),
    kvm_sev_legacy.AttestationReport: ("struct kvm_sev_attestation_report", {}),
    kvm_sev_legacy.SendStart: ("struct kvm_sev_send_start", {}),
    kvm_sev_legacy.SendUpdateData: ("struct kvm_sev_send_update_data", {}),
    kvm_sev_legacy.ReceiveStart: ("struct kvm_sev_receive_start", {}),
    kvm_sev_legacy.ReceiveUpdateData: ("struct kvm_sev_receive_update_data", {}),
    kvm_vcpu.Regs: ("struct kvm_regs", {}),
    kvm_vcpu.Segment: ("struct kvm_segment", {}),
    kvm_vcpu.DescriptorTable: ("struct kvm_dtable", {}),
    kvm_vcpu.Sregs: ("struct kvm_sregs", {}),
    kvm_vcpu.Fpu: ("struct kvm_fpu", {}),
    kvm_vcpu.DebugRegs: ("struct kvm_debugregs", {f"db{number}": f"db[{number}]" for number in range(4)}),
    kvm_vcpu.MsrEntry: ("struct kvm_msr_entry", {}),
    guest_device.GuestRequestIoctl: ("struct snp_guest_request_ioctl", {}),
    guest_device.ReportRequest: ("struct snp_report_req", {}),
    guest_device.ExtReportRequest: ("struct snp_ext_report_req", {}),
    guest_device.DerivedKeyRequest: ("struct snp_derived_key_req", {}),
}

BITS = {
    # (structure, the kernel's bit-field): (offset of our field, our constant)
    ("struct sev_user_data_snp_status", "is_rmp_initialized"): (3, sev_device.SNP_FLAG_RMP_INITIALIZED),
    ("struct sev_user_data_snp_status", "mask_chip_id"): (8, sev_device.SNP_MASK_CHIP_ID),
    ("struct sev_user_data_snp_status", "mask_chip_key"): (8, sev_device.SNP_MASK_CHIP_KEY),
    ("struct sev_user_data_snp_status", "vlek_en"): (8, sev_device.SNP_VLEK_EN),
    ("struct sev_user_data_snp_status", "feature_info"): (8, sev_device.SNP_FEATURE_INFO),
    ("struct sev_user_data_snp_status", "rapl_dis"): (8, sev_device.SNP_RAPL_DIS),
    ("struct sev_user_data_snp_status", "ciphertext_hiding_cap"): (8, sev_device.SNP_CIPHERTEXT_HIDING_CAP),
    ("struct sev_user_data_snp_status", "ciphertext_hiding_en"): (8, sev_device.SNP_CIPHERTEXT_HIDING_EN),
    ("struct sev_user_data_snp_config", "mask_chip_id"): (8, sev_device.SNP_MASK_CHIP_ID),
    ("struct sev_user_data_snp_config", "mask_chip_key"): (8, sev_device.SNP_MASK_CHIP_KEY),
}

CPUID_ENTRY = ("function", "index", "flags", "eax", "ebx", "ecx", "edx")

NAMES: dict[ModuleType, tuple[tuple[str, str], ...]] = {
    # How a constant of ours is called in the headers: the first start of its name that fits, and what replaces it.
    kvm: (
        ("KVM_", "KVM_"), ("KVMIO", "KVMIO"), ("API_VERSION", "KVM_API_VERSION"), ("CAP_", "KVM_CAP_"),
        ("HC_", "KVM_HC_"), ("MEM_", "KVM_MEM_"), ("MEMORY_", "KVM_MEMORY_"), ("GUEST_MEMFD_", "GUEST_MEMFD_FLAG_"),
        ("X86_", "KVM_X86_"), ("SEV_ATTR_VMSA", "KVM_X86_SEV_VMSA"), ("SEV_ATTR_SNP_POLICY", "KVM_X86_SNP_POLICY"),
        ("SEV_ATTR_SNP_REQ", "KVM_X86_SEV_SNP_REQ"), ("VM_TYPE_", "KVM_X86_*_VM"),
    ),
    kvm_sev: (
        ("SEV_", "KVM_SEV_"), ("LAUNCH_", "KVM_SEV_LAUNCH_"), ("SEND_", "KVM_SEV_SEND_"), ("DBG_", "KVM_SEV_DBG_"),
        ("RECEIVE_", "KVM_SEV_RECEIVE_"), ("GUEST_STATUS", "KVM_SEV_GUEST_STATUS"), ("CERT_", "KVM_SEV_CERT_"),
        ("GET_", "KVM_SEV_GET_"), ("SNP_MIN_ID", "KVM_SEV_SNP_LAUNCH_START"), ("SNP_", "KVM_SEV_SNP_"),
        ("PAGE_", "KVM_SEV_SNP_PAGE_TYPE_"), ("ID_", "KVM_SEV_SNP_ID_"),
    ),
    kvm_sev_legacy: (),
    kvm_vcpu: (("CPUID_FLAG_SIGNIFICANT", "KVM_CPUID_FLAG_SIGNIFCANT"),),
    kvm_run: (("EXIT_REASON", ""), ("EXIT_", "KVM_EXIT_"), ("IO_", "KVM_EXIT_IO_"),
              ("MEMORY_FAULT_PRIVATE", "KVM_MEMORY_EXIT_FLAG_PRIVATE")),
    sev_device: (
        ("SEV_ISSUE_CMD", "SEV_ISSUE_CMD"), ("COMMAND_MAX", "SNP_VLEK_LOAD ? SEV_MAX : 0"), ("NO_FW_CALL", "SEV_RET_NO_FW_CALL & 0xffffffff"),
        ("FLAG_CONFIG_ES", "SEV_STATUS_FLAGS_CONFIG_ES"), ("FACTORY_", "SEV_FACTORY_"), ("PLATFORM_", "SEV_PLATFORM_"),
        ("PEK_", "SEV_PEK_"), ("PDH_", "SEV_PDH_"), ("GET_ID_SIZE", ""), ("GET_", "SEV_GET_"),
        ("SNP_PLATFORM_STATUS", "SNP_PLATFORM_STATUS"), ("SNP_COMMIT", "SNP_COMMIT"), ("SNP_SET", "SNP_SET"),
        ("SNP_VLEK_LOAD", "SNP_VLEK_LOAD"),
    ),
    guest_device: (("SNP_", "SNP_"), ("VMM_ERROR_", "SNP_GUEST_VMM_ERR_")),
}  # fmt: skip

OURS = {
    # Constants that no uapi header has: limits of the kernel's code, the firmware's or the processor's numbers.
    kvm: {"PAGE_SIZE", "VCPU_MMAP_SIZE"},
    kvm_sev: {
        "VMSA_SNP_ACTIVE", "VMSA_RESTRICTED_INJECTION", "VMSA_ALTERNATE_INJECTION", "VMSA_DEBUG_SWAP",
        "VMSA_SECURE_TSC", "POLICY_RESERVED_MBO", "GHCB_VERSION_MAX",
    },
    kvm_sev_legacy: {
        "BLOB_MAX", "PAGE_MAX", "MNONCE_SIZE", "STATE_UNINIT", "STATE_LAUNCH_UPDATE", "STATE_LAUNCH_SECRET",
        "STATE_RUNNING", "STATE_SEND_UPDATE", "STATE_RECEIVE_UPDATE",
    },
    sev_device: {
        "BLOB_MAX", "ENOTSUPP", "STATE_UNINIT", "STATE_INIT", "STATE_WORKING", "FLAG_OWNED",
        "SNP_FLAG_ALIAS_CHECK_COMPLETE", "ID_SIZE",
    },
    guest_device: {"VMM_ERROR_GENERIC"},
}  # fmt: skip

ELSEWHERE = {
    # Constants that other tests here compare: bit-fields above, sizes and offsets below.
    sev_device: {
        "SNP_FLAG_RMP_INITIALIZED", "SNP_MASK_CHIP_ID", "SNP_MASK_CHIP_KEY", "SNP_VLEK_EN", "SNP_FEATURE_INFO",
        "SNP_RAPL_DIS", "SNP_CIPHERTEXT_HIDING_CAP", "SNP_CIPHERTEXT_HIDING_EN", "VLEK_BLOB_SIZE", "GET_ID_SIZE",
    },
}  # fmt: skip

SIZES = {
    "struct sev_user_data_snp_wrapped_vlek_hashstick": sev_device.VLEK_BLOB_SIZE,
    "struct sev_user_data_get_id": sev_device.GET_ID_SIZE,
    "struct kvm_cpuid_entry2": kvm_vcpu.CPUID_ENTRY_SIZE,
    "struct kvm_run": kvm_run.SIZE,
    "struct snp_report_resp": guest_device.REPORT_RESPONSE_SIZE,
    "struct snp_derived_key_resp": guest_device.KEY_RESPONSE_SIZE,
}

STATUSES = {
    # Statuses that the header calls otherwise.
    "INVALID_LENGTH": "INVALID_LEN",
    "INVALID_CONFIG": "INAVLID_CONFIG",
    "DF_FLUSH_REQUIRED": "DFFLUSH_REQUIRED",
    "HWERROR_PLATFORM": "HWSEV_RET_PLATFORM",
    "HWERROR_UNSAFE": "HWSEV_RET_UNSAFE",
    **{
        name: f"SEV_STATUS_{name}"
        for name in (
            "ERR_IN_DEV_CONN", "INVALID_DEV_CTX", "INVALID_TDI_CTX", "INVALID_TDI", "RECLAIM_REQUIRED",
            "INVALID_DEV_STATE", "INVALID_TDI_STATE", "DEV_CERT_CHANGED", "RESYNC_REQ", "RESPONSE_TOO_LARGE",
        )
    },
}  # fmt: skip

NEWEST = (7, 2)
"""Headers from this release on have everything that is compared here."""


def _constants(module: ModuleType) -> Iterator[tuple[str, int]]:
    for name, value in vars(module).items():
        if name.isupper() and isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def _called(module: ModuleType, name: str) -> str:
    """The name of a constant in the headers; empty if it has none."""
    if name in OURS.get(module, ()) or name in ELSEWHERE.get(module, ()):
        return ""
    for start, other in NAMES[module]:
        if name.startswith(start):
            rest = name[len(start) :]
            return other.replace("*", rest) if "*" in other else other + rest if other else ""
    return ""


def _items() -> tuple[list[Item], dict[str, int | str]]:
    """What to ask, and the answers that we expect."""
    items: list[Item] = []
    wanted: dict[str, int | str] = {}

    def add(item: Item, value: int | str) -> None:
        items.append(item)
        wanted[item.name] = value

    for record, (kind, renamed) in STRUCTURES.items():
        add(size(f"{record.__module__}.{record.__name__}", kind), record.size())
        for field, (offset, length) in record.offsets().items():
            theirs = renamed.get(field, field)
            if theirs:
                where, how_long = member(f"{record.__module__}.{record.__name__}.{field}", kind, theirs)
                add(where, offset)
                add(how_long, length)
    for (kind, field), (offset, mask) in BITS.items():
        total = next(record.size() for record, (name, _) in STRUCTURES.items() if name == kind)
        add(bit_field(f"{kind}.{field}", kind, field), (mask << 8 * offset).to_bytes(total, "little").hex())
    for kind, value in SIZES.items():
        add(size(kind, kind), value)
    for number, field in enumerate(CPUID_ENTRY):
        where, how_long = member(f"kvm_cpuid_entry2.{field}", "struct kvm_cpuid_entry2", field)
        add(where, 4 * number)
        add(how_long, 4)
    for path, (offset, length) in kvm_run.OFFSETS.items():
        where, how_long = member(f"kvm_run.{path}", "struct kvm_run", path)
        add(where, offset)
        add(how_long, length)
    for module in NAMES:
        for name, value in _constants(module):
            if theirs := _called(module, name):
                add(constant(f"{module.__name__}.{name}", theirs), value)
    for entry in status.ALL:
        theirs = STATUSES.get(entry.name, entry.name)
        add(constant(f"status.{entry.name}", f"SEV_RET_{theirs} & 0xffffffff"), entry.code)
    return items, wanted


ITEMS, WANTED = _items()
SETS = kernel_headers.available()
Answers = tuple[dict[str, int | str], set[str]]


@pytest.fixture(scope="module", params=SETS, ids=[one.name for one in SETS])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What one set of headers says, and what it does not have."""
    return _ask(request.param, tmp_path_factory.mktemp(request.param.name))


def _ask(headers: Headers, folder: Path) -> Answers:
    compiler = kernel_headers.compiler()
    if compiler is None:
        reason = "no C compiler with the kernel's headers (apt install gcc linux-libc-dev)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return kernel_headers.ask(headers, ITEMS, folder, compiler)


def _version(values: dict[str, int | str]) -> tuple[int, int]:
    code = int(values["LINUX_VERSION_CODE"])
    return code >> 16, code >> 8 & 0xFF


def test_what_the_headers_have_is_as_it_is_here(answers: Answers) -> None:
    values, missing = answers
    wrong = {
        name: (wanted, values[name])
        for name, wanted in WANTED.items()
        if name not in missing and values[name] != wanted
    }
    assert wrong == {}
    assert len(WANTED) - len(missing) >= 400, f"headers {_version(values)} have too little: {sorted(missing)}"


def test_new_headers_have_everything(answers: Answers) -> None:
    """A name that no header has would be compared with nothing: the newest headers must know them all."""
    values, missing = answers
    version = _version(values)
    if version >= NEWEST:
        assert missing == set()
        return
    reason = f"{len(missing)} of {len(WANTED)} items are not in headers of {version[0]}.{version[1]}, so not compared"
    if len(SETS) == 1:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; set SEV_KERNEL_HEADERS to headers of {NEWEST[0]}.{NEWEST[1]} or later")
        pytest.skip(f"{reason}; SEV_KERNEL_HEADERS may name newer ones")


@pytest.mark.parametrize("module", NAMES, ids=lambda module: module.__name__)
def test_no_constant_escapes(module: ModuleType) -> None:
    """Each constant has a name in the headers, or is listed as one that none has."""
    loose = {name for name, _ in _constants(module) if not _called(module, name)}
    assert loose <= OURS.get(module, set()) | ELSEWHERE.get(module, set()) | _by_hand(module)


def test_no_structure_escapes() -> None:
    mine = {
        one
        for module in NAMES
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Record) and one is not Record
    }
    assert mine == set(STRUCTURES)


def _by_hand(module: ModuleType) -> set[str]:
    """Constants of these modules that stand for offsets and sizes which are compared through tables."""
    return {
        kvm_run: {"SIZE", "IMMEDIATE_EXIT", "EXIT_REASON", "UNION", "HYPERCALL_RET", "MMIO_DATA", "DATA_WORDS"},
        kvm_vcpu: {"CPUID_ENTRIES_MAX", "MSRS_MAX", "MSR_IA32_PAT", "PAT_RESET", "CPUID_ENTRY_SIZE"},
        guest_device: {
            "IOCTL_SIZE", "MESSAGE_VERSION", "USER_DATA_SIZE", "REPORT_RESPONSE_SIZE", "REPORT_OFFSET",
            "KEY_RESPONSE_SIZE", "KEY_OFFSET", "KEY_SIZE", "CERTS_MAX", "CERTS_PAGE", "EXITINFO2_UNSET",
            "EXITINFO2_NO_FW_CALL", "CERTS_LEN_OFFSET", "REPORT_RSP_HEADER_SIZE",
        },
    }.get(module, set())  # fmt: skip
