"""ioctl numbers, sizes and offsets against the kernel's headers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.abi import cpuid_page, kvm, kvm_sev, kvm_vcpu, sev_device
from sev.abi.record import Record
from sev.errors import MalformedInput, UsageError

NUMBERS = {
    "SEV_ISSUE_CMD": (sev_device.SEV_ISSUE_CMD, 0xC0105300),
    "KVM_GET_API_VERSION": (kvm.KVM_GET_API_VERSION, 0xAE00),
    "KVM_CREATE_VM": (kvm.KVM_CREATE_VM, 0xAE01),
    "KVM_CHECK_EXTENSION": (kvm.KVM_CHECK_EXTENSION, 0xAE03),
    "KVM_GET_VCPU_MMAP_SIZE": (kvm.KVM_GET_VCPU_MMAP_SIZE, 0xAE04),
    "KVM_GET_SUPPORTED_CPUID": (kvm.KVM_GET_SUPPORTED_CPUID, 0xC008AE05),
    "KVM_CREATE_VCPU": (kvm.KVM_CREATE_VCPU, 0xAE41),
    "KVM_SET_USER_MEMORY_REGION": (kvm.KVM_SET_USER_MEMORY_REGION, 0x4020AE46),
    "KVM_SET_USER_MEMORY_REGION2": (kvm.KVM_SET_USER_MEMORY_REGION2, 0x40A0AE49),
    "KVM_RUN": (kvm.KVM_RUN, 0xAE80),
    "KVM_GET_REGS": (kvm.KVM_GET_REGS, 0x8090AE81),
    "KVM_SET_REGS": (kvm.KVM_SET_REGS, 0x4090AE82),
    "KVM_GET_SREGS": (kvm.KVM_GET_SREGS, 0x8138AE83),
    "KVM_SET_SREGS": (kvm.KVM_SET_SREGS, 0x4138AE84),
    "KVM_GET_MSRS": (kvm.KVM_GET_MSRS, 0xC008AE88),
    "KVM_SET_MSRS": (kvm.KVM_SET_MSRS, 0x4008AE89),
    "KVM_GET_FPU": (kvm.KVM_GET_FPU, 0x81A0AE8C),
    "KVM_SET_FPU": (kvm.KVM_SET_FPU, 0x41A0AE8D),
    "KVM_SET_CPUID2": (kvm.KVM_SET_CPUID2, 0x4008AE90),
    "KVM_GET_CPUID2": (kvm.KVM_GET_CPUID2, 0xC008AE91),
    "KVM_GET_DEBUGREGS": (kvm.KVM_GET_DEBUGREGS, 0x8080AEA1),
    "KVM_SET_DEBUGREGS": (kvm.KVM_SET_DEBUGREGS, 0x4080AEA2),
    "KVM_ENABLE_CAP": (kvm.KVM_ENABLE_CAP, 0x4068AEA3),
    "KVM_MEMORY_ENCRYPT_OP": (kvm.KVM_MEMORY_ENCRYPT_OP, 0xC008AEBA),
    "KVM_MEMORY_ENCRYPT_REG_REGION": (kvm.KVM_MEMORY_ENCRYPT_REG_REGION, 0x8010AEBB),
    "KVM_MEMORY_ENCRYPT_UNREG_REGION": (kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION, 0x8010AEBC),
    "KVM_SET_MEMORY_ATTRIBUTES": (kvm.KVM_SET_MEMORY_ATTRIBUTES, 0x4020AED2),
    "KVM_CREATE_GUEST_MEMFD": (kvm.KVM_CREATE_GUEST_MEMFD, 0xC040AED4),
    "KVM_GET_DEVICE_ATTR": (kvm.KVM_GET_DEVICE_ATTR, 0x4018AEE2),
    "KVM_HAS_DEVICE_ATTR": (kvm.KVM_HAS_DEVICE_ATTR, 0x4018AEE3),
}

STRUCTURES: list[tuple[type[Record], int, dict[str, tuple[int, int]]]] = [
    (sev_device.IssueCmd, 16, {"cmd": (0, 4), "data": (4, 8), "error": (12, 4)}),
    (
        sev_device.PlatformStatus,
        12,
        {"api_major": (0, 1), "state": (2, 1), "flags": (3, 4), "build": (7, 1), "guest_count": (8, 4)},
    ),
    (sev_device.PekCsr, 12, {"address": (0, 8), "length": (8, 4)}),
    (sev_device.PdhCertExport, 24, {"cert_chain_address": (12, 8), "cert_chain_len": (20, 4)}),
    (sev_device.PekCertImport, 24, {"oca_cert_address": (12, 8), "oca_cert_len": (20, 4)}),
    (sev_device.GetId2, 12, {"address": (0, 8), "length": (8, 4)}),
    (
        sev_device.SnpStatus,
        32,
        {
            "state": (2, 1),
            "flags": (3, 1),
            "build_id": (4, 4),
            "bits": (8, 4),
            "guest_count": (12, 4),
            "current_tcb": (16, 8),
            "reported_tcb": (24, 8),
        },
    ),
    (sev_device.SnpConfig, 64, {"reported_tcb": (0, 8), "masks": (8, 4), "reserved": (12, 52)}),
    (
        sev_device.SnpVlekLoad,
        16,
        {"len": (0, 4), "vlek_wrapped_version": (4, 1), "vlek_wrapped_address": (8, 8)},
    ),
    (kvm_sev.SevCmd, 24, {"id": (0, 4), "data": (8, 8), "error": (16, 4), "sev_fd": (20, 4)}),
    (kvm_sev.SevInit, 48, {"vmsa_features": (0, 8), "flags": (8, 4), "ghcb_version": (12, 2)}),
    (kvm_sev.SnpLaunchStart, 64, {"policy": (0, 8), "gosvw": (8, 16), "flags": (24, 2)}),
    (
        kvm_sev.SnpLaunchUpdate,
        64,
        {"gfn_start": (0, 8), "uaddr": (8, 8), "len": (16, 8), "type": (24, 1), "flags": (26, 2)},
    ),
    (
        kvm_sev.SnpLaunchFinish,
        88,
        {
            "id_block_uaddr": (0, 8),
            "id_auth_uaddr": (8, 8),
            "id_block_en": (16, 1),
            "auth_key_en": (17, 1),
            "vcek_disabled": (18, 1),
            "host_data": (19, 32),
            "flags": (54, 2),
        },
    ),
    (kvm.EnableCap, 104, {"cap": (0, 4), "flags": (4, 4), "arg0": (8, 8), "arg3": (32, 8)}),
    (kvm.DeviceAttr, 24, {"flags": (0, 4), "group": (4, 4), "attr": (8, 8), "addr": (16, 8)}),
    (kvm.UserMemoryRegion, 32, {"guest_phys_addr": (8, 8), "memory_size": (16, 8), "userspace_addr": (24, 8)}),
    (
        kvm.UserMemoryRegion2,
        160,
        {"slot": (0, 4), "userspace_addr": (24, 8), "guest_memfd_offset": (32, 8), "guest_memfd": (40, 4)},
    ),
    (kvm.CreateGuestMemfd, 64, {"size_bytes": (0, 8), "flags": (8, 8)}),
    (kvm.MemoryAttributes, 32, {"address": (0, 8), "size_bytes": (8, 8), "attributes": (16, 8), "flags": (24, 8)}),
    (kvm.EncRegion, 16, {"addr": (0, 8), "size_bytes": (8, 8)}),
    (kvm_vcpu.Regs, 144, {"rdx": (24, 8), "rsp": (48, 8), "rip": (128, 8), "rflags": (136, 8)}),
    (kvm_vcpu.Segment, 24, {"limit": (8, 4), "selector": (12, 2), "type": (14, 1), "unusable": (22, 1)}),
    (kvm_vcpu.DescriptorTable, 16, {"base": (0, 8), "limit": (8, 2)}),
    (kvm_vcpu.Sregs, 312, {"cs": (0, 24), "ldt": (168, 24), "gdt": (192, 16), "cr0": (224, 8), "apic_base": (272, 8)}),
    (kvm_vcpu.Fpu, 416, {"fcw": (128, 2), "xmm": (152, 256), "mxcsr": (408, 4)}),
    (kvm_vcpu.DebugRegs, 128, {"dr6": (32, 8), "dr7": (40, 8), "flags": (48, 8)}),
    (kvm_vcpu.MsrEntry, 16, {"index": (0, 4), "data": (8, 8)}),
]
RECORDS = [kind for kind, _, _ in STRUCTURES]


@pytest.mark.parametrize(("ours", "kernel"), NUMBERS.values(), ids=NUMBERS)
def test_ioctl_numbers(ours: int, kernel: int) -> None:
    assert ours == kernel


@pytest.mark.parametrize(("kind", "size", "offsets"), STRUCTURES, ids=lambda value: getattr(value, "__name__", ""))
def test_sizes_and_offsets(kind: type[Record], size: int, offsets: dict[str, tuple[int, int]]) -> None:
    assert kind.size() == size
    assert {name: kind.offsets()[name] for name in offsets} == offsets


def test_lists_of_cpuid_entries() -> None:
    entry = kvm_vcpu.CpuidEntry(0x8000001F, 1, 1, 2, 3, 4, 5)
    assert len(entry.encode()) == kvm_vcpu.CPUID_ENTRY_SIZE == 40
    data = kvm_vcpu.encode_list([entry, entry])
    assert data[:8] == bytes((2, 0, 0, 0, 0, 0, 0, 0))
    assert kvm_vcpu.decode_cpuid(data + b"trailing") == [entry, entry]
    assert len(kvm_vcpu.empty_cpuid(3)) == 8 + 120
    with pytest.raises(MalformedInput):
        kvm_vcpu.CpuidEntry(1 << 32, 0, 0, 0, 0, 0, 0).encode()


def test_replacing_a_leaf() -> None:
    have = [kvm_vcpu.CpuidEntry(1, 0, 0, 10, 20, 30, 40)]
    assert kvm_vcpu.with_leaf(have, 1, eax=7) == [kvm_vcpu.CpuidEntry(1, 0, 0, 7, 20, 30, 40)]
    assert kvm_vcpu.with_leaf(have, 2, ebx=7) == [*have, kvm_vcpu.CpuidEntry(2, 0, 0, 0, 7, 0, 0)]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_structure_survives_the_round(kind: type[Record], data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=kind.size(), max_size=kind.size()))
    record = kind.decode(raw)
    again = record.encode()
    assert kind.decode(again) == record
    for name, (offset, size) in kind.offsets().items():
        if name not in kind.NESTED:
            assert again[offset : offset + size] == raw[offset : offset + size], name


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("change", [-1, 1], ids=["short", "long"])
def test_other_lengths_are_refused(kind: type[Record], change: int) -> None:
    with pytest.raises(MalformedInput, match=f"exactly {kind.size()}"):
        kind.decode(bytes(kind.size() + change))


@pytest.mark.parametrize(
    "record",
    [
        kvm_sev.SevCmd(1 << 32),
        kvm_sev.SnpLaunchStart(-1),
        kvm_sev.SnpLaunchStart(0, gosvw=bytes(15)),
        kvm_sev.SnpLaunchFinish(host_data=bytes(33)),
        sev_device.SnpConfig(0, reserved=b""),
    ],
    ids=["id above u32", "negative policy", "short gosvw", "long host data", "no reserved bytes"],
)
def test_values_that_do_not_fit_are_refused(record: Record) -> None:
    with pytest.raises(MalformedInput):
        record.encode()


@given(
    st.lists(
        st.tuples(*[st.integers(0, (1 << 32) - 1)] * 2, *[st.integers(0, 7)] * 2, *[st.integers(0, 9)] * 4), max_size=64
    )
)
def test_cpuid_pages_survive_the_round(rows: list[tuple[int, int, int, int, int, int, int, int]]) -> None:
    functions = [cpuid_page.Function._make(row) for row in rows]
    page = cpuid_page.build(functions)
    assert len(page) == 4096
    assert cpuid_page.parse(page) == functions


@given(st.binary(max_size=200))
def test_hostile_cpuid_pages_and_lists(data: bytes) -> None:
    for page in (data, data.ljust(4096, b"\0")):
        with contextlib.suppress(MalformedInput):
            assert len(cpuid_page.parse(page)) <= 64
        with contextlib.suppress(MalformedInput):
            assert len(kvm_vcpu.decode_cpuid(page)) <= 256


@pytest.mark.parametrize(
    ("page", "field"),
    [
        (bytes(4095), "cpuid_page"),
        ((65).to_bytes(4, "little") + bytes(4092), "count"),
        (bytes(15) + b"\1" + bytes(4080), "reserved"),
    ],
    ids=["short", "65 entries", "reserved set"],
)
def test_bad_cpuid_pages(page: bytes, field: str) -> None:
    with pytest.raises(MalformedInput) as refused:
        cpuid_page.parse(page)
    assert refused.value.field == field


def test_too_many_or_too_large_entries() -> None:
    with pytest.raises(UsageError):
        cpuid_page.build([cpuid_page.Function(0, 0, 0, 0, 1, 0, 0, 0)] * 65)
    with pytest.raises(UsageError):
        cpuid_page.build([cpuid_page.Function(1 << 32, 0, 0, 0, 1, 0, 0, 0)])


def test_what_the_page_takes_from_kvm() -> None:
    entries = [
        kvm_vcpu.CpuidEntry(0x1, 5, 0, 1, 2, 3, 4),
        kvm_vcpu.CpuidEntry(0x7, 1, 1, 0, 0, 0, 0),
        kvm_vcpu.CpuidEntry(0xD, 1, 1, 1, 0x988, 0, 0),
        kvm_vcpu.CpuidEntry(0xD, 2, 1, 0x100, 0x240, 0, 0),
    ]
    assert cpuid_page.from_kvm(entries) == [
        cpuid_page.Function(0x1, 0, 0, 0, 1, 2, 3, 4),
        cpuid_page.Function(0xD, 1, 1, 0, 1, 0x240, 0, 0),
        cpuid_page.Function(0xD, 2, 0, 0, 0x100, 0x240, 0, 0),
    ]
    assert len(cpuid_page.from_kvm([kvm_vcpu.CpuidEntry(n, 0, 0, 1, 0, 0, 0) for n in range(100)])) == 64


def test_corrections_are_readable() -> None:
    before = cpuid_page.build([cpuid_page.Function(1, 0, 0, 0, 1, 2, 0xFF, 4)])
    after = cpuid_page.build([cpuid_page.Function(1, 0, 0, 0, 1, 2, 0x0F, 4)])
    assert cpuid_page.corrections(before, after) == ["leaf 0x1.0 ecx: 0x000000ff, the processor allows 0x0000000f"]


def test_command_names() -> None:
    assert sev_device.command_name(10) == "SNP_COMMIT"
    assert sev_device.command_name(13) == "SEV command 13"
    assert kvm_sev.command_name(101) == "SNP_LAUNCH_UPDATE"
    assert kvm_sev.command_name(22) == "SEV_INIT2"
    assert kvm_sev.command_name(77) == "KVM SEV command 77"
