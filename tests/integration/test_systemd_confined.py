"""What the service may do in a booted system, tried from inside its unit and looked at from outside."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from tests.support.booted import PREFIX, Booted
from tests.support.booted_service import PYTHON, main_pid

UNIT = Path(__file__).resolve().parents[2] / "systemd/sevd.service"

SHOWN_BY: dict[str, tuple[str, ...]] = {
    "AmbientCapabilities": ("status CapEff",),
    "BindPaths": ("open /dev/kvm", "devices"),
    "CapabilityBoundingSet": ("status CapBnd",),
    "DeviceAllow": ("open /dev/kvm",),
    "DevicePolicy": ("open /dev/fuse",),
    "IPAddressDeny": ("socket AF_INET",),
    "KeyringMode": ("call keyctl",),
    "LimitCORE": ("core",),
    "LoadCredential": ("credential",),
    "LockPersonality": ("call personality",),
    "MemoryDenyWriteExecute": ("write and execute",),
    "NoExecPaths": ("program in state", "program in tmp"),
    "NoNewPrivileges": ("status NoNewPrivs",),
    "OOMScoreAdjust": ("out of memory",),
    "PrivateDevices": ("devices",),
    "PrivateIPC": ("namespaces",),
    "PrivateMounts": ("namespaces",),
    "PrivateNetwork": ("namespaces",),
    "PrivateTmp": ("left outside",),
    "ProtectClock": ("call clock_settime", "call settimeofday"),
    "ProtectControlGroups": ("control groups",),
    "ProtectHome": ("homes", "write /home/x", "write /root/x"),
    "ProtectHostname": ("call sethostname",),
    "ProtectKernelLogs": ("open /dev/kmsg", "call syslog"),
    "ProtectKernelModules": ("call init_module",),
    "ProtectKernelTunables": ("write /proc/sys/kernel/hostname", "write /sys/x"),
    "ProtectProc": ("manager",),
    "ProtectSystem": ("write /usr/x", "write /etc/x", "write /var/x"),
    "ReadOnlyPaths": ("write /run/x",),
    "ReadWritePaths": ("write /run/sevd/x",),
    "RestrictAddressFamilies": ("socket AF_INET", "socket AF_NETLINK"),
    "RestrictNamespaces": ("call unshare",),
    "RestrictRealtime": ("call sched_setscheduler",),
    "RestrictSUIDSGID": ("set-user-id",),
    "SecureBits": ("secure bits",),
    "StateDirectory": ("write /var/lib/sevd/x",),
    "SystemCallArchitectures": ("foreign system call",),
    "SystemCallErrorNumber": ("call mount",),
    "SystemCallFilter": ("call bpf", "call io_uring_setup", "call ptrace", "call reboot"),
    "UMask": ("umask",),
}
"""What the probe tries for each directive of the unit that restricts."""

SHOWN_ELSEWHERE = {
    # in this module, from outside
    "LimitNOFILE", "LimitMEMLOCK", "TasksMax", "StateDirectoryMode",
    # by what the other tests in a booted system do
    "Type", "NotifyAccess", "ExecStart", "ExecReload", "Sockets", "Restart", "RestartSec", "RestartPreventExitStatus",
    "KillMode", "TimeoutStartSec", "TimeoutStopSec", "WatchdogSec",
    # for users that log out; the service's own namespace goes with it anyway
    "RemoveIPC",
}  # fmt: skip

_LEFT_OUT = ("Type", "NotifyAccess", "ExecReload", "Sockets", "Restart", "RestartSec", "WatchdogSec", "ExecStart",
             "RestartPreventExitStatus", "Requires", "Wants", "Also", "WantedBy")  # fmt: skip


def may_raise_limits() -> bool:
    """Whether there is CAP_SYS_RESOURCE here, without which systemd itself cannot raise a limit."""
    with open("/proc/self/status", encoding="ascii") as file:
        return bool(next(int(line.split()[1], 16) for line in file if line.startswith("CapEff")) >> 24 & 1)


def directives() -> list[str]:
    """The keys of the unit's service section."""
    section = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0]
    return sorted(set(re.findall(r"^(\w+)=", section, re.MULTILINE)))


def probed(system: Booted) -> dict[str, Any]:
    """What a process with the unit's directives finds when it tries."""
    table = ["/run/sevd/table/x"] if system.show("sevd.service", "User") else ["/run/sevd/x"]
    unit = system.run("systemctl", "cat", "sevd.service").stdout
    lines = [line for line in unit.splitlines() if line.partition("=")[0] not in _LEFT_OUT]
    start = f"Type=oneshot\nExecStart={PYTHON} {PREFIX}/src/tests/support/unit_probe.py {' '.join(table)}"
    text = "\n".join(lines).replace("[Service]", f"[Service]\n{start}", 1)
    system.write("/etc/systemd/system/probe.service", text)
    system.run("systemctl", "daemon-reload")
    system.run("systemctl", "start", "probe.service")
    (line,) = re.findall(r"^PROBE (.*)$", system.log("probe.service"), re.MULTILINE)[-1:]
    found: dict[str, Any] = json.loads(line)
    return found


def test_every_directive_holds_from_inside(system: Booted) -> None:
    for path in ("/tmp/left-outside", "/home/somebody/x"):
        system.write(path, "")
    system.write("/etc/credstore/sevd-tls.key", "a key")
    plain = bool(system.show("sevd.service", "User"))
    found = probed(system)
    table = "/run/sevd/table/x" if plain else "/run/sevd/x"
    denied = {key: value for key, value in found.items() if key.startswith("call ")}
    assert set(denied.values()) == {"EPERM"}, denied
    wanted: dict[str, object] = {
        "status CapEff": "0" * 16,
        "status CapPrm": "0" * 16,
        "status CapBnd": "0" * 16,
        "status NoNewPrivs": "1",
        "status Seccomp": "2",
        **dict.fromkeys(("write /usr/x", "write /etc/x", "write /etc/sevd/x", "write /var/x"), "EROFS"),
        **{f"write {path}": "done" for path in ("/var/lib/sevd/x", "/tmp/x", table)},
        "open /dev/null": "done",
        "open /dev/kvm": "done" if os.path.exists("/dev/kvm") else "ENOENT",
        **dict.fromkeys(("open /dev/fuse", "open /dev/kmsg", "open /dev/mem"), "ENOENT"),
        "socket AF_UNIX": "done",
        **{f"socket AF_{one}": "EAFNOSUPPORT" for one in ("INET", "INET6", "NETLINK", "PACKET", "VSOCK")},
        **dict.fromkeys(("write and execute", "set-user-id"), "EPERM"),
        **dict.fromkeys(("program in state", "program in tmp"), "EACCES"),
        **dict.fromkeys(("program of the system", "memfd", "pidfd"), "done"),
        "core": 0,
        "foreign system call": signal.SIGSYS,
        "secure bits": 3,  # no root, locked
        "umask": 0o077,
        # systemd itself cannot lower it without CAP_SYS_RESOURCE
        **({"out of memory": -500} if may_raise_limits() else {}),
        "homes": [],
        "left outside": False,
        "credential": "a key",
        **dict.fromkeys(("boot", "processor", "manager"), True),
    }
    assert {name: found[name] for name in wanted} == wanted
    for path in ("/run/x", "/run/systemd/x", "/home/x", "/root/x", "/sys/x", "/proc/sys/kernel/hostname"):
        assert found[f"write {path}"] in ("EROFS", "EACCES", "ENOENT", "EPERM"), path
    assert found["control groups"] in ("EROFS", "EACCES")
    assert not {"fuse", "kmsg", "mem", "port"} & set(found["devices"])
    tried = {probe for directive in directives() for probe in SHOWN_BY.get(directive, ())}
    assert tried - {"write /run/sevd/x"} <= set(found)


def test_no_directive_is_left_unprobed() -> None:
    assert [name for name in directives() if name not in SHOWN_BY and name not in SHOWN_ELSEWHERE] == []
    assert [name for name in (*SHOWN_BY, *SHOWN_ELSEWHERE) if name not in directives()] == []


def test_it_has_namespaces_of_its_own_but_none_that_would_hide_callers(system: Booted) -> None:
    found = probed(system)["namespaces"]
    outside = {name: os.readlink(f"/proc/{system.pid}/ns/{name}") for name in found}
    assert {name for name in found if found[name] != outside[name]} == {"ipc", "mnt", "net", "uts"}


def test_systemd_judges_the_running_service_as_promised(system: Booted) -> None:
    system.run("systemctl", "start", "sevd.service")
    tenths = "5" if system.show("sevd.service", "User") else "7"
    system.run("systemd-analyze", "security", f"--threshold={tenths}", "sevd.service")
    system.run("systemd-analyze", "security", "--threshold=12", "sevd-fetch.service")


def test_limits_are_what_the_unit_asks_for(as_root: Booted) -> None:
    as_root.run("systemctl", "start", "sevd.service")
    assert as_root.show("sevd.service", "LimitMEMLOCK") == "infinity"
    assert as_root.show("sevd.service", "TasksMax") == "infinity"
    assert as_root.run("stat", "--format=%a %U", "/var/lib/sevd").stdout == "700 root\n"
    limits = as_root.run("cat", f"/proc/{main_pid(as_root)}/limits").stdout
    found = {line[:25].strip(): line[25:].split()[1] for line in limits.splitlines()[1:]}
    assert found["Max core file size"] == "0"
    if may_raise_limits():
        assert found["Max locked memory"] == "unlimited"
        assert found["Max open files"] == "20480"
