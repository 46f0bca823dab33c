"""Launch digests of SEV and SEV-ES: the published ones, and agreement with sev-snp-measure on random launches."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from sev.errors import MalformedInput, SevError, UsageError
from sev.measurement.legacy import LegacyPlan, sev_es_plan, sev_plan
from sev.measurement.sample import sample_firmware
from tests.support.data import DATA
from tests.support.needs import lacking

AMDSEV = (DATA / "measure" / "ovmf_AmdSev_suffix.bin").read_bytes()
OVMFX64 = (DATA / "measure" / "ovmf_OvmfX64_suffix.bin").read_bytes()
CONSOLE = "console=ttyS0 loglevel=7"
INSTALLED = Path("/usr/share/ovmf/OVMF.fd")


def es(image: bytes, vcpus: int, **options: Any) -> LegacyPlan:
    return sev_es_plan(image, vcpus, vcpu_type="EPYC-v4", **options)


def test_v_m15_and_16_sev_es() -> None:
    empty: dict[str, Any] = {"kernel": b"", "initrd": b"", "append": ""}
    one = es(AMDSEV, 1, **empty).digest().hex()
    assert one == "13810ae661ea11e2bb205621f582fee268f0367c8f97bc297b7fadef3e12002c"
    four = es(AMDSEV, 4, **empty).digest().hex()
    assert four == "0dccbcaba8e90b261bd0d2e1863a2f9da714768b7b2a19363cd6ae35aa90de91"


def test_v_m17_and_21_no_room_for_kernel_hashes() -> None:
    with pytest.raises(UsageError, match="does not say where its hashes go"):
        es(OVMFX64, 1, kernel=b"", initrd=b"")
    with pytest.raises(UsageError, match="does not say where its hashes go"):
        sev_plan(OVMFX64, kernel=b"", initrd=b"")


def test_v_m18_to_20_sev() -> None:
    full = sev_plan(AMDSEV, kernel=b"", initrd=b"", append=CONSOLE).digest().hex()
    assert full == "82a3ee5d537c3620628270c292ae30cb40c3c878666a7890ee7ef2a08fb535ff"
    kernel = sev_plan(AMDSEV, kernel=b"").digest().hex()
    assert kernel == "77f613d7bbcdf12a73782ea9e88b0172aeda50d1a54201cb903594ff52846898"
    bare = sev_plan(OVMFX64).digest().hex()
    assert bare == "b4c021e085fb83ceffe6571a3d357b4a98773c83c474e47f76c876708fe316da"


def test_where_things_go() -> None:
    plan = sev_plan(AMDSEV, kernel=b"")
    assert (plan.firmware_gpa, plan.kernel_hashes_gpa, len(plan.kernel_hashes)) == (0xFFFFF000, 0x810C00, 176)
    assert plan.secret_gpa
    assert plan.secret_size
    assert not sev_plan(AMDSEV).kernel_hashes_gpa
    assert es(AMDSEV, 2).ap_reset_address == 0x80B004


def test_refusals() -> None:
    with pytest.raises(MalformedInput):
        sev_plan(b"x" * 100)
    with pytest.raises(UsageError, match="vcpus"):
        es(AMDSEV, 0)
    with pytest.raises(UsageError, match="CPU type"):
        sev_es_plan(AMDSEV, 1)
    with pytest.raises(MalformedInput, match="reset block"):
        es(bytes(4096), 2)
    with pytest.raises(UsageError, match="without a kernel"):
        sev_plan(AMDSEV, append="quiet")


@pytest.mark.peer
def test_a_hundred_random_launches(tmp_path: Path) -> None:
    try:
        from sevsnpmeasure import guest, vcpu_types
    except ImportError:
        lacking("needs sev-snp-measure")
    from sevsnpmeasure.sev_mode import SevMode
    from sevsnpmeasure.vmm_types import VMMType

    makers = {"qemu": VMMType.QEMU, "ec2": VMMType.ec2, "gce": VMMType.gce}
    random = Random(20260526)
    images = [tmp_path / "sample.fd", tmp_path / "amdsev.fd"] + ([INSTALLED] if INSTALLED.is_file() else [])
    images[0].write_bytes(sample_firmware(64 * 1024))
    images[1].write_bytes(AMDSEV)
    blobs = [tmp_path / f"blob{number}" for number in range(3)]
    for blob, size in zip(blobs, (0, 4095, 70000), strict=True):
        blob.write_bytes(random.randbytes(size))
    agreed = {False: 0, True: 0}
    while sum(agreed.values()) < 100:
        image, encrypted = random.choice(images), random.random() < 0.5
        vcpus, maker = random.choice((1, 2, 5, 32)), random.choice(list(makers))
        signature = random.choice((*vcpu_types.CPU_SIGS.values(), random.getrandbits(32)))
        kernel = random.choice(blobs) if random.random() < 0.6 else None
        initrd = random.choice(blobs) if kernel and random.random() < 0.7 else None
        append = random.choice(("", CONSOLE, " blanks ")) if kernel else None
        ours: dict[str, Any] = {
            "kernel": kernel and kernel.read_bytes(),
            "initrd": initrd and initrd.read_bytes(),
            "append": append,
        }
        mode = SevMode.SEV_ES if encrypted else SevMode.SEV
        files = str(image), str(kernel or ""), str(initrd or ""), append or ""
        try:
            if encrypted:
                plan = sev_es_plan(image.read_bytes(), vcpus, vcpu_signature=signature, vmm=maker, **ours)
            else:
                plan = sev_plan(image.read_bytes(), **ours)
        except SevError:
            with pytest.raises((RuntimeError, ValueError)):
                guest.calc_launch_digest(mode, vcpus, signature, *files, 0, "", makers[maker])
            continue
        theirs = guest.calc_launch_digest(mode, vcpus, signature, *files, 0, "", makers[maker])
        assert plan.digest() == theirs
        agreed[encrypted] += 1
    assert min(agreed.values()) > 25
