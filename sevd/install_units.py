"""Writes the service's files for systemd where the system looks for them, and takes them away: for a wheel's users.

A package of a distribution installs the same files from the folder `systemd` itself.

What was written is remembered with its digest in etc/sevd/units.json, so that what the administrator changed since is
told from what was ours: the former is never replaced nor removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from sev.errors import UsageError
from sev.records import mutable_record

_UNITS = "etc/systemd/system"

FILES = {
    "sevd.service": f"{_UNITS}/sevd.service",
    "sevd-device.service": f"{_UNITS}/sevd-device.service",
    "sevd-fetch.service": f"{_UNITS}/sevd-fetch.service",
    "sevd.socket": f"{_UNITS}/sevd.socket",
    "sevd-monitor.socket": f"{_UNITS}/sevd-monitor.socket",
    "sevd-admin.socket": f"{_UNITS}/sevd-admin.socket",
    "sevd-fd.socket": f"{_UNITS}/sevd-fd.socket",
    "sevd-fetch.socket": f"{_UNITS}/sevd-fetch.socket",
    "sevd-mtls.socket": f"{_UNITS}/sevd-mtls.socket",
    "sevd-metrics.socket": f"{_UNITS}/sevd-metrics.socket",
    "sevd.sysusers": "etc/sysusers.d/sevd.conf",
    "sevd.tmpfiles": "etc/tmpfiles.d/sevd.conf",
    "72-sevd.rules": "etc/udev/rules.d/72-sevd.rules",
    "sevd.toml": "etc/sevd/sevd.toml.example",
}
"""Files of the folder `systemd`, and where each goes."""

PLAIN_USER = {
    "plain-user.conf": f"{_UNITS}/sevd.service.d/plain-user.conf",
    "plain-user-fetch.conf": f"{_UNITS}/sevd-fetch.socket.d/plain-user.conf",
}
"""What is added where the daemon shall run as a user of its own."""

MANIFEST = "etc/sevd/units.json"
"""Where what was written is remembered."""

NEW, OLD = ".sevd-new", ".sevd-old"
"""Endings, which systemd and udev pass over: ours beside one that was changed; one that was there before."""

_PROGRAMS = {"sevd.service": "sevd", "sevd-fetch.service": "sevd-fetch"}
_UNSEEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp", "/var/lib/sevd", "/run/sevd")  # noqa: S108 # refused
"""Where ProtectHome=, PrivateTmp= and NoExecPaths= of the unit leave no programs."""

_MANIFEST_BYTES = 1 << 20

FIRST = """\
Next:
  systemd-sysusers && systemd-tmpfiles --create && udevadm control --reload
  systemctl daemon-reload && systemctl enable --now sevd
The ports for orchestrators and for metrics are off: see sevd-mtls.socket and sevd-metrics.socket.
"""
"""What is left to do after the first installation, for people."""

AGAIN = """\
Next:
  systemd-sysusers && systemd-tmpfiles --create && udevadm control --reload
  systemctl daemon-reload && systemctl restart sevd
Guests go on, and clients that call meanwhile wait.
"""
"""What is left to do after a later one."""

GONE = """\
Next:
  systemctl stop 'sevd*.socket' sevd.service && systemctl daemon-reload && udevadm control --reload
Guests that still run are in processes of their own: end them before. What stays is yours to remove:
/etc/sevd (configuration), /var/lib/sevd (state and audit trail), group sev, user sevd.
"""
"""What is left to do after they were taken away."""


@mutable_record
class Done:
    """What was done with each file.

    Attributes:
        written: Made, or replaced.
        same: There already, as they would be written.
        kept: Changed by the administrator: as they were, with ours beside (see NEW) where there is one.
        aside: Older ones of unknown origin, kept under this name.
        removed: Taken away.
        again: An earlier installation was there.
    """

    written: list[Path]
    same: list[Path]
    kept: list[Path]
    aside: list[Path]
    removed: list[Path]
    again: bool = False

    @classmethod
    def nothing(cls) -> Done:
        """Nothing was done yet."""
        return cls([], [], [], [], [])

    def text(self) -> str:
        """A line for each file, and what comes next."""
        lines = [
            *(f"{path}" for path in self.written),
            *(f"{path}: unchanged" for path in self.same),
            *(f"{path}: kept, you changed it" + self._beside(path) for path in self.kept),
            *(f"{path}: what was there before" for path in self.aside),
            *(f"{path}: removed" for path in self.removed),
        ]
        following = GONE if self.removed or not (self.written or self.same) else AGAIN if self.again else FIRST
        return "".join(f"{line}\n" for line in lines) + following

    @staticmethod
    def _beside(path: Path) -> str:
        beside = path.with_name(path.name + NEW)
        return f"; compare {beside}" if beside.exists() else ""


def install(root: Path, *, program: Path, plain_user: bool = False) -> Done:
    """Writes the files below a root directory.

    One from an earlier installation is replaced, unless it was changed since: then it stays, and ours is put beside
    it. The configuration, /etc/sevd/sevd.toml, and drop-ins are never touched: an example is put beside the former.

    Args:
        root: "/" for this system, or a folder that stands for one.
        program: The command that the service starts, an absolute path; its helpers lie beside it.
        plain_user: Add the drop-ins that run the daemon as a user of its own. Those that are there stay in any case.

    Raises:
        UsageError: A file cannot be read or written.
    """
    known, done = _known(root), Done.nothing()
    done.again = known is not None
    digests: dict[str, str] = dict(known or {})
    wanted = {**FILES, **PLAIN_USER} if plain_user else dict(FILES)
    wanted.update({name: place for name, place in PLAIN_USER.items() if place in digests})
    folder = source()
    for name, place in wanted.items():
        path, content = root / place, _content(folder, name, program)
        there = _read(path)
        if there == content:
            done.same.append(path)
        elif there is not None and known is not None and _digest(there) != known.get(place):
            _write(path.with_name(path.name + NEW), content)
            done.kept.append(path)
            continue
        else:
            if there is not None and known is None:  # of a version that remembered nothing
                done.aside.append(_write(path.with_name(path.name + OLD), there))
            done.written.append(_write(path, content))
        digests[place] = _digest(content)
        _remove(path.with_name(path.name + NEW))
    _write(root / MANIFEST, json.dumps({"version": 1, "files": digests}, indent=1).encode() + b"\n")
    return done


def uninstall(root: Path) -> Done:
    """Takes away what `install` wrote and nobody changed since, with the links that enable the units.

    Raises:
        UsageError: Nothing is remembered to be installed there, or a file cannot be removed.
    """
    known, done = _known(root), Done.nothing()
    if known is None:
        raise UsageError(
            f"{root / MANIFEST} is not there: it is not known what was installed",
            field="uninstall_units",
            remedy="Run --install-units once more first, or remove the files by hand.",
        )
    for place, digest in known.items():
        path = root / place
        there = _read(path)
        if there is not None and _digest(there) != digest:
            done.kept.append(path)
            continue
        for link in (root / _UNITS).glob(f"*.wants/{path.name}"):
            _remove(link)
        if there is not None:
            done.removed.append(path)
        for one in (path, path.with_name(path.name + NEW), path.with_name(path.name + OLD)):
            _remove(one)
        if path.parent.name.endswith(".d") and path.parent.parent == root / _UNITS and not any(path.parent.iterdir()):
            path.parent.rmdir()
    _remove(root / MANIFEST)
    return done


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


def _content(folder: Path, name: str, program: Path) -> bytes:
    """A file as it is written: with the programs that are installed here."""
    text = (folder / name).read_text(encoding="utf-8")
    if name in _PROGRAMS:
        there = program if _PROGRAMS[name] == "sevd" else program.with_name(_PROGRAMS[name])
        text = text.replace(f"ExecStart=/usr/bin/{_PROGRAMS[name]}\n", f"ExecStart={_quoted(there)}\n")
    return text.encode()


def _quoted(program: Path) -> str:
    """A path as ExecStart= takes it (systemd.service(5), COMMAND LINES)."""
    text = os.fspath(program).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if any(letter in text for letter in " \t'\"\\;") else text


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _known(root: Path) -> dict[str, str] | None:
    """Digests of what was installed, by place; None if nothing is remembered. Places that are not ours are passed over.

    Raises:
        UsageError: It cannot be read.
    """
    raw = _read(root / MANIFEST)
    if raw is None:
        return None
    try:
        found = json.loads(raw)
        files = found["files"]
        if found["version"] != 1 or not isinstance(files, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(
            f"{root / MANIFEST}: expected what version 1 of it has",
            field="install_units",
            remedy="Move it away: files are then replaced, and what was there before is kept beside them.",
        ) from None
    ours = {*FILES.values(), *PLAIN_USER.values()}
    return {place: digest for place, digest in files.items() if place in ours and isinstance(digest, str)}


def _read(path: Path) -> bytes | None:
    """What is in a file; None if it is not there."""
    try:
        with open(path, "rb") as file:
            return file.read(_MANIFEST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(path, error) from None


def _write(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.chmod(0o644)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _refused(path, error) from None
    return path


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: {os.strerror(error.errno or 0)}", field="install_units", remedy="Run it as root.")
