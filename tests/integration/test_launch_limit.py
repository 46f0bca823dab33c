"""A limit on launches, from the configuration to the person at the command."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sev.errors import LimitReached
from sev.measurement.sample import sample_firmware
from tests.support.cli import sev
from tests.support.daemon import Daemon, chip, running

LIMITED = '[[identity]]\nmatch = "uid:{uid}"\nrole = "admin"\nlaunches_per_minute = {most}\n'


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("limited")
    (folder / "c.toml").write_text(LIMITED.format(uid=os.geteuid(), most=1))
    made = chip("genoa", tmp_path_factory)
    with running(folder / "d", "--simulate=genoa", "--config", str(folder / "c.toml"), chip=made) as daemon:
        yield daemon


def test_the_second_launch_within_a_minute_is_told_when(limited: Daemon, tmp_path: Path) -> None:
    firmware = tmp_path / "fw"
    firmware.write_bytes(sample_firmware())
    command = ["guest", "launch", "--firmware", firmware, "--socket", limited.socket]
    assert sev(*command).code == 0
    refused = sev(*command, "--json")
    assert refused.code == 11
    wait = refused.json()["error"]["retry_after_seconds"]
    assert 1 < wait <= 60
    assert "Try again in " in refused.err
    with limited.connect() as host:
        with pytest.raises(LimitReached) as caught:
            host.create_guest(memory_bytes=1 << 20, firmware_bytes=1 << 16, vcpu_count=1, cpuid_signature=0x00A10F11)
        assert caught.value.metadata == {"limit": "launches_per_minute", "value": "1"}
        assert caught.value.retry_after is not None
        assert caught.value.retry_after <= wait
        (limited.folder.parent / "c.toml").write_text(LIMITED.format(uid=os.geteuid(), most=60))
        limited.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 20
        while "configuration reloaded" not in limited.log and time.monotonic() < until:
            time.sleep(0.02)
        # On the connection that was open; a token of the larger bucket comes every second.
        time.sleep(1.1)
        guest = host.create_guest(
            memory_bytes=1 << 20, firmware_bytes=1 << 16, vcpu_count=1, cpuid_signature=0x00A10F11
        )
        host.delete_guest(guest.guest_id)
