"""Processes on a served host that run guests on the real /dev/kvm, and are killed: the host is empty again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.device_files import DeviceFiles, device_files
from tests.support.needs import need_kvm
from tests.support.overlay_guests import asids, in_use

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFiles]:
    need_kvm()
    with device_files(tmp_path_factory.mktemp("overlay")) as files:
        yield files


def test_an_owner_that_is_killed_while_its_guest_runs_leaves_nothing(served: DeviceFiles) -> None:
    """The guest spins; its process is killed in KVM_RUN."""
    program = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])
        from pathlib import Path
        from types import SimpleNamespace
        from sevd.simulator.overlay import OverlayKernel
        from tests.support.overlay_guests import Guest
        from tests.support.tiny_firmware import PRINT, tiny_firmware

        devices = Path(sys.argv[2])
        served = SimpleNamespace(devices=devices, sev=devices / "sev")
        guest = Guest(OverlayKernel(devices), served, tiny_firmware(bytes.fromhex("ebfe")))
        guest.launch()
        print("ready", flush=True)
        guest.vcpu().run()
    """)
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(ROOT), str(served.devices)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        time.sleep(0.1)
        assert asids(served) == 1
        killed = time.monotonic()
        owner.kill()
        assert in_use(served) == 0
        assert time.monotonic() - killed < 1
    finally:
        owner.kill()
        owner.wait()
        if owner.stdout is not None:
            owner.stdout.close()


def test_owners_killed_at_random_points_leave_nothing(served: DeviceFiles) -> None:
    """Processes that launch, run and end guests without a pause are killed at any moment; others go on."""
    program = textwrap.dedent("""
        import os, sys
        sys.path.insert(0, sys.argv[1])
        from pathlib import Path
        from types import SimpleNamespace
        from sevd.simulator.overlay import OverlayKernel
        from tests.support.overlay_guests import Guest, run
        from tests.support.tiny_firmware import HALT, PRINT, tiny_firmware

        devices = Path(sys.argv[2])
        served = SimpleNamespace(devices=devices, sev=devices / "sev")

        def owner():
            while True:
                kernel = OverlayKernel(devices)
                guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, b"x"))
                guest.launch()
                vcpu = guest.vcpu()
                assert run(vcpu)[0] == b"x"
                vcpu.close()
                guest.snp.close()
                kernel.exit()

        for line in sys.stdin:
            child = os.fork()
            if not child:
                owner()
            print(child, flush=True)
    """)
    nursery = subprocess.Popen(
        [sys.executable, "-c", program, str(ROOT), str(served.devices)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    rng = random.Random(7)
    there = len(os.listdir(f"/proc/{served.process.pid}/fd"))
    try:
        alive: list[int] = []
        for _ in range(40):
            nursery.stdin.write("\n")
            nursery.stdin.flush()
            alive.append(int(nursery.stdout.readline()))
            time.sleep(rng.uniform(0.01, 0.08))
            if len(alive) > 1:
                os.kill(alive.pop(rng.randrange(len(alive))), signal.SIGKILL)
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.killpg(nursery.pid, signal.SIGKILL)
        nursery.wait()
        nursery.stdin.close()
        nursery.stdout.close()
    assert in_use(served) == 0
    until = time.monotonic() + 5
    while len(os.listdir(f"/proc/{served.process.pid}/fd")) > there and time.monotonic() < until:
        time.sleep(0.01)
    assert len(os.listdir(f"/proc/{served.process.pid}/fd")) <= there
    assert served.process.poll() is None
