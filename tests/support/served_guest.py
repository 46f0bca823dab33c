"""A simulated guest whose devices are files that any process opens; and a look at the world from inside that guest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sev.guest import tsm as configfs
from sevd.simulator import Simulator
from sevd.simulator.device_directory import DeviceDirectory
from sevd.simulator.guest_channel import Patience
from sevd.simulator.guest_nodes import GuestDevices
from sevd.simulator.serving import Options, ServedHost
from tests.support import namespace
from tests.support.guest_program import running_guest
from tests.support.needs import need_fuse
from tests.support.simulated import template

GUEST = "attested-guest"


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
        files = {"/dev/sev-guest": self.device, "/dev/cpu/0/msr": self.msr, configfs.PATH: self.tsm}
        return namespace.inside(files, command)


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
