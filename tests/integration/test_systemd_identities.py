"""Identities in a booted system: the units that its service manager made decide, and no user can pass for one."""

from __future__ import annotations

from tests.support.booted import Booted
from tests.support.booted_service import PYTHON, SIMULATED, configure, wait_for

UNITS = """
[[identity]]
match = "unit:agent.service"
role = "viewer"

[[identity]]
match = "unit:banned.service"
role = "none"

"""

TRY = """
import sev
from sev.errors import NotFound, SevError
role = "nobody"
try:
    with sev.connect("/run/sevd/sevd.sock", timeout=2) as host:
        host.host()
        role = "viewer"
        host.delete_guest("guest-nothing")
except NotFound:
    role = "launcher"
except SevError:
    pass
print(role)
"""
LAUNCHER, VIEWER, NOBODY = "launcher", "viewer", "nobody"


def outside_units(system: Booted) -> str:
    return system.run(PYTHON, "-c", TRY, user="member").stdout.strip()


def inside(system: Booted, unit: str, *properties: str, command: str = f"{PYTHON} /etc/try.py") -> str:
    """What a process of this unit is told; of the user `member`, unless the properties say otherwise."""
    system.write("/etc/try.py", TRY)
    lines = ["[Service]", "Type=oneshot", *(properties or ("User=member",)), f"ExecStart={command}"]
    system.write(f"/run/systemd/system/{unit}.service", "\n".join(lines))
    system.run("systemctl", "daemon-reload")
    before = len(told(system, unit))
    system.run("systemctl", "start", f"{unit}.service")
    wait_for(lambda: len(told(system, unit)) > before, "the unit says what it was told")
    return told(system, unit)[-1]


def told(system: Booted, unit: str) -> list[str]:
    return [line for line in system.log(f"{unit}.service").splitlines() if line in (LAUNCHER, VIEWER, NOBODY)]


def test_the_unit_of_a_process_decides(system: Booted) -> None:
    system.run("systemctl", "start", "sevd.service")
    assert {outside_units(system), inside(system, "agent")} == {LAUNCHER}
    configure(system, SIMULATED + UNITS)
    system.run("systemctl", "reload", "sevd.service")
    assert outside_units(system) == LAUNCHER
    assert inside(system, "agent") == VIEWER
    assert inside(system, "agent", "User=member", "Slice=some-other.slice") == VIEWER
    assert inside(system, "banned") == NOBODY
    assert inside(system, "banned-not") == LAUNCHER
    configure(system, SIMULATED)
    system.run("systemctl", "reload", "sevd.service")
    assert inside(system, "agent") == LAUNCHER


def test_a_group_of_a_name_below_a_unit_is_not_that_unit(as_root: Booted) -> None:
    """A unit to which its control group was delegated makes one below it that is named as another unit."""
    configure(as_root, SIMULATED + UNITS)
    as_root.run("systemctl", "start", "sevd.service")
    below = "/sys/fs/cgroup/system.slice/cuckoo.service/agent.service"
    as_root.write(
        "/etc/cuckoo.sh",
        f"mkdir {below} && echo $$ > {below}/cgroup.procs && "
        f"exec setpriv --reuid=member --regid=member --init-groups {PYTHON} /etc/try.py",
    )
    assert inside(as_root, "cuckoo", "Delegate=yes", command="/bin/sh /etc/cuckoo.sh") == LAUNCHER


def test_a_configuration_with_a_mistake_changes_nothing(as_root: Booted) -> None:
    configure(as_root, SIMULATED + UNITS)
    as_root.run("systemctl", "start", "sevd.service")
    assert inside(as_root, "agent") == VIEWER
    configure(as_root, SIMULATED + UNITS.replace('"viewer"', '"reader"'))
    as_root.run("systemctl", "reload", "sevd.service", check=False)
    wait_for(lambda: "identity[1].role" in as_root.log(), "the mistake is named")
    assert inside(as_root, "agent") == VIEWER
