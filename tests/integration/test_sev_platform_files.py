"""The legacy platform through the simulator's device files: real open and ioctl, by the code that real hosts use."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sev.abi import sev_certificate
from sev.abi import sev_device as abi
from sev.abi.amd_certificate import split
from sev.errors import DeviceMissing, FirmwareError, NotPermitted, SevError
from sev.launch import SevDevice
from sev.launch.linux import LinuxKernel
from sevd.simulator import Simulator, kernel_era
from tests.support.device_files import DeviceFiles, device_files
from tests.support.legacy import Owner
from tests.support.simulated import simulated_host

if TYPE_CHECKING:
    from sev.launch.seam import Kernel

ROUNDS = 200
COMMANDS = 15


@pytest.fixture
def files(tmp_path: Path) -> Iterator[DeviceFiles]:
    with device_files(tmp_path, "--seed", "1") as served:
        yield served


def state(device: SevDevice) -> abi.PlatformStatus:
    return abi.PlatformStatus.decode(device.platform_status())


def test_the_life_of_a_platform(files: DeviceFiles) -> None:
    owner = Owner()
    kernel = LinuxKernel()
    with SevDevice(kernel, str(files.sev)) as device, SevDevice(kernel, str(files.sev), writable=False) as reader:
        assert (state(device).state, state(device).flags) == (abi.STATE_INIT, abi.FLAG_CONFIG_ES)
        first = device.pdh_export()
        assert reader.pdh_export() == first
        device.pek_import(owner.sign(device.pek_csr()), owner.oca)
        assert state(device).flags == abi.FLAG_CONFIG_ES | abi.FLAG_OWNED
        pdh, chain = device.pdh_export()
        assert sev_certificate.split(chain)[1].encode() == owner.oca
        assert pdh != first[0]
        with pytest.raises(FirmwareError, match="ALREADY_OWNED") as refused:
            device.pek_import(owner.sign(device.pek_csr()), owner.oca)
        assert refused.value.metadata["state"] == "INIT"
        with pytest.raises(NotPermitted):
            reader.pdh_generate()
        device.reset()
        with pytest.raises(NotPermitted):
            reader.pdh_export()
        device.pdh_generate()
        assert state(device).state == abi.STATE_UNINIT
        with pytest.raises(DeviceMissing, match="SNP is not initialised"):
            device.snp_set_config(bytes(64))
    ask, ark = split((files.devices / "roots" / "legacy-ca.cert").read_bytes())
    assert (ask.name, ark.name) == ("ASK", "ARK")


def commands(device: SevDevice) -> dict[str, Callable[[], object]]:
    owner = Owner()
    config = abi.SnpConfig(0, masks=1).encode()
    return {
        "status": device.platform_status,
        "snp status": device.snp_status,
        "csr": device.pek_csr,
        "export": device.pdh_export,
        "ids": device.get_ids,
        "id": device.get_id,
        "pdh": device.pdh_generate,
        "pek": device.pek_generate,
        "reset": device.reset,
        "own": lambda: device.pek_import(owner.sign(device.pek_csr()), owner.oca),
        "bad import": lambda: device.pek_import(bytes(2084), owner.oca),
        "commit": device.snp_commit,
        "config": lambda: device.snp_set_config(config),
        "bad config": lambda: device.snp_set_config(b"\xff" * 64),
        "vlek": lambda: device.snp_vlek_load(bytes(432)),
    }


def played(kernel: Kernel, path: str, seed: int, rounds: int) -> list[tuple[str, object]]:
    """What a random sequence of commands answers."""
    order = random.Random(seed)
    out: list[tuple[str, object]] = []
    with SevDevice(kernel, path) as device:
        known = commands(device)
        for _ in range(rounds):
            name = order.choice(sorted(known))
            try:
                answer: object = known[name]()
            except SevError as error:
                answer = (type(error).__name__, error.errno, error.firmware_status, error.metadata, error.message)
            out.append((name, answer))
    return out


@pytest.mark.parametrize("era", kernel_era.ERAS)
def test_both_faces_answer_alike(tmp_path: Path, era: str) -> None:
    seed = sum(era.encode())
    with device_files(tmp_path / "files", "--seed", "1", "--kernel-era", era) as files:
        outside = played(LinuxKernel(), str(files.sev), seed, ROUNDS)
    with simulated_host(tmp_path / "inside") as host:
        host.close()
    inside_host = Simulator.open(tmp_path / "inside", product="genoa", seed=1, kernel_era_name=era)
    try:
        inside = played(inside_host.process(), "/dev/sev", seed, ROUNDS)
    finally:
        inside_host.close()
    for at, pair in enumerate(zip(outside, inside, strict=True)):
        assert pair[0] == pair[1], f"command {at}"
    assert len({name for name, _ in outside}) == COMMANDS, "every command had its turn"


def test_keys_survive_the_simulator(tmp_path: Path) -> None:
    chains = []
    for _ in range(2):
        with device_files(tmp_path, "--seed", "1") as files, SevDevice(LinuxKernel(), str(files.sev)) as device:
            chains.append(device.pdh_export())
    assert chains[0] == chains[1]
    flash = next(tmp_path.rglob("flash.json"))
    assert (flash.stat().st_mode & 0o777, flash.stat().st_uid) == (0o600, os.getuid())
