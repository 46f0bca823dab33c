"""The same checks on simulated machines, in this process and by their files: what a well set-up server answers."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path

import pytest

from sev.host.era import interface
from sev.host.machine import Machine
from sev.host.result import FAILED
from sev.host.verdict import HostCheck, check_host
from sevd.simulator import Simulator, kernel_era
from sevd.simulator.host_reader import ServedReader, SimulatedReader
from tests.support.simulated import simulated_host, template


def failures(checked: HostCheck) -> dict[str, str]:
    return {check.id: check.reason for check in checked.checks if check.result == FAILED}


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_a_simulated_server_is_able(product: str, tmp_path: Path) -> None:
    with simulated_host(tmp_path, product) as simulator, closing(SimulatedReader(simulator)) as reader:
        checked = check_host(reader, "sev-snp")
        assert checked.able
        assert failures(checked) == {}
        # This generation of kernels holds SEV-ES back where the SNP firmware is new enough.
        assert set(failures(check_host(reader))) <= {"kvm.type-sev-es"}


@pytest.mark.parametrize("name", sorted(kernel_era.ERAS))
def test_eras_of_a_simulated_kernel(name: str, tmp_path: Path) -> None:
    simulator = Simulator.open(_copy(tmp_path), product="genoa", seed=1, kernel_era_name=name)
    try:
        with closing(SimulatedReader(simulator)) as reader:
            seen = interface(Machine(reader))
            assert seen.era in ("", "A", "B or C", "C")
            checked = check_host(reader, "sev-snp")
            assert checked.able, failures(checked)
    finally:
        simulator.close()


@pytest.mark.parametrize("name", sorted(kernel_era.ERAS))
def test_what_tells_old_kernels_apart_reaches_no_firmware(name: str, tmp_path: Path) -> None:
    """SNP_SET_CONFIG on a read-only descriptor with an address that is not there."""
    simulator = Simulator.open(_copy(tmp_path), product="genoa", seed=1, kernel_era_name=name)
    try:
        with closing(SimulatedReader(simulator)) as reader:
            called: list[str] = []
            simulator.faults = called.append
            assert reader.config_refusal() == errno.EPERM
            simulator._ccp.shut_down()
            called.clear()
            assert reader.config_refusal() == (errno.EINVAL if name == "A" else errno.EPERM)
            assert called == []
    finally:
        simulator.close()


def test_asids_in_use_are_counted(tmp_path: Path) -> None:
    with simulated_host(tmp_path) as simulator, closing(SimulatedReader(simulator)) as reader:
        total, _ = simulator.asids()["sev_es"]
        reason = next(check.reason for check in check_host(reader).checks if check.id == "asids.sev-es")
        assert reason == f"{total} of {total}"


def test_a_reader_leaves_no_process(tmp_path: Path) -> None:
    with simulated_host(tmp_path) as simulator:
        before = len(simulator._processes)
        for _ in range(3):
            with closing(SimulatedReader(simulator)) as reader:
                check_host(reader)
        assert len(simulator._processes) == before


def test_a_simulator_that_is_gone(tmp_path: Path) -> None:
    """Its devices are missing, and nothing of the machine beneath is shown in their place."""
    reader = ServedReader(
        tmp_path, technologies=("sev-snp",), asids=lambda: {"sev_es": (9, 1)}, ask_cpuid=lambda leaf, sub: (0, 0, 0, 0)
    )
    with closing(reader):
        checked = check_host(reader)
        assert not checked.able
        assert {"device.sev", "device.kvm"} <= set(failures(checked))
        assert not any(name.startswith("kvm.") for name in failures(checked))
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is what is compared
            reader.text("/proc/version")
        assert caught.value.errno == errno.ENOENT


def _copy(folder: Path) -> Path:
    import shutil

    target = folder / "host"
    shutil.copytree(template("genoa"), target)
    return target
