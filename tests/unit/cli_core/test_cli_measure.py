"""`sev measure` and `sev id-block` as commands."""

from __future__ import annotations

import io
import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from sev.abi.id_block import IdAuth, IdBlock
from sev.cli import measure
from sev.cli.main import build_parser
from sev.errors import UsageError
from sev.measurement import snp_launch_digest, snp_ovmf_hash, snp_plan
from sev.measurement.id_block import public_digest, verify
from sev.measurement.ovmf import SEV_METADATA, SVSM_INFO
from sev.measurement.sample import SECTIONS, footer, metadata, place, sample_firmware
from tests.support.cli import sev

IMAGE = sample_firmware(16384)
BASE: dict[str, Any] = {"vcpu_type": "EPYC-v4"}


@pytest.fixture
def ovmf(tmp_path: Path) -> Path:
    path = tmp_path / "ovmf.fd"
    path.write_bytes(IMAGE)
    return path


def test_the_digest_and_nothing_else(ovmf: Path) -> None:
    done = sev("measure", "snp", "--ovmf", ovmf, "--vcpus", 3, "--vcpu-type", "EPYC-v4", "--output", "hex")
    expected = snp_launch_digest(IMAGE, 3, **BASE)
    assert (done.code, done.out, done.err) == (0, expected.hex() + "\n", "")
    assert sev("measure", "snp", "--ovmf", ovmf, "--vcpus", 3, "--vcpu-type", "EPYC-v4").out == done.out
    base64 = sev("measure", "snp", "--ovmf", ovmf, "--vcpus=3", "--vcpu-type", "EPYC-v4", "--output-format", "base64")
    assert b64decode(base64.out) == expected


def test_json(ovmf: Path) -> None:
    words = ("measure", "snp", "--ovmf", ovmf, "--vcpu-type", "EPYC-v4")
    document = sev(*words, "--json").json()
    assert document == sev(*words, "--output", "json").json()
    assert document["launch_digest"] == snp_launch_digest(IMAGE, 1, **BASE).hex()
    assert (document["vcpus"], document["has_metadata"]) == (1, True)


OPTIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "signature": (["--vcpu-sig", "0xb00f00"], {"vcpu_signature": 0xB00F00}),
    "family": (
        ["--vcpu-family", "26", "--vcpu-model", "2", "--vcpu-stepping", "1"],
        {"vcpu_signature": 0xB00F21},
    ),
    "family with zeros": (
        ["--vcpu-family", "23", "--vcpu-model", "0", "--vcpu-stepping", "0"],
        {"vcpu_signature": 0x800F00},
    ),
    "type in lower case": (["--vcpu-type", "epyc-genoa"], {"vcpu_type": "EPYC-Genoa"}),
    "ec2": (["--vmm", "ec2"], {"vmm": "ec2"}),
    "older ec2": (["--vmm", "ec2-2023"], {"vmm": "ec2-2023"}),
    "gce, other spelling": (["--vmm-type", "gce"], {"vmm": "gce"}),
    "QEMU, other spelling": (["--vmm-type", "QEMU", "--vcpu-type", "EPYC"], {"vcpu_type": "EPYC"}),
    "krun": (["--vmm", "krun"], {"vmm": "krun"}),
    "features": (["--vmm", "ec2", "--guest-features", "0x21"], {"vmm": "ec2", "guest_features": 0x21}),
    "features in decimal": (["--vmm", "ec2", "--guest-features", "33"], {"vmm": "ec2", "guest_features": 0x21}),
    "firmware hash": (["--vmm", "ec2", "--ovmf-hash", "ab" * 48], {"vmm": "ec2", "ovmf_hash": b"\xab" * 48}),
    "firmware hash, other spelling": (
        ["--vmm", "ec2", "--snp-ovmf-hash", "AB" * 48],
        {"vmm": "ec2", "ovmf_hash": b"\xab" * 48},
    ),
    "kernel": (["--vmm", "ec2", "--kernel", "KERNEL"], {"vmm": "ec2", "kernel": b"kernel"}),
    "kernel, initrd, command line": (
        ["--vmm", "ec2", "--kernel", "KERNEL", "--initrd", "INITRD", "--append", " a=b  c "],
        {"vmm": "ec2", "kernel": b"kernel", "initrd": b"initrd", "append": " a=b  c "},
    ),
    "empty command line": (["--vmm", "ec2", "--kernel", "KERNEL", "--append", ""], {"vmm": "ec2", "kernel": b"kernel"}),
    "command line like an option": (
        ["--vmm", "ec2", "--kernel", "KERNEL", "--append=--json"],
        {"vmm": "ec2", "kernel": b"kernel", "append": "--json"},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_reach_the_measurement(ovmf: Path, name: str) -> None:
    words, options = OPTIONS[name]
    (ovmf.parent / "KERNEL").write_bytes(b"kernel")
    (ovmf.parent / "INITRD").write_bytes(b"initrd")
    words = [str(ovmf.parent / word) if word in ("KERNEL", "INITRD") else word for word in words]
    done = sev("measure", "snp", "--ovmf", ovmf, "--vcpus", 2, *words)
    assert (done.out, done.err) == (snp_launch_digest(IMAGE, 2, **options).hex() + "\n", "")


WRONG: dict[str, tuple[list[str], int, str]] = {
    "no CPU": ([], 2, "the CPU type is missing"),
    "unknown CPU": (["--vcpu-type", "EPYC-Millan"], 2, "Did you mean EPYC-Milan?"),
    "two CPUs": (["--vcpu-type", "EPYC", "--vcpu-sig", "1"], 2, "exclude each other"),
    "family alone": (["--vcpu-family", "25"], 2, "--vcpu-family without --vcpu-model and --vcpu-stepping"),
    "no family": (["--vcpu-model", "1"], 2, "without --vcpu-family and --vcpu-stepping"),
    "stepping too large": (["--vcpu-stepping", "16"], 2, "expected a number from 0 to 15"),
    "zero vCPUs": (["--vcpus", "0"], 2, "expected a number from 1 to 4096"),
    "vCPUs in words": (["--vcpus", "four"], 2, "expected a whole number"),
    "unknown VMM": (["--vmm", "xen"], 2, "unknown VMM 'xen'"),
    "initrd alone": (["--initrd", "x", "--vmm", "ec2"], 2, "--initrd without --kernel"),
    "command line alone": (["--append", "", "--vmm", "ec2"], 2, "--append without --kernel"),
    "no kernel file": (["--kernel", "/nonexistent", "--vmm", "ec2"], 2, "cannot read the kernel '/nonexistent'"),
    "short hash": (["--ovmf-hash", "ab", "--vmm", "ec2"], 2, "expected 48 bytes"),
    "no SVSM file": (["--svsm", "/nonexistent", "--vars-size", "0"], 2, "cannot read the SVSM image"),
    "unknown format": (["--output", "xml", "--vmm", "ec2"], 2, "'xml' is not known"),
    "vars without SVSM": (["--vars-size", "1", "--vmm", "ec2"], 2, "are for --svsm only"),
    "misspelt": (["--vcpu-tpye", "EPYC"], 2, "Did you mean --vcpu-type?"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(ovmf: Path, name: str) -> None:
    words, code, message = WRONG[name]
    done = sev("measure", "snp", "--ovmf", ovmf, *words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_the_image_is_missing_or_no_image(tmp_path: Path) -> None:
    assert "the following arguments are required: --ovmf" in sev("measure", "snp").err
    done = sev("measure", "snp", "--ovmf", tmp_path / "none", "--vmm", "ec2")
    assert (done.code, "No such file" in done.err) == (2, True)
    (tmp_path / "short").write_bytes(b"x" * 100)
    done = sev("measure", "snp", "--ovmf", tmp_path / "short", "--vmm", "ec2", "--json")
    assert (done.code, done.json()["error"]["kind"]) == (9, "malformed")
    (tmp_path / "huge").touch()
    with open(tmp_path / "huge", "r+b") as file:
        file.truncate((256 << 20) + 1)
    assert "larger than" in sev("measure", "snp", "--ovmf", tmp_path / "huge", "--vmm", "ec2").err


def test_an_image_without_metadata_is_measured_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "plain.fd"
    path.write_bytes(bytes(8192))
    done = sev("measure", "snp", "--ovmf", path, "--vmm", "ec2", "--output", "hex")
    assert (done.code, done.out) == (0, snp_launch_digest(bytes(8192), 1, vmm="ec2").hex() + "\n")
    assert "no SEV metadata" in done.err
    assert sev("measure", "snp", "--ovmf", path, "--vmm", "ec2", "-q").err == ""
    assert sev("measure", "snp", "--ovmf", path, "--vmm", "ec2", "--vcpus", 2).code == 9


def test_explain(ovmf: Path) -> None:
    words = ("measure", "snp", "--ovmf", ovmf, "--vcpus", 2, "--vcpu-type", "EPYC-v4", "--explain")
    expected = snp_launch_digest(IMAGE, 2, **BASE).hex()
    pages = sum(region.size for region in snp_plan(IMAGE, 2, **BASE).regions) // 4096 + 2
    text = sev(*words)
    lines = text.out.splitlines()
    assert (len(lines), lines[-1], text.err) == (pages + 1, expected, "")
    assert lines[0].split()[:3] == ["0x0000ffffc000", "normal", "firmware"]
    assert lines[-2].split() == ["0xfffffffff000", "vmsa", "vmsa", "1", expected]
    alone = sev(*words, "--output", "hex")
    assert (alone.out, len(alone.err.splitlines())) == (expected + "\n", pages)
    document = sev(*words, "--json").json()
    assert (len(document["pages"]), document["launch_digest"]) == (pages, expected)
    assert document["pages"][-1]["launch_digest"] == expected
    short = sev(*words, "--ovmf-hash", snp_ovmf_hash(IMAGE).hex())
    assert short.out.splitlines()[0].endswith(" x 4")
    assert short.out.splitlines()[-1] == expected


def test_dumped_pages(ovmf: Path) -> None:
    folder = ovmf.parent / "new" / "pages"
    done = sev("measure", "snp", "--ovmf", ovmf, "--vcpus", 2, "--vcpu-type", "EPYC-v4", "--dump-vmsa", folder)
    assert done.code == 0
    assert [(folder / f"vmsa{number}.bin").read_bytes() for number in (0, 1)] == snp_plan(IMAGE, 2, **BASE).vmsas
    assert sev("measure", "snp", "--ovmf", ovmf, "--vmm", "ec2", "--dump-vmsa", ovmf).code == 2


def test_firmware_hash(ovmf: Path) -> None:
    expected = snp_ovmf_hash(IMAGE)
    assert sev("measure", "ovmf-hash", "--ovmf", ovmf).out == expected.hex() + "\n"
    assert sev("measure", "snp:ovmf-hash", "--ovmf", ovmf, "--output=base64").out == b64encode(expected).decode() + "\n"
    assert sev("measure", "ovmf-hash", "--ovmf", ovmf, "--json").json() == {"ovmf_hash": expected.hex()}


def test_svsm(ovmf: Path) -> None:
    image = bytearray(16384)
    place(image, 0x300, metadata(SECTIONS[:4]))
    table = footer(((SVSM_INFO, (0x1000).to_bytes(4, "little")), (SEV_METADATA, (0x300).to_bytes(4, "little"))))
    place(image, 32 + len(table), table)
    svsm, store = ovmf.parent / "svsm.bin", ovmf.parent / "vars.fd"
    svsm.write_bytes(image)
    store.write_bytes(bytes(0x84000))
    words = ("snp:svsm", "--ovmf", ovmf, "--svsm", svsm, "--vcpus", 2, "--vcpu-type", "EPYC-v4")
    expected = snp_plan(IMAGE, 2, **BASE, svsm=bytes(image), svsm_vars_size=0x84000).digest().hex() + "\n"
    assert sev("measure", *words, "--vars-file", store).out == expected
    assert sev("measure", *words, "--vars-size", 0x84000).out == expected
    assert sev("measure", *words, "--vars-size", "528KiB").out == expected
    assert sev("measure", *words, "--vars-size", "528KiB", "--svsm-fcw", "0x37f").out != expected
    assert "without --vars-file or --vars-size" in sev("measure", *words).err
    assert "give one of them" in sev("measure", *words, "--vars-size", 1, "--vars-file", store).err


def test_earlier_modes_are_not_offered() -> None:
    assert sev("measure", "sev", "--ovmf", "x").code == 2
    assert sev("measure", "sev-es", "--ovmf", "x").code == 2


WORDS = st.lists(
    st.sampled_from(
        ["--ovmf", "--ovmf=f", "f", "--vcpus", "4", "0x4", "--vcpus=9", "--explain", "--explain=1", "--vmm-type", "ec2",
         "--append", "-", "--append=-x", "", "--output", "hex", "--output=b64", "--nonsense", "--", "-h", "--vmm"]
    ),
    max_size=7,
)  # fmt: skip


@given(WORDS)
def test_the_quick_way_reads_what_the_parser_reads(words: list[str]) -> None:
    """Where the quick way has an answer it is argparse's; where argparse has an objection, it has none."""
    quick = measure.quick(["snp", *words])
    if quick is None:
        return
    args, run = quick
    parsed, extras = build_parser("measure").parse_known_args(["snp", *words])
    assert extras == []
    slow = {name: value for name, value in vars(parsed).items() if name not in ("parser", "run")}
    assert (vars(args), run) == (slow, parsed.run)


def test_plain_commands_take_the_quick_way() -> None:
    assert measure.quick(["snp", "--ovmf", "f", "--vcpus", "4", "--vcpu-type=EPYC-v4", "--explain"]) is not None
    assert measure.quick(["ovmf-hash", "--ovmf", "f", "--output", "base64"]) is not None
    for words in ([], ["snp"], ["snp", "--help"], ["snp", "--ovmf"], ["snp", "--ovmf", "f", "x"], ["nonsense"]):
        assert measure.quick(words) is None


KEY, AUTHOR = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "id.pem", tmp_path / "author.pem"
    for path, key in zip(paths, (KEY, AUTHOR), strict=True):
        path.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()))
    return paths


def _qemu(line: str) -> tuple[IdBlock, IdAuth]:
    block, _, auth = line.partition(",")
    assert block.startswith("id-block=")
    assert auth.startswith("id-auth=")
    return (
        IdBlock.decode(b64decode(block.removeprefix("id-block="), validate=True)),
        IdAuth.decode(b64decode(auth.removeprefix("id-auth="), validate=True)),
    )


def test_id_block_of_a_measured_launch(ovmf: Path, keys: tuple[Path, Path]) -> None:
    done = sev("id-block", "create", "--ovmf", ovmf, "--vcpus", 2, "--vcpu-type", "EPYC-v4", "--id-key", keys[0])
    assert (done.code, done.err) == (0, "")
    line, digest = done.out.splitlines()
    block, auth = _qemu(line)
    verify(block, auth)
    assert block == IdBlock(snp_launch_digest(IMAGE, 2, **BASE))
    assert not auth.has_author
    assert digest == f"id_key_digest: {public_digest(KEY.public_key()).hex()}"


def test_id_block_with_everything(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    block_file, auth_file = tmp_path / "block", tmp_path / "auth"
    for measurement in ("07" * 48, b64encode(b"\x07" * 48).decode(), "0x" + "07" * 48):
        done = sev(
            "id-block", "create", "--measurement", measurement, "--idkey", keys[0], "--authorkey", keys[1],
            "--family-id", "11" * 16, "--image-id", "22" * 16, "--svn", 9, "--policy", "0x3001f",
            "--out", block_file, "--auth-out", auth_file,
        )  # fmt: skip
        assert done.code == 0
        assert "author-key-enabled=on" in done.err
        block, auth = _qemu(done.out.splitlines()[0])
        expected = IdBlock(b"\x07" * 48, family_id=b"\x11" * 16, image_id=b"\x22" * 16, guest_svn=9, policy=0x3001F)
        assert block == expected
        verify(block, auth)
        assert (block_file.read_bytes(), auth_file.read_bytes()) == (block.encode(), auth.encode())
        assert done.out.splitlines()[2] == f"author_key_digest: {public_digest(AUTHOR.public_key()).hex()}"


def test_id_block_json(keys: tuple[Path, Path]) -> None:
    document = sev("id-block", "create", "--measurement", "00" * 48, "--id-key", keys[0], "--json").json()
    block, auth = _qemu(document["qemu"])
    assert (document["id_block"], document["id_auth"]) == (block.encode().hex(), auth.encode().hex())
    assert document["id_key_digest"] == public_digest(KEY.public_key()).hex()


def test_id_block_usage(ovmf: Path, keys: tuple[Path, Path]) -> None:
    create = ("id-block", "create", "--id-key", keys[0])
    assert "--measurement or --ovmf is missing" in sev(*create).err
    assert "give one of them" in sev(*create, "--measurement", "00" * 48, "--ovmf", ovmf).err
    assert "expected 48 bytes" in sev(*create, "--measurement", "00" * 47).err
    assert "expected 48 bytes" in sev(*create, "--measurement", "!").err
    assert "expected 16 bytes" in sev(*create, "--measurement", "00" * 48, "--family-id", "00").err
    assert sev("id-block", "create", "--measurement", "00" * 48).code == 2
    done = sev("id-block", "create", "--measurement", "00" * 48, "--id-key", ovmf)
    assert (done.code, "is not a private key" in done.err) == (9, True)
    assert sev("id-block", "create", "--measurement", "00" * 48, "--id-key", "/nonexistent").code == 2


def test_key_digests(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    public = tmp_path / "public.pem"
    public.write_bytes(KEY.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo))
    expected = public_digest(KEY.public_key())
    for path in (keys[0], public):
        assert sev("id-block", "digest", path).out == expected.hex() + "\n"
    assert b64decode(sev("id-block", "digest", public, "--output", "base64").out) == expected
    assert sev("id-block", "digest", public, "--json").json() == {"key_digest": expected.hex()}
    assert sev("id-block", "digest", tmp_path).code == 2


def test_usage_errors_are_errors_of_the_library() -> None:
    with pytest.raises(UsageError):
        build_parser("measure").parse_known_args(["snp", "--vcpus", "x"])
    assert json.loads(io.StringIO(sev("--json", "measure").out).read())["error"]["kind"] == "usage"
