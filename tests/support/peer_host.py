"""Programs of others on a served simulated host: its device, registers, parameters and processor where they look, and its
KDS in the place of AMD's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import cpuid
from tests.support.device_files import DeviceFiles, device_files
from tests.support.namespace import Network, kds_network, run_inside
from tests.support.needs import need_program
from tests.support.peers import peer

# What says whose the processor is, and what it can encrypt. Not its instructions: the program has to run here.
_LEAVES = (0, *range(0x8000_0000, 0x8000_0005), 0x8000_001F)


@dataclass(frozen=True)
class PeerHost:
    """A running sevd-simulator, as programs on that host see it.

    Attributes:
        files: Its files.
        platform: Its platform.json.
        network: Where kdsintf.amd.com is its KDS.
    """

    files: DeviceFiles
    platform: Mapping[str, Any]
    network: Network

    @property
    def provider(self) -> Path:
        """Certificate and key of a cloud provider, PEM."""
        product = str(self.platform["product"])
        return self.files.folder / "state" / "simulator" / product / "kds" / "provider.pem"

    def leaves(self) -> list[str]:
        """The processor, as arguments of tests.support.cpuid."""
        found = {int(entry["leaf"], 0): entry for entry in self.platform["cpuid"] if int(entry["subleaf"], 0) == 0}
        registers = ("eax", "ebx", "ecx", "edx")
        return [f"{leaf:#x}=" + ",".join(found[leaf][name] for name in registers) for leaf in _LEAVES]

    def run(self, program: str, *words: object) -> subprocess.CompletedProcess[str]:
        """Runs a peer as on that host."""
        need_program("objdump")
        devices = self.files.devices
        files = {
            "/dev/sev": self.files.sev,
            "/dev/cpu/0/msr": devices / "msr",
            "/sys/module/kvm_amd/parameters": devices / "parameters",
        }
        kvm = Path("/dev/kvm")
        if kvm.exists():
            files[str(kvm)] = kvm
        path = str(peer(program))
        disguise = [sys.executable, "-S", cpuid.__file__, cpuid.places(path), *self.leaves(), "--"]
        return run_inside(files, [*disguise, path, *map(str, words)], network=self.network)


@contextmanager
def peer_host(folder: Path, product: str, *options: str) -> Iterator[PeerHost]:
    """Serves a host in a folder, with its KDS; skips where that cannot be."""
    with device_files(folder, "--seed", "1", "--kds", "127.0.0.1:0", *options, product=product) as files:
        platform = json.loads((files.devices / "platform.json").read_text())
        port = int(platform["kds"].rpartition(":")[2])
        with kds_network(folder, port, files.devices / "roots" / "kds-ca.pem") as network:
            yield PeerHost(files, platform, network)
