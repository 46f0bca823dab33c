"""Faults of sevd-simulator as programs meet them that open its files: by --fault, and while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sev import status
from sev.abi import sev_device
from sev.errors import FirmwareError, KernelError, SevError
from sev.launch.linux import LinuxKernel
from sev.launch.platform import SevDevice
from sevd.simulator.control_client import ControlClient
from tests.support.device_files import DeviceFiles, command, device_files, prepare

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import sys
sys.path.insert(0, sys.argv[1] + "/client")
from sev.errors import SevError
from sev.launch.linux import LinuxKernel
from sev.launch.platform import SevDevice
try:
    SevDevice(LinuxKernel(), sys.argv[2]).platform_status()
    print("ok")
except SevError as error:
    print(error.errno)
"""


def device(served: DeviceFiles) -> SevDevice:
    return SevDevice(LinuxKernel(), str(served.sev))


def asking(served: DeviceFiles) -> subprocess.Popen[str]:
    """A process that asks for the platform's status, and says how that ended."""
    return subprocess.Popen([sys.executable, "-c", ASK, str(ROOT), str(served.sev)], stdout=subprocess.PIPE, text=True)


def happened(control: ControlClient) -> list[int]:
    found = control.call("faults")["faults"]
    assert isinstance(found, list)
    return [one["happened"] for one in found]


def test_what_the_command_line_says_happens(tmp_path: Path) -> None:
    specs = ("--fault", "SNP_COMMIT:status=INVALID_PARAM:times=1", "--fault", "PLATFORM_STATUS:timeout:after=1")
    with device_files(tmp_path, *specs) as served:
        it = device(served)
        with pytest.raises(FirmwareError) as refused:
            it.snp_commit()
        assert refused.value.firmware_status == status.INVALID_PARAM
        it.snp_commit()
        it.platform_status()
        with pytest.raises(KernelError, match=r"[Tt]imed out"):
            it.platform_status()
        with pytest.raises(SevError, match="busy"):
            it.snp_commit()
        with ControlClient.connect(served.devices / "control.sock") as control:
            assert control.call("faults")["dead"] is True
            control.call("power-loss")
        assert sev_device.SnpStatus.decode(it.snp_status()).state == 1


def test_a_host_whose_firmware_fails_at_its_start_is_served(tmp_path: Path) -> None:
    with device_files(tmp_path, "--fault", "SNP_INIT:status=0x19", "--fault", "*:delay=0.01") as served:
        assert sev_device.SnpStatus.decode(device(served).snp_status()).state == 0
        assert (served.devices / "parameters" / "sev_snp").read_text() == "N\n"


@pytest.mark.parametrize("spec", ["NOTHING:hang", "SNP_COMMIT:status=0", "SNP_COMMIT"])
def test_what_is_no_fault_is_a_usage_error(tmp_path: Path, spec: str) -> None:
    prepare(tmp_path)
    told = subprocess.run(
        command(tmp_path, "--fault", spec), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert told.returncode == 2
    assert "fault" in told.stderr
    assert spec in told.stderr


def test_while_a_command_hangs_everything_else_answers(tmp_path: Path) -> None:
    with device_files(tmp_path) as served, ControlClient.connect(served.devices / "control.sock") as control:
        control.fault("*:hang")
        held = [asking(served) for _ in range(8)]
        until = time.monotonic() + 20
        while happened(control) != [1] and time.monotonic() < until:
            time.sleep(0.01)
        assert happened(control) == [1]
        started = time.monotonic()
        assert os.listdir(served.devices / "sev-guest") == []
        assert (served.devices / "parameters" / "sev_snp").read_text() == "Y\n"
        os.close(os.open(served.sev, os.O_RDONLY))
        assert "asids" in control.call("host")
        assert control.call("committed")["committed_tcb"]
        assert time.monotonic() - started < 2
        assert all(process.poll() is None for process in held)
        control.fault("clear")
        assert [process.communicate(timeout=30)[0] for process in held] == ["ok\n"] * 8


def test_the_simulator_ends_while_a_command_hangs(tmp_path: Path) -> None:
    with device_files(tmp_path) as served:
        with ControlClient.connect(served.devices / "control.sock") as control:
            control.fault("*:hang")
            held = asking(served)
            until = time.monotonic() + 20
            while happened(control) != [1] and time.monotonic() < until:
                time.sleep(0.01)
        started = time.monotonic()
        served.process.terminate()
        served.process.wait(20)
        assert time.monotonic() - started < 8
        # Late, or cut off: it was told something.
        assert held.communicate(timeout=30)[0] != "ok\n"
