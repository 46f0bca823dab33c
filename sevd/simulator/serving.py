"""A simulated host served as files: the model, the device folder, and the servers beside it, put together.

The order of a start: whatever needs time first, then the folder's entries, `sev` last: who sees it can use all of it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from sev.errors import UsageError
from sev.records import record
from sevd.simulator import guest_nodes, host_files, host_nodes
from sevd.simulator.control import ControlServer
from sevd.simulator.device_directory import LAST, DeviceDirectory
from sevd.simulator.faults import Faults
from sevd.simulator.host_reader import SimulatedReader
from sevd.simulator.simulator import SEV_PATH, Simulator

if TYPE_CHECKING:
    from sevd.simulator.kds import KdsFault

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long the end waits for a firmware command that does not end."""


@record
class Options:
    """How a host is served.

    Attributes:
        sev_mode: Permission bits of `sev`.
        sev_gid: Its group.
        kds: (host, port) on which the key distribution service answers; None for none.
        kds_faults: Those of the key distribution service.
    """

    sev_mode: int = 0o600
    sev_gid: int = 0
    kds: tuple[str, int] | None = None
    kds_faults: Sequence[KdsFault] = ()


class ServedHost:
    """A running simulator with its files.

    Args:
        simulator: The model; closed with this.
        directory: The device folder; closed with this.
        options: How.
    """

    def __init__(self, simulator: Simulator, directory: DeviceDirectory, options: Options) -> None:
        self.simulator = simulator
        self.directory = directory
        self._options = options
        self._stack = contextlib.ExitStack()
        self.sev = host_nodes.DeviceNode(simulator.devices[SEV_PATH], options.sev_mode, gid=options.sev_gid)

    def start(self) -> None:
        """Serves everything; ready when this returns.

        Raises:
            SevError: It cannot be served; what was begun is taken back by `close`.
        """
        directory, simulator = self.directory, self.simulator
        for name, data in host_files.roots(simulator).items():
            directory.write(f"roots/{name}", data)
        directory.write("platform.json", host_files.platform_json(simulator, self._start_kds()))
        directory.start()
        directory.serve("msr", host_nodes.host_msr(snp=simulator.product.has_snp))
        directory.serve("guest-msr", host_nodes.guest_msr())
        directory.serve("parameters", host_nodes.parameters(SimulatedReader(simulator)))
        directory.serve("sev-guest", guest_nodes.guest_tree(simulator))
        directory.serve("tsm", guest_nodes.tsm_tree(simulator))
        mode, gid = _socket_mode(self._options.sev_mode), self._options.sev_gid
        control = ControlServer(
            simulator, directory.path / "control.sock", directory.identity(self.sev), mode=mode, gid=gid
        )
        self._stack.callback(control.close)
        try:
            control.start()
        except OSError as error:
            raise UsageError(
                f"{directory.path}/control.sock cannot be made: {error.strerror}",
                field="device_dir",
                remedy="Look whether the folder's file system takes sockets, and whether --sev-group exists here.",
            ) from None
        directory.serve(LAST, self.sev)

    def close(self) -> None:
        """Takes the files away and switches the host off; once more does nothing."""
        if isinstance(self.simulator.faults, Faults):
            self.simulator.faults.close()
        guest_nodes.GuestDevices.of(self.simulator).close()
        self.directory.withdraw(LAST)
        self._stack.close()
        self.directory.close()  # gives the folder up: after what else lies in it
        ending = threading.Thread(target=self.simulator.close, name="switch-off", daemon=True)
        ending.start()
        ending.join(STOP_SECONDS)
        if ending.is_alive():
            log.error("a firmware command is still running: the simulator ends without it")

    def __enter__(self) -> ServedHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_kds(self) -> str | None:
        """The URL of the key distribution service, with its authority among the roots; None if none is wanted."""
        if self._options.kds is None:
            return None
        from sevd.simulator.kds import KdsServer  # its TLS costs a start that does not need it

        service = KdsServer(self.simulator, *self._options.kds)
        service.start()
        self._stack.callback(service.close)
        for fault in self._options.kds_faults:
            service.fault(fault)
        self.directory.write("roots/kds-ca.pem", service.ca_pem)
        return service.url


def _socket_mode(mode: int) -> int:
    """Permission bits of the control socket for those of `sev`: who may do anything with that may connect."""
    return sum(6 << shift for shift in (0, 3, 6) if mode >> shift & 6)
