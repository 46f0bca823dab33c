"""Random commands of SEV guests: the model refuses with errnos alone, and keeps count of guests and ASIDs."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from sev.abi import kvm, kvm_sev_legacy
from sev.abi import kvm_sev as ids
from sevd.simulator import Simulator, kernel_era
from sevd.simulator.versions import parse
from tests.support.caller import PAGE, UNTOUCHED
from tests.support.legacy_machine import ES, SEV, LegacyMachine
from tests.support.simulated import simulated_host, template

ROUNDS = 1500
STRUCTURES = [(number, form) for number, form in kvm_sev_legacy.STRUCTURES.items() if number < ids.SNP_MIN_ID]
LIKELY = [ids.LAUNCH_START, ids.LAUNCH_UPDATE_DATA, ids.LAUNCH_MEASURE, ids.LAUNCH_FINISH, ids.LAUNCH_UPDATE_VMSA]
WORDS = (0, 1, 3, 4, 5, 8, 15, 16, 17, 32, 48, 52, 128, 208, 2084, 4095, 4096, 4097, 6252, 0x4000, 0x4001, 0xFFFFFFFF)


def structure(draw: random.Random, form: type | None, guest: LegacyMachine) -> bytes:
    """Half of it plausible."""
    if form is None:
        return b""
    size = form.size()  # type: ignore[attr-defined]
    data = bytearray(draw.randbytes(size))
    for _, (offset, width) in form.offsets().items():  # type: ignore[attr-defined]
        value = draw.choice(WORDS)
        if width == 8:
            at = guest.address + 16 * draw.randrange(64) + PAGE * draw.randrange(64)
            value = draw.choice((at, at, at + 3, 0, 0x1000, (1 << 64) - 16))
        if width <= 8 and draw.random() < 0.95:
            data[offset : offset + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(data)


@pytest.mark.parametrize("seed", range(3))
def test_random_commands(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    shutil.copytree(template("rome"), tmp_path, dirs_exist_ok=True)
    host = Simulator.open(tmp_path, product="rome", seed=1)
    process = host.process()
    guests = [LegacyMachine(process, vm_type) for vm_type in (SEV, ES, kvm.VM_TYPE_DEFAULT)]
    for guest in guests[1:]:
        guest.machine.vcpu()
    outcomes = set()
    for _ in range(ROUNDS):
        guest = draw.choice(guests)
        number, form = draw.choice(STRUCTURES)
        if draw.random() < 0.3:
            number = draw.choice(LIKELY)
            form = kvm_sev_legacy.STRUCTURES[number]
        data = structure(draw, form, guest)
        if number == ids.LAUNCH_START and draw.random() < 0.5:
            data = kvm_sev_legacy.LaunchStart(0, draw.choice((0, 4))).encode()
        outcome = guest.op(number, data)
        outcomes.add((number, outcome.name))
        assert outcome.errno or outcome.error in (0, UNTOUCHED)
        assert host.guest_count() <= len(guests)
    assert len(outcomes) > 50
    process.exit()
    assert host.guest_count() == 0
    assert {name: use for name, (_, use) in host.asids().items()} == {"sev": 0, "sev_es": 0}
    host.close()


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        ("naples", ("sev", "sev-es")),
        ("rome", ("sev", "sev-es")),
        ("milan", ("sev", "sev-snp")),
        ("genoa", ("sev", "sev-snp")),
        ("turin", ("sev", "sev-snp")),
    ],
)
def test_what_the_newest_firmware_offers(tmp_path: Path, product: str, expected: tuple[str, ...]) -> None:
    """Where there is SNP the kernel hides SEV-ES from its fix on (AMD-SB-3023)."""
    with simulated_host(tmp_path, product) as host:
        assert host.host_facts().technologies == expected


@pytest.mark.parametrize("era", kernel_era.ERAS)
def test_older_kernels_do_not_hide_sev_es(tmp_path: Path, era: str) -> None:
    shutil.copytree(template("genoa"), tmp_path, dirs_exist_ok=True)
    host = Simulator.open(tmp_path, product="genoa", kernel_era_name=era)
    assert ("sev-es" in host.host_facts().technologies) is (era != "C")
    host.close()
    assert parse("1.55.49") == host.firmware.version
