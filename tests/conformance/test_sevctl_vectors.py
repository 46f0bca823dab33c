"""The vectors of sevctl's own tests (V-X01 to V-X08), through the commands that take its place."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import sev
from tests.support.data import DATA

FOLDER = DATA / "measure"
MEASUREMENTS: dict[str, Any] = json.loads((FOLDER / "sev-measurements.json").read_text())
SECRETS: dict[str, Any] = json.loads((FOLDER / "sev-secrets.json").read_text())
GUID = "736869e5-84f0-4973-92ec-06879ce3da0b"


def words(case: dict[str, Any], folder: Path) -> list[object]:
    """The options that describe a case; its files are written to the folder."""
    (folder / "tik.bin").write_bytes(bytes.fromhex(MEASUREMENTS["tik_hex"]))
    out: list[object] = ["--api-major", case["api"][0], "--api-minor", hex(case["api"][1]), "--build-id", case["build"]]
    out += ["--policy", hex(case["policy"]), "--tik", folder / "tik.bin"]
    for name, option in (("kernel_hex", "--kernel"), ("initrd_hex", "--initrd")):
        if name in case:
            (folder / name).write_bytes(bytes.fromhex(case[name]))
            out += [option, folder / name]
    if "cmdline" in case:
        out += ["--append", case["cmdline"]]
    if "firmware" in case:
        out += ["--firmware", FOLDER / case["firmware"]]
    if "launch_digest_b64" in case:
        out += ["--launch-digest", case["launch_digest_b64"]]
    if "vcpus" in case:
        out += ["--num-cpus", case["vcpus"], "--vmsa-cpu0", FOLDER / case["vmsa_cpu0"]]
        out += ["--vmsa-cpu1", FOLDER / case["vmsa_cpu_other"]]
    return out


@pytest.mark.parametrize("number", range(len(MEASUREMENTS["cases"])))
def test_v_x01_to_04_measurements(number: int, tmp_path: Path) -> None:
    case = MEASUREMENTS["cases"][number]
    nonce = ["--nonce", case["nonce_b64"]] if "nonce_b64" in case else ["--launch-measure-blob", case["blob_b64"]]
    options = words(case, tmp_path)
    assert sev("measurement", "build", *options, *nonce).out.strip() == case["blob_b64"]
    done = sev("measurement", "build", *options, *nonce, "--outfile", tmp_path / "blob", "--json")
    assert done.code == 0
    assert (tmp_path / "blob").read_bytes() == b64decode(case["blob_b64"])
    checked = sev("measurement", "check", tmp_path / "blob", *options, "--json")
    assert (checked.code, checked.json()["verified"]) == (0, True)
    blob = bytearray(b64decode(case["blob_b64"]))
    blob[number] ^= 1
    assert sev("measurement", "check", b64encode(bytes(blob)).decode(), *options).code == 3


@pytest.mark.parametrize("number", range(len(SECRETS["cases"])))
def test_v_x05_and_06_secrets(number: int, tmp_path: Path) -> None:
    case = SECRETS["cases"][number]
    (tmp_path / "tik").write_bytes(bytes.fromhex(SECRETS["tik_hex"]))
    (tmp_path / "tek").write_bytes(bytes.fromhex(SECRETS["tek_hex"]))
    secrets: list[object] = []
    for guid in case["guids"]:
        (tmp_path / guid).write_bytes(bytes.fromhex(SECRETS["secrets"][guid]))
        secrets += ["--secret", f"{guid}:{tmp_path / guid}"]
    done = sev(
        "secret", "build", "--tik", tmp_path / "tik", "--tek", tmp_path / "tek", *secrets, "--iv", SECRETS["iv_b64"],
        "--launch-measure-blob", SECRETS["launch_measure_blob_b64"], tmp_path / "header", tmp_path / "payload",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert b64encode((tmp_path / "header").read_bytes()).decode() == case["header_b64"]
    assert b64encode((tmp_path / "payload").read_bytes()).decode() == case["payload_b64"]


@pytest.mark.parametrize(("size", "code"), [(16343, 0), (16344, 0), (16345, 2)])
def test_v_x07_the_largest_secrets(size: int, code: int, tmp_path: Path) -> None:
    for name, content in (("key", bytes(16)), ("secret", bytes(size))):
        (tmp_path / name).write_bytes(content)
    done = sev(
        "secret", "build", "--tik", tmp_path / "key", "--tek", tmp_path / "key", "--secret",
        f"{GUID}:{tmp_path / 'secret'}", "--launch-measure-blob", SECRETS["launch_measure_blob_b64"],
        tmp_path / "header", tmp_path / "payload",
    )  # fmt: skip
    assert done.code == code, done.err
    if not code:
        assert (tmp_path / "payload").stat().st_size == 16384
        assert (tmp_path / "header").stat().st_size == 52
    else:
        assert not (tmp_path / "payload").exists()


SHOWN = (
    "565635dc3ed91255264e2f9996c72e7dd0ed980a14212e9972ae77cc4ea90c4d",
    "309ac353cfbe44d6b5459ceb137e2688eacae84201de7427246bf5890362d96e",
)
"""SHA-256 of what sevctl 0.6.2 prints of the two pages."""


@pytest.mark.parametrize("cpu", [0, 1])
def test_v_x08_save_areas(cpu: int, tmp_path: Path) -> None:
    model = ["--family", 25, "--model", 1, "--stepping", 1]
    firmware = ["--firmware", FOLDER / "ovmf-amdsev-el9-tail4k.bin"]
    expected = (FOLDER / f"vmsa{cpu}.bin").read_bytes()
    page = tmp_path / "page"
    assert sev("vmsa", "build", page, "--cpu", cpu, "--userspace", "qemu", *model, *firmware).code == 0
    assert page.read_bytes() == expected
    assert sev("vmsa", "build", page, "--cpu", cpu, "--vcpu-type", "EPYC-Rome", *firmware).code == 0
    assert page.read_bytes() != expected
    assert sev("vmsa", "update", page, "--cpu", cpu, *model, *firmware).code == 0
    assert page.read_bytes() == expected
    shown = sev("vmsa", "show", page, "--json").json()
    assert shown["rdx"] == 0xA00F11
    assert shown["cs"]["base"] == (0x800000 if cpu else 0xFFFF0000)
    assert sha256(sev("vmsa", "show", page, "--form", "sevctl").data).hexdigest() == SHOWN[cpu]


def test_measure_sev_es_dumps_the_same_page(tmp_path: Path) -> None:
    firmware = FOLDER / "ovmf-amdsev-el9-tail4k.bin"
    done = sev(
        "measure", "sev-es", "--ovmf", firmware, "--vcpus", 2, "--vcpu-type", "EPYC-Milan", "--dump-vmsa", tmp_path
    )
    assert done.code == 0
    for cpu in (0, 1):
        built = tmp_path / "built"
        args = ["--cpu", cpu, "--vcpu-type", "EPYC-Milan", "--firmware", firmware, "--vm-type", "sev-es"]
        assert sev("vmsa", "build", built, *args).code == 0
        assert built.read_bytes() == (tmp_path / f"vmsa{cpu}.bin").read_bytes()


@pytest.mark.parametrize(
    "bad",
    [
        ("vmsa", "build", "x", "--cpu", "1", "--vcpu-type", "EPYC"),
        ("vmsa", "build", "x", "--vcpu-type", "EPYC", "--family", "1"),
        ("vmsa", "build", "x", "--family", "23"),
        ("vmsa", "update", "VMSA", "--set", "rdx"),
        ("vmsa", "update", "VMSA", "--set", "nothing=1"),
        ("vmsa", "update", "VMSA", "--set", "mxcsr=0x100000000"),
        ("vmsa", "show", "nowhere"),
    ],
)
def test_bad_save_areas(bad: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "VMSA"
    page.write_bytes(bytes(4096))
    assert sev(*bad).code == 2
    assert page.read_bytes() == bytes(4096)
    assert [path.name for path in tmp_path.iterdir()] == ["VMSA"]


def test_a_short_page_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(100))
    assert sev("vmsa", "show", tmp_path / "short").code == 9
