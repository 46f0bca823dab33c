"""Simulated SEV and SEV-ES guests on the real /dev/kvm: launched by RPC, run in a locked-down worker, seen as ciphertext."""

from __future__ import annotations

from pathlib import Path

import pytest

from sev.abi.kvm_run import HALT, PortWrite
from sev.launch.machine import FOUR_GIB
from tests.integration.test_run_simulated import image
from tests.support.daemon import running
from tests.support.device_files import device_files
from tests.support.needs import need_kvm

TEXT = b"measured, in plain here"


@pytest.mark.parametrize("technology", ["sev", "sev-es"])
def test_what_runs_is_what_was_measured(tmp_path: Path, technology: str) -> None:
    need_kvm()
    firmware = image(TEXT)
    with (
        device_files(tmp_path / "sim", product="rome") as files,
        running(tmp_path / "d", "--simulator", str(files.devices)) as daemon,
        daemon.connect() as host,
    ):
        launch = host.launch_sev if technology == "sev" else host.launch_sev_es
        launched = launch(firmware, memory_bytes=16 << 20, vcpu_type="EPYC-v4")
        assert launched.as_expected
        guest = launched.guest.guest_id
        with host.map_memory(guest) as memory, memory.view(FOUR_GIB - len(firmware), len(firmware)) as seen:
            shown = bytes(seen)
        assert TEXT not in shown
        assert not any(shown[at : at + 16] == firmware[at : at + 16] for at in range(0, len(firmware), 16))
        printed = b""
        with host.run_guest(guest, posted_writes=16) as run:
            for found in run:
                if found.what == HALT:
                    break
                assert isinstance(found.what, PortWrite), found
                printed += found.what.data
                run.complete(found)
        assert printed == TEXT
        host.delete_guest(guest, confirm=True)
