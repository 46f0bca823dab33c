"""RLIMIT_MEMLOCK and CAP_IPC_LOCK of processes that use a served simulator: theirs count, as they are at each ioctl."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevd.simulator.rlimit import lockable
from tests.support.device_files import DeviceFiles, device_files
from tests.support.needs import need_kvm
from tests.support.service import Service
from tests.support.workers import status

PROGRAM = """
import json, pathlib, resource, sys
from sev.errors import KernelError
from sev.launch.sev import Sev
from sevd.simulator.overlay import OverlayKernel
from sevd.simulator.rlimit import lockable
from sevd.worker import lockdown
import os
folder, limit, size, drop = sys.argv[1], *map(int, sys.argv[2:])
kernel = OverlayKernel(pathlib.Path(folder))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
if drop:
    lockdown._drop_capabilities()
out = {"lockable": lockable(os.getpid())}
try:
    with Sev(kernel, sev_path=f"{folder}/sev") as guest:
        guest.create(size, 0, 1, 0x830F10)
        guest.start(0)
        guest.update(0, size)
        guest.measure()
        guest.finish()
        out["state"] = "launched"
except KernelError as error:
    out |= {"errno": error.errno, "command": error.command, "remedy": error.remedy}
kernel.exit()
print(json.dumps(out))
"""
MIB = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFiles]:
    with device_files(tmp_path_factory.mktemp("memlock"), product="rome") as files:
        yield files


def launched(files: DeviceFiles, limit: int, size: int, *, capable: bool = False) -> Any:
    words = [str(files.devices), str(limit), str(size), str(int(not capable))]
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_that_may_lock_too_little(served: DeviceFiles) -> None:
    found = launched(served, 2 * MIB, 4 * MIB)
    assert (found["lockable"], found["errno"], found["command"]) == (2 * MIB, 12, "KVM_MEMORY_ENCRYPT_REG_REGION")
    assert "LimitMEMLOCK=infinity" in found["remedy"]


def test_enough_for_the_memory_is_not_enough_for_the_launch(served: DeviceFiles) -> None:
    found = launched(served, 4 * MIB, 4 * MIB)
    assert (found["errno"], found["command"]) == (12, "LAUNCH_UPDATE_DATA")
    assert launched(served, 8 * MIB, 4 * MIB)["state"] == "launched"


@pytest.mark.parametrize("limit", [0, 4096])
def test_the_capability_lifts_the_limit(served: DeviceFiles, limit: int) -> None:
    found = launched(served, limit, 4 * MIB, capable=True)
    assert (found["lockable"], found["state"]) == (None, "launched")


def test_no_limit_needs_no_capability(served: DeviceFiles) -> None:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != resource.RLIM_INFINITY:
        pytest.skip("needs to be without RLIMIT_MEMLOCK: a root without CAP_SYS_RESOURCE cannot lift it")
    found = launched(served, resource.RLIM_INFINITY, 4 * MIB)
    assert (found["lockable"], found["state"]) == (None, "launched")


def test_a_worker_that_gave_its_capabilities_up_may_still_lock(served: DeviceFiles, tmp_path: Path) -> None:
    need_kvm()
    service = Service(tmp_path, "--simulator", str(served.devices))
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (MIB, before[1]))
    try:
        service.start()
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    try:
        with service.connect() as host:
            guest = host.create_guest(
                guest_type="sev", memory_bytes=8 * MIB, firmware_bytes=0, vcpu_count=1, cpuid_signature=0x830F10
            ).guest_id
            host.start_launch(guest, policy=0)
            host.update_launch(guest, [(0, 8 * MIB, 1)])
            host.measure_guest(guest)
            assert host.finish_launch(guest).state == "ready"
            (worker,) = service.workers()
            assert lockable(worker) is None
            # By its limit, or where that could not be raised by the one capability.
            assert status(worker)["CapEff"] in ("0" * 16, f"{1 << 14:016x}")
    finally:
        service.end()
