"""A simulated guest whose devices are files that any process opens; and a look at the world from inside that guest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sevd.simulator import Simulator
from sevd.simulator.device_directory import DeviceDirectory
from sevd.simulator.guest_channel import Patience
from sevd.simulator.guest_nodes import GuestDevices
from sevd.simulator.serving import Options, ServedHost
from tests.support.guest_program import running_guest
from tests.support.needs import need_fuse, need_program
from tests.support.simulated import template

GUEST = "attested-guest"

_NODES = ("null", "zero", "full", "random", "urandom", "tty")

_INSIDE = f"""
set -e
dev=$1; shift; tsm=$1; shift; msr=$1; shift
mount -t tmpfs none /sys/kernel
mkdir -p /sys/kernel/config/tsm/report
mount --bind "$tsm" /sys/kernel/config/tsm/report
new=$(mktemp -d)
mount -t tmpfs -o mode=755 none "$new"
for node in {" ".join(_NODES)}; do touch "$new/$node"; mount --bind "/dev/$node" "$new/$node"; done
ln -s /proc/self/fd "$new/fd"
ln -s /proc/self/fd/0 "$new/stdin"; ln -s /proc/self/fd/1 "$new/stdout"; ln -s /proc/self/fd/2 "$new/stderr"
touch "$new/sev-guest"; mount --bind "$dev" "$new/sev-guest"
mkdir -p "$new/cpu/0" "$new/shm"; touch "$new/cpu/0/msr"; mount --bind "$msr" "$new/cpu/0/msr"
mount --rbind "$new" /dev
umount -l "$new"; rmdir "$new"
exec "$@"
"""


@dataclass(frozen=True)
class ServedGuest:
    """A simulated host with a guest that runs, and its files.

    Attributes:
        host: The model, in this process.
        folder: The device folder.
    """

    host: Simulator
    folder: Path

    @property
    def device(self) -> Path:
        """The guest's /dev/sev-guest."""
        return self.folder / "sev-guest" / GUEST

    @property
    def tsm(self) -> Path:
        """The guest's configfs-tsm folder."""
        return self.folder / "tsm" / GUEST

    @property
    def msr(self) -> Path:
        """The guest's /dev/cpu/0/msr."""
        return self.folder / "guest-msr"

    @property
    def devices(self) -> GuestDevices:
        """The drivers of the host's guests."""
        return GuestDevices.of(self.host)

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command in a mount namespace of its own, in which the files stand where a guest has them."""
        need_program("unshare")
        paths = (str(self.device), str(self.tsm), str(self.msr))
        return ["unshare", "--mount", "--propagation", "private", "bash", "-c", _INSIDE, "bash", *paths, *command]


@contextmanager
def served_guest(
    folder: Path, product: str = "genoa", *, svsm: bool = False, options: Options | None = None
) -> Iterator[ServedGuest]:
    """Serves a guest; skips where there is no FUSE. Nothing stays mounted."""
    need_fuse()
    shutil.copytree(template(product), folder / "state")
    simulator = Simulator.open(folder / "state", product=product, seed=1)
    devices = GuestDevices.of(simulator)
    devices.svsm = svsm
    devices.patience = Patience(delay=0.01, limit=0.2)
    with DeviceDirectory(folder / "dev") as directory, ServedHost(simulator, directory, options or Options()) as host:
        host.start()
        with running_guest(simulator, GUEST):
            yield ServedGuest(simulator, folder / "dev")
