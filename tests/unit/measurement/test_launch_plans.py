"""Plans: order, types, options and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from sev.abi import page_info
from sev.errors import MalformedInput, SevError, UsageError
from sev.measurement import ovmf, snp_launch_digest, snp_ovmf_hash, snp_plan
from sev.measurement.kernel_hashes import table, table_of
from sev.measurement.sample import HASHES_ADDRESS, RESET_ADDRESS, SECTIONS, footer, metadata, place, sample_firmware
from sev.measurement.vcpu_types import NAMES, signature

SIZE = 16384
IMAGE = sample_firmware(SIZE)


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def image_with(entries: dict[bytes, bytes], sections: tuple[tuple[int, int, int], ...] = SECTIONS) -> bytes:
    image = bytearray(SIZE)
    place(image, 0x400, metadata(sections))
    body = footer(((ovmf.SEV_METADATA, u32(0x400)), *entries.items()))
    place(image, 32 + len(body), body)
    return bytes(image)


def plan(**options: Any) -> Any:
    return snp_plan(options.pop("firmware", IMAGE), options.pop("vcpus", 2), **{"vcpu_type": "EPYC-v4", **options})


def test_order_of_qemu() -> None:
    made = plan()
    assert [(r.name, r.gpa, r.size, r.page_type) for r in made.regions] == [
        ("firmware", 0x100000000 - SIZE, SIZE, page_info.NORMAL),
        ("sec-mem", 0x800000, 0x9000, page_info.ZERO),
        ("sec-mem", 0x80A000, 0x3000, page_info.ZERO),
        ("secrets", 0x80D000, 0x1000, page_info.SECRETS),
        ("cpuid", 0x80E000, 0x1000, page_info.CPUID),
        ("svsm-caa", 0x80F000, 0x1000, page_info.ZERO),
        ("kernel-hashes", 0x810000, 0x1000, page_info.ZERO),
        ("sec-mem", 0x811000, 0xF000, page_info.ZERO),
    ]
    assert made.regions[0].data == IMAGE
    assert all(region.data is None for region in made.regions[1:])
    assert (made.ap_reset_address, made.firmware_gpa, made.has_metadata) == (RESET_ADDRESS, 0x100000000 - SIZE, True)


def test_order_of_ec2_and_types_of_gce() -> None:
    assert [region.name for region in plan(vmm="ec2").regions][-1] == "cpuid"
    assert [region.name for region in plan(vmm="ec2-2023").regions] == [r.name for r in plan(vmm="ec2").regions]
    kinds = {region.name: region.page_type for region in plan(vmm="gce").regions}
    assert kinds["sec-mem"] == page_info.UNMEASURED
    assert kinds["svsm-caa"] == page_info.ZERO


def test_kernel_hashes_lie_where_the_firmware_looks() -> None:
    made = plan(kernel=b"kernel", initrd=b"initrd", append="a b")
    (region,) = [region for region in made.regions if region.name == "kernel-hashes"]
    offset = HASHES_ADDRESS - region.gpa
    assert region.page_type == page_info.NORMAL
    assert region.data is not None
    assert region.data == bytes(offset) + table(b"kernel", b"initrd", "a b") + bytes(4096 - offset - 176)
    same = plan(kernel_hashes=table(b"kernel", b"initrd", "a b"))
    assert same.digest() == made.digest()


def test_explain_ends_with_the_digest_and_counts_every_page() -> None:
    made = plan(vcpus=3, kernel=b"k")
    steps = list(made.explain())
    assert steps[-1].digest == made.digest()
    assert len(steps) == sum(region.size for region in made.regions) // 4096 + 3
    assert [step.name for step in steps[-3:]] == ["vmsa 0", "vmsa 1", "vmsa 2"]
    assert steps[SIZE // 4096 - 1].digest == snp_ovmf_hash(IMAGE)
    short = list(plan(vcpus=3, kernel=b"k", ovmf_hash=snp_ovmf_hash(IMAGE)).explain())
    assert (short[0].pages, short[0].digest, short[-1].digest) == (SIZE // 4096, snp_ovmf_hash(IMAGE), made.digest())


def test_a_known_firmware_hash_replaces_the_image() -> None:
    other = b"\x01" + IMAGE[1:]
    assert plan(firmware=other).digest() != plan().digest()
    assert plan(firmware=other, ovmf_hash=snp_ovmf_hash(IMAGE)).digest() == plan().digest()


def test_views_are_taken_too() -> None:
    assert plan(firmware=memoryview(IMAGE)).digest() == plan().digest()
    assert snp_launch_digest(memoryview(bytearray(IMAGE)), 2, vcpu_type="EPYC-v4") == plan().digest()


def test_one_vcpu_needs_no_reset_block() -> None:
    bare = image_with({})
    assert len(plan(firmware=bare, vcpus=1).vmsas) == 1
    with pytest.raises(MalformedInput, match="no SEV-ES reset block"):
        plan(firmware=bare)
    with pytest.raises(MalformedInput, match="no SEV-ES reset block"):
        plan(firmware=image_with({ovmf.RESET_BLOCK: u32(0)}))


def test_many_vcpus_share_one_page() -> None:
    made = plan(vcpus=4096)
    assert len(made.vmsas) == 4096
    assert len({id(page) for page in made.vmsas}) == 2


REFUSED: dict[str, tuple[dict[str, Any], type[SevError], str]] = {
    "no CPU type": ({"vcpu_type": None}, UsageError, "the CPU type is missing"),
    "type and signature": ({"vcpu_signature": 1}, UsageError, "give one of them"),
    "unknown type": ({"vcpu_type": "Xeon"}, UsageError, "unknown CPU type 'Xeon'"),
    "signature too large": ({"vcpu_type": None, "vcpu_signature": 1 << 32}, UsageError, "vcpu_signature: expected 0"),
    "no vCPU": ({"vcpus": 0}, UsageError, "vcpus: expected 1 to 4096"),
    "too many vCPUs": ({"vcpus": 4097}, UsageError, "vcpus: expected 1 to 4096"),
    "unknown VMM": ({"vmm": "xen"}, UsageError, "unknown VMM 'xen'"),
    "features too large": ({"guest_features": 1 << 64}, UsageError, "guest_features: expected 0"),
    "short firmware hash": ({"ovmf_hash": bytes(47)}, UsageError, "expected 48 bytes, not 47"),
    "initrd alone": ({"initrd": b""}, UsageError, "without a kernel"),
    "command line alone": ({"append": ""}, UsageError, "without a kernel"),
    "kernel and table": ({"kernel": b"", "kernel_hashes": bytes(176)}, UsageError, "give one of them"),
    "short table": ({"kernel_hashes": bytes(168)}, UsageError, "expected 176 bytes, not 168"),
    "NUL in the command line": ({"kernel": b"", "append": "a\0b"}, UsageError, "NUL byte"),
    "no section for hashes": (
        {"kernel": b"", "firmware": image_with({}, SECTIONS[:5])},
        UsageError,
        "no section for kernel hashes",
    ),
    "no address for hashes": (
        {"kernel": b"", "firmware": image_with({}), "vcpus": 1},
        UsageError,
        "where its hashes go",
    ),
    "address of hashes is 0": (
        {"kernel": b"", "firmware": image_with({ovmf.HASHES_TABLE: u32(0)}), "vcpus": 1},
        UsageError,
        "where its hashes go",
    ),
    "hashes outside their page": (
        {"kernel": b"", "firmware": image_with({ovmf.HASHES_TABLE: u32(0x811000)}), "vcpus": 1},
        MalformedInput,
        "not inside their section",
    ),
    "hashes over the end of their page": (
        {"kernel": b"", "firmware": image_with({ovmf.HASHES_TABLE: u32(0x810F60)}), "vcpus": 1},
        MalformedInput,
        "not inside their section",
    ),
    "hashes section of two pages": (
        {
            "kernel": b"",
            "firmware": image_with({ovmf.HASHES_TABLE: u32(0x810000)}, ((0x810000, 0x2000, 0x10),)),
            "vcpus": 1,
        },
        MalformedInput,
        "not inside their section",
    ),
    "SVSM without its entry": ({"svsm": IMAGE}, MalformedInput, "no SVSM entry"),
    "SVSM entry outside": (
        {"svsm": image_with({ovmf.SVSM_INFO: u32(SIZE)}, SECTIONS[:2])},
        MalformedInput,
        "outside the image",
    ),
    "SVSM on EC2": ({"svsm": image_with({ovmf.SVSM_INFO: u32(0)}), "vmm": "ec2"}, UsageError, "started by QEMU"),
    "SVSM with a kernel": (
        {"svsm": image_with({ovmf.SVSM_INFO: u32(0)}), "kernel": b""},
        UsageError,
        "started by QEMU",
    ),
    "variables larger than memory": (
        {"svsm": image_with({ovmf.SVSM_INFO: u32(0)}), "svsm_vars_size": 1 << 32},
        UsageError,
        "svsm_vars_size",
    ),
    "no room for the SVSM": (
        {"svsm": image_with({ovmf.SVSM_INFO: u32(0)}), "svsm_vars_size": (1 << 32) - SIZE},
        MalformedInput,
        "do not fit below",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    options, error, message = REFUSED[name]
    with pytest.raises(error) as caught:
        plan(**options)
    assert message in caught.value.message


def test_table_of_known_hashes() -> None:
    from hashlib import sha256

    direct = table(b"k", None, None)
    assert direct == table_of(sha256(b"k").digest(), sha256(b"").digest(), "")
    assert len(direct) == 176
    assert table(b"k", b"", "x") != table(b"k", b"", "x ")  # QEMU does not trim


def test_cpu_types() -> None:
    assert signature("EPYC-v4") == signature("epyc") == signature(" EPYC-IBPB ") == 0x800F12
    assert signature("EPYC-Rome-v3") == 0x830F10
    assert signature("EPYC-Milan") == 0xA00F11
    assert signature("EPYC-Genoa-v1") == 0xA10F10
    assert signature("EPYC-Turin") == signature("EPYC-Turin-v2") == 0xB00F00
    assert all(signature(name) for name in NAMES)
    with pytest.raises(UsageError) as caught:
        signature("epyc-mlan")
    assert "EPYC-Milan" in caught.value.remedy
