"""Guests of the service in a booted system: they outlive restarts and crashes."""

from __future__ import annotations

import json
import re

from tests.support.booted import Booted
from tests.support.booted_service import PLAIN, PYTHON, UNITS, configure, crash, holds_a_vm, simulator, workers
from tests.support.needs import need_fuse, need_kvm


def test_a_guest_outlives_restarts_and_crashes_of_the_service(system: Booted) -> None:
    need_kvm()
    configure(system, PLAIN)
    system.write("/image", "\xf4" * 4096)
    launch = ("sev", "--json", "guest", "launch", "--type", "plain", "--firmware", "/image", "--memory", "8MiB")
    guest = json.loads(system.run(*launch, user="member").stdout)["guest_id"]
    guests = "sev", "--json", "guest", "list"
    before = system.run(*guests, user="member").stdout
    assert guest in before
    (worker,) = [one for one in workers(system) if holds_a_vm(system, one)]
    system.run("systemctl", "restart", "sevd.service")
    assert system.run(*guests, user="member").stdout == before
    crash(system)
    assert system.run(*guests, user="member").stdout == before
    assert [one for one in workers(system) if holds_a_vm(system, one)] == [worker]
    # it is locked down on top of the unit
    status = system.run("cat", f"/proc/{worker}/status").stdout
    assert re.search(r"^CapBnd:\t0{16}$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    system.run("sev", "--yes", "guest", "delete", guest, user="member")
    assert worker not in workers(system)
    system.run("systemctl", "stop", "sevd.service", *UNITS)
    assert workers(system) == set()


def test_snp_guests_of_a_simulator_launch_under_the_unit(as_root: Booted) -> None:
    need_fuse()
    simulator(as_root)
    try:
        as_root.run(
            PYTHON,
            "-c",
            "from sev.measurement.sample import sample_firmware; open('/image', 'wb').write(sample_firmware())",
        )
        launch = ("sev", "--json", "guest", "launch", "--firmware", "/image", "--memory", "16MiB")
        guest = json.loads(as_root.run(*launch, user="member").stdout)["guest_id"]
        as_root.run("systemctl", "restart", "sevd.service")
        shown = json.loads(as_root.run("sev", "--json", "guest", "show", guest, user="member").stdout)
        assert "ready" in json.dumps(shown).lower()
        as_root.run("sev", "--yes", "guest", "delete", guest, user="member")
    finally:
        as_root.run("systemctl", "stop", "sevd.service", "simulator.service", check=False)
