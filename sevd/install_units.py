"""Writes the service's files for systemd where the system looks for them: for an installation from a wheel.

A package of a distribution installs the same files from the folder `systemd` itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sev.errors import UsageError

FILES = {
    "sevd.service": "etc/systemd/system/sevd.service",
    "sevd-device.service": "etc/systemd/system/sevd-device.service",
    "sevd.socket": "etc/systemd/system/sevd.socket",
    "sevd-monitor.socket": "etc/systemd/system/sevd-monitor.socket",
    "sevd-admin.socket": "etc/systemd/system/sevd-admin.socket",
    "sevd-fd.socket": "etc/systemd/system/sevd-fd.socket",
    "sevd.sysusers": "etc/sysusers.d/sevd.conf",
    "sevd.tmpfiles": "etc/tmpfiles.d/sevd.conf",
    "72-sevd.rules": "etc/udev/rules.d/72-sevd.rules",
    "sevd.toml": "etc/sevd/sevd.toml.example",
}
"""Files of the folder `systemd`, and where each goes."""

PLAIN_USER = {"plain-user.conf": "etc/systemd/system/sevd.service.d/plain-user.conf"}
"""What is added where the daemon shall run as a user of its own."""

_PROGRAM = "/usr/bin/sevd"
_UNSEEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp", "/var/lib/sevd", "/run/sevd")  # noqa: S108 # refused
"""Where ProtectHome=, PrivateTmp= and NoExecPaths= of the unit leave no programs."""

NEXT = """\
Next:
  systemd-sysusers && systemd-tmpfiles --create && udevadm control --reload
  systemctl daemon-reload && systemctl enable --now sevd.socket sevd-monitor.socket sevd-admin.socket sevd-fd.socket
  systemctl enable --now sevd
"""
"""What is left to do, for people."""


def install(root: Path, *, program: Path, plain_user: bool = False) -> list[Path]:
    """Writes the files below a root directory; those that are there from an earlier installation are replaced.

    The configuration, /etc/sevd/sevd.toml, is never touched: an example is put beside it.

    Args:
        root: "/" for this system, or a folder that stands for one.
        program: The command that the service starts, an absolute path.
        plain_user: Add the drop-in that runs the daemon as a user of its own. One that is there stays in any case.

    Returns:
        What was written.

    Raises:
        UsageError: A file cannot be written.
    """
    folder = source()
    written = []
    for name, place in {**FILES, **(PLAIN_USER if plain_user else {})}.items():
        content = (folder / name).read_text(encoding="utf-8")
        if name == "sevd.service":
            content = content.replace(f"ExecStart={_PROGRAM}\n", f"ExecStart={_quoted(program)}\n")
        written.append(_write(root / place, content))
    return written


def source() -> Path:
    """The folder of the files: packed into the wheel, or that of the source tree."""
    packed = Path(__file__).with_name("units")
    return packed if packed.is_dir() else Path(__file__).resolve().parents[1] / "systemd"


def command() -> Path:
    """The `sevd` that runs now, as an absolute path.

    Raises:
        UsageError: The service could not start it: it, or its interpreter, lies where the unit sees no programs.
    """
    here = Path(os.path.abspath(sys.argv[0]))
    program = here if here.name == "sevd" else Path(sys.prefix) / "bin/sevd"
    if not os.access(program, os.X_OK):
        raise UsageError(f"{program} is no program", field="install_units", remedy="Run the sevd that is installed.")
    real = (Path(os.path.realpath(one)) for one in (program, sys.executable))
    check(program, *real, Path(sys.prefix), Path(sys.base_prefix))
    return program


def check(*paths: Path) -> None:
    """Raises UsageError for a path where the service sees nothing, or may start nothing."""
    for path in paths:
        unseen = next((one for one in _UNSEEN if path.is_relative_to(one)), None)
        if unseen is not None:
            raise UsageError(
                f"{path} is below {unseen}, where the service sees no programs",
                field="install_units",
                remedy="Install sevd and its interpreter for the whole system, such as into a virtual environment "
                "below /opt.",
            )


def _quoted(program: Path) -> str:
    """A path as ExecStart= takes it (systemd.service(5), COMMAND LINES)."""
    text = os.fspath(program).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if any(letter in text for letter in " \t'\"\\;") else text


def _write(path: Path, content: str) -> Path:
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary.write_text(content, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(
            f"{path}: {os.strerror(error.errno or 0)}", field="install_units", remedy="Run it as root."
        ) from None
    return path
