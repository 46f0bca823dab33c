"""Programs that open fixed paths, run with other files there: a private mount namespace, in which nothing of the machine
changes for anybody else. Needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

_NODES = ("null", "zero", "full", "random", "urandom", "tty")
_SCRIPT = """
set -e
dev=$1; shift
mount -t tmpfs -o mode=755 dev "$dev"
for node in {nodes}; do : >"$dev/$node"; mount --bind "/dev/$node" "$dev/$node"; done
ln -s /proc/self/fd "$dev/fd"
while [ "$1" != -- ]; do
  case $2 in
    /dev/*) at=$dev/${{2#/dev/}} ;;
    *) mount -t tmpfs none "$3"; at=$2 ;;
  esac
  if [ -d "$1" ]; then mkdir -p "$at"; else mkdir -p "$(dirname "$at")"; : >"$at"; fi
  mount --bind "$1" "$at"
  shift 3
done
shift
mount --move "$dev" /dev
exec "$@"
""".format(nodes=" ".join(_NODES))


def run_inside(
    folder: Path, files: Mapping[str, Path], command: list[str], *, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs a command.

    Args:
        folder: An empty folder, used inside the namespace only.
        files: What stands at a path: below /dev, which holds nothing else but the usual nodes, or below /sys/kernel.
        command: The command.
        timeout: Seconds.
    """
    pairs = [part for path, file in files.items() for part in (str(file), path, "/sys/kernel")]
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "namespace", str(folder)]
    return subprocess.run(
        [*inside, *pairs, "--", *command], capture_output=True, text=True, timeout=timeout, check=False
    )
