"""The service in a booted system while a firmware command hangs, or takes its time."""

from __future__ import annotations

import subprocess

from tests.support.booted import Booted
from tests.support.booted_service import active, fault, simulator, wait_for
from tests.support.needs import need_fuse


def test_the_watchdog_sees_a_firmware_command_that_hangs(as_root: Booted) -> None:
    need_fuse()
    simulator(as_root)
    as_root.write("/etc/systemd/system/sevd.service.d/fast.conf", "[Service]\nWatchdogSec=2\n")
    caller: subprocess.Popen[bytes] | None = None
    try:
        as_root.run("systemctl", "daemon-reload")
        as_root.run("sev", "snp", "status")
        fault(as_root, "*:hang")
        caller = subprocess.Popen(
            ["nsenter", f"--target={as_root.pid}", "--mount", "--pid", "--", "/usr/local/bin/sev", "snp", "status"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: not active(as_root), "the watchdog strikes")
        assert "has made no progress" in as_root.log()
        fault(as_root, "clear")  # a process cannot go before its system call returns
        wait_for(lambda: active(as_root), "and the daemon comes back")
        assert "Watchdog timeout" in as_root.log()
        as_root.run("sev", "snp", "status")
    finally:
        if caller is not None:
            caller.kill()
            caller.wait()
        as_root.run("rm", "/etc/systemd/system/sevd.service.d/fast.conf")
        as_root.run("systemctl", "stop", "sevd.service", "simulator.service", check=False)
