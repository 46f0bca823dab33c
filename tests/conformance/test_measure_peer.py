"""Agreement with sev-snp-measure, in process, on random launches: QEMU, EC2, GCE and SVSM."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sev.errors import SevError
from sev.measurement import snp_launch_digest, snp_ovmf_hash, snp_plan
from sev.measurement.guids import mixed
from sev.measurement.ovmf import SVSM_INFO
from sev.measurement.sample import SECTIONS, footer, metadata, place, sample_firmware

guest = pytest.importorskip("sevsnpmeasure.guest")
from sevsnpmeasure import vcpu_types  # noqa: E402
from sevsnpmeasure.sev_mode import SevMode  # noqa: E402
from sevsnpmeasure.vmm_types import VMMType  # noqa: E402

INSTALLED = Path("/usr/share/ovmf/OVMF.fd")
NAMES = {"qemu": "QEMU", "ec2": "ec2", "gce": "gce"}


class Files:
    """Random kernels and initrds on disk, as the other program wants them."""

    def __init__(self, folder: Path, random: Random) -> None:
        self.sample = folder / "sample.fd"
        self.sample.write_bytes(sample_firmware(64 * 1024))
        self.blobs: list[Path] = []
        for number, size in enumerate((0, 1, 4095, 70000)):
            self.blobs.append(folder / f"blob{number}")
            self.blobs[-1].write_bytes(random.randbytes(size))


def _case(files: Files, random: Random, image: Path) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Options of ours and arguments of theirs for one launch."""
    maker = random.choice(list(NAMES))
    vcpus, features = random.choice((1, 2, 3, 4, 8, 16, 33)), random.choice((0x1, 0x21, 0x201, random.getrandbits(64)))
    signature = random.choice((*vcpu_types.CPU_SIGS.values(), random.getrandbits(32)))
    kernel = random.choice(files.blobs) if random.random() < 0.6 else None
    initrd = random.choice(files.blobs) if kernel and random.random() < 0.7 else None
    append = random.choice(("", "console=ttyS0", " trailing blanks  ", "ünïcödé=1")) if kernel else None
    digest = snp_ovmf_hash(image.read_bytes()) if random.random() < 0.3 else None
    ours: dict[str, Any] = {
        "vcpus": vcpus,
        "vcpu_signature": signature,
        "vmm": maker,
        "kernel": kernel and kernel.read_bytes(),
        "initrd": initrd and initrd.read_bytes(),
        "append": append,
        "guest_features": features,
        "ovmf_hash": digest,
    }
    theirs = (
        SevMode.SEV_SNP,
        vcpus,
        signature,
        str(image),
        str(kernel) if kernel else "",
        str(initrd) if initrd else "",
        append or "",
        features,
        digest.hex() if digest else "",
        VMMType[NAMES[maker]],
    )
    return ours, theirs


@pytest.mark.peer
def test_two_hundred_random_launches(tmp_path: Path) -> None:
    random = Random(20260525)
    files = Files(tmp_path, random)
    images = [files.sample] * 4 + ([INSTALLED] if INSTALLED.is_file() else [])
    agreed = refused = 0
    for _ in range(200):
        image = random.choice(images)
        ours, theirs = _case(files, random, image)
        try:
            expected = guest.calc_launch_digest(*theirs)
        except RuntimeError:
            refused += 1
            with pytest.raises(SevError):
                snp_launch_digest(image.read_bytes(), **ours)
            continue
        assert snp_launch_digest(image.read_bytes(), **ours) == expected, ours
        agreed += 1
    assert agreed + refused == 200
    assert agreed > 150


@pytest.mark.peer
def test_every_cpu_type_of_theirs() -> None:
    from sev.measurement.vcpu_types import signature

    assert {name: signature(name) for name in vcpu_types.CPU_SIGS} == dict(vcpu_types.CPU_SIGS)


def svsm_image(size: int = 32 * 1024, entry: int = 0x2000) -> bytes:
    """An image with the tables of a coconut-svsm."""
    image = bytearray(Random(1).randbytes(size))
    place(image, 0x300, metadata(SECTIONS[:4]))
    table = footer(
        (
            (SVSM_INFO, entry.to_bytes(4, "little")),
            (mixed("dc886566-984a-4798-a75e-5585a7bf67cc"), (0x300).to_bytes(4, "little")),
        )
    )
    place(image, 32 + len(table), table)
    return bytes(image)


@pytest.mark.peer
@pytest.mark.parametrize("vcpus", [1, 5])
def test_svsm(tmp_path: Path, vcpus: int) -> None:
    svsm, firmware = tmp_path / "svsm.bin", tmp_path / "firmware.fd"
    svsm.write_bytes(svsm_image())
    firmware.write_bytes(sample_firmware(64 * 1024))
    expected = guest.svsm_calc_launch_digest(vcpus, 0x800F12, str(firmware), 0x84000, str(svsm), False)
    plan = snp_plan(firmware.read_bytes(), vcpus, vcpu_type="EPYC-v4", svsm=svsm.read_bytes(), svsm_vars_size=0x84000)
    assert plan.digest() == expected
    assert list(plan.explain())[-1].digest == expected


@pytest.mark.peer
def test_vmsa_pages(tmp_path: Path) -> None:
    """The pages themselves, not only their digest."""
    firmware = tmp_path / "firmware.fd"
    firmware.write_bytes(sample_firmware(64 * 1024))
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        guest.snp_calc_launch_digest(3, 0xA00F11, str(firmware), "", "", "", 0x21, "", VMMType.QEMU, True)
    finally:
        os.chdir(before)
    pages = [(tmp_path / f"vmsa{number}.bin").read_bytes() for number in range(3)]
    assert snp_plan(firmware.read_bytes(), 3, vcpu_signature=0xA00F11, guest_features=0x21).vmsas == pages
