"""`guests.technologies`: a daemon offers what its configuration names, in every combination, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from sev.client import Host
from sev.errors import SevError
from sevd.config import TECHNOLOGIES
from tests.support.cli import sev
from tests.support.daemon import running
from tests.support.simulated import template
from tests.support.tiny_firmware import tiny_firmware

FIRMWARE = tiny_firmware(b"\xf4")
COMBINATIONS = [
    pytest.param(chosen, marks=[pytest.mark.long] if size == 2 else [], id="+".join(chosen))
    for size in (1, 2, 3)
    for chosen in combinations(TECHNOLOGIES, size)
]
HERE = {"snp": "sev-snp"}
"""Names of technologies where the host says what it has."""


def config(folder: Path, technologies: tuple[str, ...], product: str) -> tuple[str, ...]:
    """A daemon's arguments."""
    names = ", ".join(f'"{name}"' for name in technologies)
    (folder / "sevd.toml").write_text(f"[guests]\ntechnologies = [{names}]\n")
    (folder / "state").mkdir(mode=0o700)
    shutil.copytree(template(product), folder / "state" / "simulator")
    return f"--simulate={product}", "--config", str(folder / "sevd.toml")


def refused(call: Callable[[], object]) -> bool:
    """Whether the configuration is why; a failure for another reason is none."""
    try:
        call()
    except SevError as error:
        return error.exit_code == 6 and "guests.technologies" in error.message and "guests.technologies" in error.remedy
    return False


def creating(host: Host, name: str) -> Callable[[], object]:
    """Asks whether a guest of a technology could be made."""
    return lambda: host.create_guest(
        guest_type=name, memory_bytes=1 << 20, firmware_bytes=4096, vcpu_count=1, cpuid_signature=0xA00F11,
        validate_only=True,
    )  # fmt: skip


@pytest.mark.parametrize("chosen", COMBINATIONS)
def test_every_combination(tmp_path: Path, chosen: tuple[str, ...]) -> None:
    older = {"sev", "sev-es"} & set(chosen)
    with running(tmp_path, *config(tmp_path, chosen, "genoa")) as daemon, daemon.connect() as host:
        assert set(host.host().technologies) <= {HERE.get(name, name) for name in chosen}
        assert ("sev-snp" in host.host().technologies) == ("snp" in chosen)
        assert ("sev" in host.host().technologies) == ("sev" in chosen)
        for name in TECHNOLOGIES:
            assert refused(creating(host, name)) == (name not in chosen), name
        newer_calls: list[Callable[[], object]] = [
            host.snp_status, lambda: host.snp_commit(confirm=True), host.snp_reset_config,
        ]  # fmt: skip
        older_calls: list[Callable[[], object]] = [
            host.sev_status, host.export_platform, host.pek_csr, host.pdh_generate,
            lambda: host.pek_generate(confirm=True), lambda: host.reset_platform(confirm=True),
        ]  # fmt: skip
        assert {refused(call) for call in newer_calls} == {"snp" not in chosen}
        assert {refused(call) for call in older_calls} == {not older}
        host.events()
        assert [guest.guest_id for guest in host.guests()] == []
        if "sev" in chosen:
            launched = host.launch_sev(FIRMWARE, memory_bytes=1 << 20)
            assert launched.as_expected
            host.delete_guest(launched.guest.guest_id)


@pytest.mark.parametrize("wrong", ['["tdx"]', "[]", '["snp", "SEV"]', '"snp"'])
def test_what_is_no_technology(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "sevd.toml").write_text(f"[guests]\ntechnologies = {wrong}\n")
    command = [sys.executable, "-m", "sevd", "--check-config", "--config", str(tmp_path / "sevd.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "technologies" in done.stderr


def test_an_older_host_with_one_of_the_two(tmp_path: Path) -> None:
    """Both serve the platform; guests of the other are refused, by name, on the command line too."""
    with running(tmp_path, *config(tmp_path, ("sev-es",), "rome")) as daemon, daemon.connect() as host:
        assert host.host().technologies == ("sev-es",)
        assert host.sev_status().state == "init"
        launched = host.launch_sev_es(FIRMWARE, vcpu_type="EPYC-Rome", memory_bytes=1 << 20)
        assert launched.as_expected
        host.delete_guest(launched.guest.guest_id)
        (tmp_path / "image").write_bytes(FIRMWARE)
        done = sev(
            "--socket", daemon.socket, "guest", "launch", "--type", "sev", "--firmware", tmp_path / "image"
        )  # fmt: skip
        assert done.code == 6
        assert 'Add "sev" to guests.technologies' in done.err
