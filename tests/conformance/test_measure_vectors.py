"""Published launch digests and ID blocks, and those computed for this project: every one is reproduced."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from sev.abi import id_block as layout
from sev.abi import page_info
from sev.errors import SevError, UsageError
from sev.measurement import LaunchPlan, Region, digest, ovmf, snp_launch_digest, snp_ovmf_hash, snp_plan, vmm
from sev.measurement.id_block import verify
from sev.measurement.kernel_hashes import table
from tests.support.data import DATA, FACTS

AMDSEV = (DATA / "measure" / "ovmf_AmdSev_suffix.bin").read_bytes()
OVMFX64 = (DATA / "measure" / "ovmf_OvmfX64_suffix.bin").read_bytes()
VECTORS: dict[str, Any] = json.loads((FACTS / "sev-vectors.json").read_text())
DIGESTS: dict[str, Any] = json.loads((DATA / "measure" / "launch-digests.json").read_text())

OVMF_HASH = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
CONSOLE = "console=ttyS0 loglevel=7"

NAMED = {
    "V-M02": (AMDSEV, "", 1, 0x1, "qemu", "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5"),
    "V-M03": (AMDSEV, "", 1, 0x21, "qemu", "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198"),
    "V-M04": (AMDSEV, CONSOLE, 1, 0x1, "qemu", "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"),
    "V-M05": (AMDSEV, CONSOLE, 1, 0x21, "qemu", "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"),
    "V-M06": (AMDSEV, "", 1, 0x1, "ec2-2023", "7d3756157c805bf6adf617064c8552e8c1688fa1c8756f11cbf56ba5d25c9270fb69c0505c1cbe1c5c66c0e34c6ed3be"),
    "V-M06-new": (AMDSEV, "", 1, 0x1, "ec2", "0883bd0eeb716e65b7b977a321c278d1e51b33b5c655fab985443bbcc65c086b9c15e8a0bd8811050dec7e24964e5056"),
    "V-M07": (AMDSEV, "", 1, 0x21, "ec2-2023", "6ae80856486b1396af8c82a40351d6ed76a20c785e9c7fa4ffa27c22d5d6313b4b3b458cd3c9968e6f89fb5d8450d7a6"),
    "V-M07-new": (AMDSEV, "", 1, 0x21, "ec2-2026", "0ce9ccc06bab55eebe8abc234f3df6514883977a68a591b71052498ab52b2f1aa415db338033946ef93aa8278c0d67fb"),
    "V-M08": (AMDSEV, None, 1, 0x1, "qemu", "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"),
    "V-M09": (AMDSEV, None, 1, 0x21, "qemu", "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b"),
    "V-M10": (AMDSEV, "", 4, 0x1, "qemu", "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"),
    "V-M11": (AMDSEV, "", 4, 0x21, "qemu", "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942"),
    "V-M12": (OVMFX64, None, 1, 0x1, "qemu", "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005"),
    "V-M13": (OVMFX64, None, 1, 0x21, "qemu", "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385"),
    "GCE 1": (AMDSEV, "", 1, 0x1, "gce", "5da7106cf14cf46b1725ebab123eb9e53bd46a1e9f400cd0c08e7827b04b688ea8b4e403c8404efed4397ea5d5d0722e"),
    "GCE 4": (AMDSEV, "", 4, 0x1, "gce", "5c5debf100fc339f90276e761ee1f1658d08922c3b20e2a2e6c7a6c3370b2452a15a00eae11886a93d6fd1e7ab81e29d"),
}  # fmt: skip
"""(image, command line or None without a kernel, vCPUs, features, VMM, digest); kernel and initrd are empty files."""


@pytest.mark.parametrize("name", NAMED)
def test_published_digests(name: str) -> None:
    image, append, vcpus, features, maker, expected = NAMED[name]
    kernel = None if append is None else b""
    options: dict[str, Any] = {"kernel": kernel, "initrd": kernel, "append": append, "guest_features": features}
    found = snp_launch_digest(image, vcpus, vcpu_type="EPYC-v4", vmm=maker, **options)
    assert found.hex() == expected
    plan = snp_plan(image, vcpus, vcpu_type="EPYC-v4", vmm=maker, ovmf_hash=snp_ovmf_hash(image), **options)
    assert plan.digest().hex() == expected
    assert list(plan.explain())[-1].digest.hex() == expected


def test_published_firmware_hash() -> None:
    """V-M01."""
    assert snp_ovmf_hash(AMDSEV).hex() == OVMF_HASH


def test_kernel_without_a_place_for_its_hashes() -> None:
    """V-M14."""
    with pytest.raises(UsageError, match="no section for kernel hashes"):
        snp_launch_digest(OVMFX64, 1, vcpu_type="EPYC-v4", kernel=b"", initrd=b"")


@pytest.mark.parametrize(
    "row",
    [row for row in VECTORS["published_launch_digests"] if row["mode"] == "sev-snp"],
    ids=lambda row: row["test"],
)
def test_every_published_snp_row(row: dict[str, Any]) -> None:
    image = {"ovmf_AmdSev_suffix": AMDSEV, "ovmf_OvmfX64_suffix": OVMFX64}[row["firmware"]]
    maker = "ec2-2023" if row["vmm"] == "ec2" and row["rdx"] == "0x0" else row["vmm"]
    kernel = None if row["kernel"] is None else b""
    found = snp_launch_digest(
        image,
        row["vcpus"],
        vcpu_signature=int(row["vcpu_sig"], 0) if row["vcpu_sig"] else None,
        vmm=maker,
        kernel=kernel,
        initrd=kernel,
        append=row["append"] or ("" if kernel is not None else None),
        guest_features=int(row["sev_features"].split()[0], 0),
        ovmf_hash=snp_ovmf_hash(image) if row["start_from_ovmf_hash"] else None,
    )
    assert found.hex() == row["digest"]


def _installed(name: str) -> Path:
    """A file of DIGESTS: beside it, or of the Debian package it was computed with, if that is installed."""
    if not name.startswith("debian:"):
        return DATA / "measure" / name
    for folder in ("/usr/share/ovmf", "/usr/share/OVMF"):
        path = Path(folder) / name.removeprefix("debian:")
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == DIGESTS["debian_sha256"][name]:
            return path
    pytest.skip(f"{name}: not installed, or another build")


@pytest.mark.parametrize(
    "case",
    [case for case in DIGESTS["cases"] if case["mode"] == "snp"],
    ids=lambda case: f"{case['ovmf']} {case['vmm']} {case['vcpus']} {case['kernel']} {case['guest_features']}",
)
def test_collected_digests(case: dict[str, Any]) -> None:
    image = _installed(case["ovmf"]).read_bytes()
    options: dict[str, Any] = {
        "vcpu_type": case["vcpu_type"],
        "vmm": case["vmm"],
        "kernel": None if case["kernel"] is None else b"",
        "initrd": None if case["initrd"] is None else b"",
        "append": case["cmdline"],
        "guest_features": int(case["guest_features"], 0),
    }
    if case["launch_digest"].startswith("ERROR"):
        with pytest.raises(SevError):
            snp_launch_digest(image, case["vcpus"], **options)
    else:
        assert snp_launch_digest(image, case["vcpus"], **options).hex() == case["launch_digest"]


@pytest.mark.parametrize("name", DIGESTS["snp_ovmf_hash"])
def test_collected_firmware_hashes(name: str) -> None:
    assert snp_ovmf_hash(_installed(name).read_bytes()).hex() == DIGESTS["snp_ovmf_hash"][name]


@pytest.mark.parametrize("name", ["ovmf_AmdSev_suffix", "ovmf_OvmfX64_suffix"])
def test_tables_of_real_images(name: str) -> None:
    facts = VECTORS["firmware_fixtures"][name]
    image = ovmf.Image({"ovmf_AmdSev_suffix": AMDSEV, "ovmf_OvmfX64_suffix": OVMFX64}[name])
    assert [[kind, hex(gpa), hex(size)] for gpa, size, kind in image.sections] == facts["sections"]
    assert image.u32(ovmf.RESET_BLOCK) == int(facts["table_reset_eip"], 0)
    assert image.gpa == int(facts["gpa"], 0)
    assert (image.u32(ovmf.HASHES_TABLE) or 0) == int(facts["hash_table_gpa"], 0)
    assert snp_ovmf_hash(image.data).hex() == facts["ld_after_ovmf_pages"]


@pytest.mark.parametrize(
    ("vcpus", "expected"),
    [
        (2, "9b94745036aafddf4f7f8b00c7513abb5b7703178cb95aaa57928bd963d68d3bfcb715d6019b9167ee2517b11b0d9be7"),
        (4, "27d154c27b7b359c935e250ec6fee72aa0ae8c1225e3b0e1cf46a9567e938066d7d6f94bbdc4a857818bdb79277a44b2"),
    ],
)
def test_published_svsm_digests(vcpus: int, expected: str) -> None:
    """The images are not published with the vectors; their digest and their sections are."""
    facts = VECTORS["firmware_fixtures"]["svsm"]
    kinds = {1: page_info.ZERO, 2: page_info.SECRETS, 3: page_info.CPUID}
    regions = [Region(int(facts["ovmf_gpa"], 0), 0x37C000, page_info.NORMAL, None, "firmware and svsm")]
    for kind, gpa, size in facts["sections"]:
        regions.append(Region(int(gpa, 0), int(size, 0), kinds[kind], None, ovmf.SECTION_NAMES[kind]))
    reset = int(facts["svsm_reset_eip"], 0)
    plan = LaunchPlan(
        regions,
        [vmm.svsm_save_area(reset, 0x800F12)] * vcpus,
        ap_reset_address=reset,
        firmware_gpa=int(facts["ovmf_gpa"], 0),
        has_metadata=True,
        ovmf_hash=bytes.fromhex(facts["ld_after_ovmf_and_svsm_pages"]),
    )
    assert plan.digest().hex() == expected


def test_computed_chain_of_page_records() -> None:
    facts = VECTORS["computed"]["ld_chain"]
    page = bytes(range(256)) * 16
    kinds = {name.upper(): number for number, name in page_info.PAGE_TYPES.items()}
    current = page_info.EMPTY_DIGEST
    for step in facts["steps"]:
        kind, contents = kinds[step["page_type"]], page_info.EMPTY_DIGEST
        if kind == page_info.NORMAL:
            contents = hashlib.sha384(page).digest()
        if kind == page_info.VMSA:
            contents = hashlib.sha384(bytes(4096)).digest()
        current = page_info.extend(current, contents, kind, int(step["gpa"], 0))
        assert current.hex() == step["ld"]
    alone = page_info.extend(
        page_info.EMPTY_DIGEST, hashlib.sha384(page).digest(), page_info.NORMAL, 0x1000, vmpl1=0xF, vmpl2=7, vmpl3=1
    )
    assert alone.hex() == facts["normal_page_vmpl1_f_vmpl2_7_vmpl3_1_alone"]
    large = digest.add_run(page_info.EMPTY_DIGEST, page_info.ZERO, 0x200000, 0x200000)
    assert large.hex() == facts["one_2mib_zero_page_at_0x200000"]


SYNTHETIC: dict[str, Any] = VECTORS["computed"]["synthetic_firmware"]


def _synthetic() -> bytes:
    image = bytearray((7 * i + 3) % 256 if i < 0x1000 else 0 for i in range(8192))
    metadata, footer = bytes.fromhex(SYNTHETIC["metadata_at_0x1c00"]), bytes.fromhex(SYNTHETIC["table_at_0x1f6e"])
    image[0x1C00 : 0x1C00 + len(metadata)] = metadata
    image[0x1F6E : 0x1F6E + len(footer)] = footer
    return bytes(image)


def test_computed_synthetic_firmware() -> None:
    image = _synthetic()
    assert hashlib.sha256(image).hexdigest() == SYNTHETIC["sha256"]
    assert snp_ovmf_hash(image).hex() == SYNTHETIC["ld_after_firmware_pages"]
    assert ovmf.Image(image).u32(ovmf.RESET_BLOCK) == int(SYNTHETIC["ap_reset_eip"], 0)
    hashes = table(b"sevd-kat-kernel", b"sevd-kat-initrd", "console=ttyS0")
    assert hashes.hex() == SYNTHETIC["hash_table_176_bytes"]


@pytest.mark.parametrize("name", [name for name in SYNTHETIC["digests"] if name.startswith("snp")])
def test_computed_synthetic_launches(name: str) -> None:
    words = name.replace("(rdx 0x600) ", "").split()
    number = {words[at]: words[at + 1] for at in range(len(words) - 1)}
    kernel = None if "no kernel" in name else b"sevd-kat-kernel"
    found = snp_launch_digest(
        _synthetic(),
        int(words[2].removesuffix("vcpu")),
        vcpu_signature=int(number["sig"], 0) if "sig" in number else None,
        vmm=words[1],
        kernel=kernel,
        initrd=None if kernel is None else b"sevd-kat-initrd",
        append=None if kernel is None else "console=ttyS0",
        guest_features=int(number["feat"], 0),
    )
    assert found.hex() == SYNTHETIC["digests"][name]


def _record(facts: dict[str, str], name: str) -> bytes:
    return layout.encode_key(int(facts[f"{name}_x"], 16), int(facts[f"{name}_y"], 16))


def test_published_id_block() -> None:
    """V-I01, V-I02 and V-I03."""
    facts = VECTORS["published_id_block"][0]
    block = layout.IdBlock(bytes.fromhex(facts["id_block_hex"])[:48])
    assert block.encode().hex() == facts["id_block_hex"]
    auth = layout.IdAuth(
        _record(facts, "id_key"),
        layout.encode_signature(int(facts["id_block_sig_r"], 16), int(facts["id_block_sig_s"], 16)),
        _record(facts, "author_key"),
        layout.encode_signature(int(facts["id_key_sig_r"], 16), int(facts["id_key_sig_s"], 16)),
    )
    assert layout.key_digest(auth.id_key).hex() == facts["id_key_digest"]
    assert layout.key_digest(auth.author_key).hex() == facts["author_key_digest"]
    assert hashlib.sha256(auth.encode()).hexdigest() == facts["id_auth_page_sha256"]
    verify(block, auth)
    verify(layout.IdBlock.decode(block.encode()), layout.IdAuth.decode(auth.encode()))


def test_published_key_digests_of_the_other_tool() -> None:
    """V-I04."""
    facts = VECTORS["published_id_block"][1]
    assert layout.key_digest(_record(facts, "id_key")).hex() == facts["id_key_digest"]
    assert layout.key_digest(_record(facts, "author_key")).hex() == facts["author_key_digest"]
    assert len(b64decode(facts["launch_digest_b64"])) == 48


def test_collected_id_block() -> None:
    block = layout.IdBlock.decode((DATA / "idblock" / "id-block-a.bin").read_bytes())
    auth = layout.IdAuth.decode((DATA / "idblock" / "id-auth-a.bin").read_bytes())
    verify(block, auth)
    assert block.launch_digest.hex().startswith("ffb0cb7f01a5d5b1")
    assert (block.version, block.guest_svn, block.policy) == (1, 0, 0x30000)
    assert layout.key_digest(auth.id_key).hex().startswith("64a7dce6dcc44a98")
    assert layout.key_digest(auth.author_key).hex().startswith("bbb27d63ea847e04")
    assert auth.encode() == (DATA / "idblock" / "id-auth-a.bin").read_bytes()


def test_computed_key_digest() -> None:
    owner = VECTORS["computed"]["session"]["owner_dh"]
    record = layout.encode_key(int(owner["pub_x"], 16), int(owner["pub_y"], 16))
    assert layout.key_digest(record).hex() == VECTORS["computed"]["key_format_digest"]["sha384_of_0x404_bytes"]
