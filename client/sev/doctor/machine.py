"""Facts of this machine that matter for SEV: kernel, modules, device nodes, what the kernel logged; and versions."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MODULES = ("kvm", "kvm_amd", "ccp", "sev_guest", "tsm")
"""Kernel modules that take part."""

DEVICES = ("/dev/sev", "/dev/kvm", "/dev/sev-guest", "/dev/cpu/0/msr")
"""Device nodes that take part."""

KERNEL_LINES = 200
"""Most lines of the kernel's log."""

STATE_DEPTH = 4
"""Most folders inside each other that are looked into."""

STATE_ENTRIES = 400
"""Most entries of a state directory."""

_COMMAND_LINE = re.compile(r"^(mem_encrypt|sev|kvm|kvm_amd|ccp|iommu|amd_iommu|nosmt|mitigations|hugepages)\b")
_KERNEL = re.compile(r"(?i)\b(sev|sev-es|snp|rmp|ccp|psp|tsme|kvm_amd|amd-vi|asids?)\b")
_FLAGS = ("sme", "sev", "sev_es", "sev_snp", "svm", "debug_swap")
_PACKAGES = ("grpcio", "protobuf", "cryptography", "googleapis-common-protos", "opentelemetry-sdk")


def versions() -> dict[str, object]:
    """Of this program, of what it rests on, and of the system."""
    from importlib.metadata import PackageNotFoundError, version

    from sev import __version__

    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    release = dict(line.split("=", 1) for line in _lines("/etc/os-release") if "=" in line)
    return {
        "sev": __version__,
        "python": sys.version.split()[0],
        "packages": packages,
        "system": release.get("PRETTY_NAME", "").strip('"'),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
    }


def kernel() -> dict[str, object]:
    """What this kernel is, its parameters and modules, and what it logged about SEV."""
    modules: dict[str, object] = {}
    for name in MODULES:
        folder = f"/sys/module/{name}"
        if os.path.isdir(folder):
            modules[name] = {one: _parameter(f"{folder}/parameters/{one}") for one in _names(f"{folder}/parameters")}
    words = " ".join(_lines("/proc/cmdline")).split()
    return {
        "release": os.uname().release,
        "version": os.uname().version,
        "command_line": [word for word in words if _COMMAND_LINE.match(word)],
        "modules": modules,
        "devices": {path: _node(path) for path in DEVICES},
        "processor": _processor(),
        "log": list(_kernel_log()),
    }


def state(path: str) -> list[dict[str, object]]:
    """Names, sizes and modes in a state directory, down to STATE_DEPTH folders; never what is in a file.

    Raises:
        OSError: It cannot be read.
    """
    out: list[dict[str, object]] = []
    _list(path, "", out)
    return out[:STATE_ENTRIES]


def _list(path: str, prefix: str, out: list[dict[str, object]]) -> None:
    for entry in sorted(os.scandir(path), key=lambda one: one.name):
        out.append(_entry(entry, prefix))
        deeper = f"{prefix}{entry.name}/"
        if entry.is_dir(follow_symlinks=False) and deeper.count("/") < STATE_DEPTH and len(out) < STATE_ENTRIES:
            with suppress(OSError):
                _list(entry.path, deeper, out)


def daemon_log(unit: str, lines: int, seconds: float) -> list[dict[str, object]]:
    """The end of the daemon's log in the journal, without audit records.

    Raises:
        OSError: There is no journal, or it may not be read.
    """
    from json import loads

    command = ["journalctl", "--quiet", "--no-pager", f"--unit={unit}", f"--lines={lines}", "--output=json"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=seconds)  # noqa: S603 - our own words
    except subprocess.TimeoutExpired:
        raise OSError("journalctl takes too long") from None
    if done.returncode:
        raise OSError(done.stderr.decode("utf-8", "replace").strip()[:200] or "journalctl failed")
    out: list[dict[str, object]] = []
    for line in done.stdout.splitlines():
        try:
            entry = loads(line)
        except ValueError:
            continue
        if "SEVD_RECORD" in entry:
            continue  # counted elsewhere
        message = entry.get("MESSAGE")
        if isinstance(message, str):
            picked = {"time": str(entry.get("__REALTIME_TIMESTAMP", "")), "priority": str(entry.get("PRIORITY", ""))}
            fields = (("logger", "SEVD_LOGGER"), ("method", "SEVD_METHOD"), ("request_id", "SEVD_REQUEST_ID"))
            out.append({**picked, "message": message, **{key: entry[name] for key, name in fields if name in entry}})
    return out


def _entry(entry: os.DirEntry[str], folder: str) -> dict[str, object]:
    found = entry.stat(follow_symlinks=False)
    return {
        "name": f"{folder}{entry.name}",
        "mode": stat.filemode(found.st_mode),
        "bytes": found.st_size if stat.S_ISREG(found.st_mode) else None,
        "root": found.st_uid == 0,
    }


def _node(path: str) -> dict[str, object] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    can = {"read": os.access(path, os.R_OK), "write": os.access(path, os.W_OK)}
    return {"mode": stat.filemode(found.st_mode), "uid_0": found.st_uid == 0, "this_user_can": can}


def _processor() -> dict[str, object]:
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode")
    out: dict[str, object] = {}
    for line in _lines("/proc/cpuinfo", 1 << 14):
        name, _, value = (part.strip() for part in line.partition(":"))
        if name in wanted:
            out.setdefault(name, value)
        elif name == "flags":
            out.setdefault("flags", [flag for flag in _FLAGS if flag in value.split()])
    return out


def _kernel_log() -> Iterator[str]:
    """Lines about SEV, from the kernel's own buffer; nothing where it may not be read."""
    try:
        file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    found: list[str] = []
    try:
        while True:
            try:
                record = os.read(file, 8192)
            except BrokenPipeError:  # overwritten while it was read: go on
                continue
            text = record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0]
            if _KERNEL.search(text):
                found.append(text[:300])
    except OSError:
        pass  # the end
    finally:
        os.close(file)
    yield from found[-KERNEL_LINES:]


def _parameter(path: str) -> str | None:
    found = _lines(path, 256)
    return found[0] if found else None


def _names(path: str) -> Iterable[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return ()


def _lines(path: str, limit: int = 1 << 14) -> list[str]:
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
