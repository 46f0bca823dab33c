"""A booted systemd in namespaces of its own: this machine's root with a layer over it that vanishes, and our units in it.

Nothing of the machine outside is changed: mounts, processes, control groups below one of our own, host name and what is
written are the namespaces'. Devices are made anew, so that their modes are ours to choose.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from tests.support.needs import lacking, need_program, need_root

BOOT_SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/opt/sevd"
"""Where the project and its interpreter are in the booted system: home directories are hidden from the unit."""

_SYSTEMD = next((path for path in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if os.path.exists(path)), "")

_BOOT = r"""
set -eu
base=$1; group=$2; systemd=$3; project=$4; python=$5; site=$6
echo $$ > "$group/cgroup.procs"
exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child=KILL sh -eu -c '
base=$1; systemd=$2; project=$3; python=$4; site=$5
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
root="$base/root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,ro,bind "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "kmsg 1 11"; do
  set -- $node; mknod -m 666 "$root/dev/$1" c "$2" "$3"
done
test ! -e /dev/kvm || mknod -m 600 "$root/dev/kvm" c 10 232
test ! -e /dev/fuse || mknod -m 666 "$root/dev/fuse" c 10 229
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
rm -rf "$root/opt/sevd"
mkdir -p "$root/opt/sevd/src" "$root/opt/sevd/python" "$root/opt/sevd/site"
mkdir "$base/src" "$base/src.work"
mount -t overlay -o "lowerdir=$project,upperdir=$base/src,workdir=$base/src.work" overlay "$root/opt/sevd/src"
mount --bind "$python" "$root/opt/sevd/python"
mount --bind "$site" "$root/opt/sevd/site"
: > "$root/etc/fstab"
: > "$root/etc/machine-id"
if ls "$python"/lib/libpython3*.so* >/dev/null 2>&1; then
  # an interpreter below a home directory, which the units do not see, finds its own library all the same
  echo /opt/sevd/python/lib > "$root/etc/ld.so.conf.d/00-sevd.conf"
  chroot "$root" /sbin/ldconfig
fi
rm -rf "$root/etc/systemd/system" "$root/var/lib/sevd" "$root/etc/sevd" "$root/var/log/journal"
mkdir -p "$root/etc/systemd/system"
cp -r "$base.files/." "$root/"
mkdir "$root/.old"
cd "$root"
pivot_root . .old
umount -l /.old
mount --make-rshared /
exec env -i container=sevd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin "$systemd" --unit=booted.target --log-level=info --show-status=no
' sh "$base" "$systemd" "$project" "$python" "$site"
"""

_TARGET = """[Unit]
Description=Booted for a test
Requires=systemd-journald.service
After=systemd-journald.service
AllowIsolate=yes
"""

_COMMAND = """#!{prefix}/venv/bin/python
import sys
from {module} import {function}
sys.exit({function}())
"""


class Booted:
    """The system. Ends, and leaves nothing, with `close`."""

    def __init__(self, folder: Path) -> None:
        need_root()
        for program in ("unshare", "nsenter", "mount", "pivot_root", "systemctl", "systemd-sysusers", "setpriv"):
            need_program(program)
        if not _SYSTEMD:
            lacking("needs systemd")
        self._base = folder / "booted"
        self._base.mkdir()
        self._files(folder / "booted.files")
        self._group = _new_group()
        self._log = (folder / "boot.log").open("wb")
        arguments = [self._base, self._group, _SYSTEMD, ROOT, *_interpreter()]
        self._process = subprocess.Popen(
            ["sh", "-c", _BOOT, "sh", *(str(one) for one in arguments)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self.folder = folder
        try:
            self.pid = self._init()
            self._wait()
            self.run(
                f"{PREFIX}/venv/bin/python", "-m", "compileall", "-q", f"{PREFIX}/src/sevd", f"{PREFIX}/src/client"
            )
        except BaseException:
            self.close()
            raise

    def run(
        self, *command: str, user: str = "", check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program in the system; as a user of it, with this user's groups, if one is named."""
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--pid", "--", *as_user, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd="/",
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/"},
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def write(self, path: str, text: str) -> None:
        """Writes a file of the system."""
        file = Path(f"/proc/{self.pid}/root{path}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def log(self, unit: str = "sevd.service") -> str:
        """What a unit logged."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def close(self) -> None:
        """Ends every process of the system at once, and with them its mounts."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)
        self._log.close()
        until = time.monotonic() + 30
        while not _remove_group(self._group):
            if time.monotonic() > until:
                raise AssertionError(f"processes are left in {self._group}")
            time.sleep(0.05)

    def _files(self, folder: Path) -> None:
        """What lies over the machine's root: a target, and the project's commands."""
        (folder / "etc/systemd/system").mkdir(parents=True)
        (folder / "etc/systemd/system/booted.target").write_text(_TARGET)
        (folder / "usr/local/bin").mkdir(parents=True)
        for name, module, function in (
            ("sevd", "sevd.__main__", "entry"),
            ("sevd-fetch", "sevd.fetch.main", "main"),
            ("sev", "sev.cli.main", "entry"),
            ("sevd-simulator", "sevd.simulator.main", "entry"),
        ):
            path = folder / "usr/local/bin" / name
            path.write_text(_COMMAND.format(prefix=PREFIX, module=module, function=function))
            path.chmod(0o755)
        venv = folder / PREFIX.lstrip("/") / "venv"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin/python").symlink_to(f"{PREFIX}/python/bin/{version}")
        (venv / "pyvenv.cfg").write_text(f"home = {PREFIX}/python/bin\ninclude-system-site-packages = false\n")
        site = venv / "lib" / version / "site-packages"
        site.mkdir(parents=True)
        (site / "sevd.pth").write_text(f"{PREFIX}/site\n{PREFIX}/src\n{PREFIX}/src/client\n")

    def _init(self) -> int:
        """The number of systemd, outside."""
        until = time.monotonic() + BOOT_SECONDS
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = 0
        while not found and time.monotonic() < until and self._process.poll() is None:
            for child in children.read_text().split():
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                        found = int(child)
            time.sleep(0.02)
        if not found:
            lacking(f"systemd does not start in namespaces here: {self._said()}")
        return found

    def _wait(self) -> None:
        until = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            state = self.run("systemctl", "is-active", "booted.target", check=False).stdout.strip()
            if state == "active":
                return
            time.sleep(0.05)
        lacking(f"systemd does not get ready in namespaces here: {self._said()}")

    def _said(self) -> str:
        return (self.folder / "boot.log").read_text(errors="replace")[-2000:]


def _interpreter() -> tuple[str, str]:
    """This interpreter's installation and the place of its packages."""
    return sys.base_prefix, sysconfig.get_paths()["purelib"]


def _new_group() -> Path:
    """A control group of the unified hierarchy for the system."""
    mounts = (line.partition(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    found = next((Path(before.split()[4]) for before, _, after in mounts if after.startswith("cgroup2 ")), None)
    if found is None:
        lacking("needs the unified hierarchy of control groups")
    path = found / f"sevd-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        path.mkdir()
    except OSError as error:
        lacking(f"needs a control group: {os.strerror(error.errno or 0)}")
    return path


def _remove_group(path: Path) -> bool:
    """Removes a control group and those below it; False while processes are in them."""
    try:
        for folder, _, _ in os.walk(path, topdown=False):
            os.rmdir(folder)
    except FileNotFoundError:
        return not path.exists()
    except OSError:
        return False
    return True
