"""What programs inside simulated guests open, as trees of files: `sev-guest/ID` and `tsm/ID` for every guest that runs.

Both trees of a host, and whatever else asks, share one driver for each guest: its VMPCK is used up or given up for all
of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar
from weakref import WeakKeyDictionary, ref

from sevd.simulator.fuse.nodes import Directory, Node
from sevd.simulator.guest_channel import Patience
from sevd.simulator.guest_device import SevGuestDevice, certificate_table
from sevd.simulator.guest_host import GuestRef
from sevd.simulator.host_nodes import DeviceNode
from sevd.simulator.simulator import Simulator
from sevd.simulator.tsm_nodes import ReportFolder


class GuestDevices:
    """The drivers of a host's guests. What is set here holds for guests that are found afterwards.

    Args:
        simulator: The host.

    Attributes:
        certificates: The host gives its guests a certificate table; may be changed at any time.
        svsm: Guests run under an SVSM.
        patience: How long a guest asks a busy host again.
    """

    _known: ClassVar[WeakKeyDictionary[Simulator, GuestDevices]] = WeakKeyDictionary()
    _known_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, simulator: Simulator) -> None:
        self.certificates = True
        self.svsm = False
        self.patience = Patience()
        self._simulator = ref(simulator)
        self._devices: dict[str, tuple[GuestRef, SevGuestDevice]] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, simulator: Simulator) -> GuestDevices:
        """The one of a host."""
        with cls._known_lock:
            found = cls._known.get(simulator)
            if found is None:
                found = cls._known[simulator] = cls(simulator)
            return found

    def devices(self) -> dict[str, SevGuestDevice]:
        """The drivers of the guests that run now, by guest id. Those of others are closed."""
        simulator = self._simulator()
        guests = simulator.guests() if simulator is not None else {}
        running = {name: guest for name, guest in guests.items() if guest.running}
        with self._lock:
            for name, (guest, device) in list(self._devices.items()):
                if running.get(name) is not guest:
                    device.close()
                    del self._devices[name]
            for name, guest in running.items():
                if name not in self._devices:
                    device = SevGuestDevice(
                        guest, self._table, faults=self._faults, svsm=self.svsm, patience=self.patience
                    )
                    self._devices[name] = guest, device
            return {name: device for name, (_, device) in self._devices.items()}

    def close(self) -> None:
        """Nobody waits for a busy host any longer."""
        with self._lock:
            for _, device in self._devices.values():
                device.close()
            self._devices.clear()

    def _table(self) -> bytes:
        simulator = self._simulator()
        return certificate_table(simulator.endorsements()) if self.certificates and simulator is not None else b""

    def _faults(self, hypercall: str) -> None:
        simulator = self._simulator()
        if simulator is not None:
            simulator.faults(hypercall)


class GuestFolder(Directory):
    """One node for every guest that runs, under its id.

    Args:
        devices: The drivers.
        make: Makes the node of a guest.
    """

    def __init__(self, devices: GuestDevices, make: Callable[[SevGuestDevice], Node]) -> None:
        super().__init__(0o755)
        self._devices = devices
        self._make = make
        self._nodes: dict[str, tuple[SevGuestDevice, Node]] = {}
        self._lock = threading.Lock()

    def lookup(self, name: str) -> Node | None:
        """A guest's node, the same as long as the guest lives."""
        device = self._devices.devices().get(name)
        with self._lock:
            known = self._nodes.get(name)
            if known is not None and known[0] is device:
                return known[1]
            self._nodes.pop(name, None)
            if device is None:
                return None
            node = self._make(device)
            self._nodes[name] = device, node
            return node

    def names(self) -> list[str]:
        """The guests' ids."""
        devices = self._devices.devices()
        with self._lock:
            for name in [name for name in self._nodes if name not in devices]:
                del self._nodes[name]
        return list(devices)


def guest_tree(simulator: Simulator) -> Directory:
    """`sev-guest`: a device file for every guest."""
    return GuestFolder(GuestDevices.of(simulator), lambda device: DeviceNode(device.open))


def tsm_tree(simulator: Simulator) -> Directory:
    """`tsm`: configfs-tsm's `report` folder for every guest."""
    return GuestFolder(GuestDevices.of(simulator), ReportFolder)
