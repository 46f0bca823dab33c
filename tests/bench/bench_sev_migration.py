"""A migration of an SEV guest against the cryptography it cannot avoid: `python -m tests.bench.bench_sev_migration`.

Floor, for each page of 4 KiB: AES-128-XTS out of the source's memory, AES-128-CTR and HMAC-SHA256 of its packet, the same
again at the target. Three ways: the model alone (two hosts in this process), two daemons with guests in their own process
(`sevd --simulate`), and, as root, two daemons with workers on two served hosts (`sevd --simulator`), where a page crosses
seven processes. The floor is measured around each; the ratio of each pair is what counts, since the machine's speed
changes under both alike.
"""

from __future__ import annotations

import argparse
import hmac
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sev.client import Host
from sev.launch import Sev, SevDevice
from sev.launch.sev_migration import BATCH, Receiver, Sender
from sev.measurement.vcpu_types import signature
from sev.migration import migrate
from sevd.simulator import Simulator
from tests.bench.bench_sev_launch import seconds
from tests.support.daemon import Daemon, running
from tests.support.service import Service, served_service
from tests.support.two_hosts import launched, roots

PAGE = 4096
CPU = signature("EPYC-v4")
RATIO_WANTED = 12.0
"""Of the way through daemons and workers."""


def floor(pages: int) -> None:
    """The cryptography of both sides alone."""
    page, iv, keys = os.urandom(PAGE), bytes(16), (bytes(range(16)), bytes(range(32)))
    for number in range(pages):
        tweak = number.to_bytes(16, "little")
        page = Cipher(algorithms.AES(keys[1]), modes.XTS(tweak)).decryptor().update(page)
        page = Cipher(algorithms.AES(keys[0]), modes.CTR(iv)).encryptor().update(page)
        hmac.digest(keys[0], page, "sha256")
        hmac.digest(keys[0], page, "sha256")
        page = Cipher(algorithms.AES(keys[0]), modes.CTR(iv)).encryptor().update(page)
        page = Cipher(algorithms.AES(keys[1]), modes.XTS(tweak)).encryptor().update(page)


class Model:
    """Two hosts in this process, without daemons."""

    def __init__(self, stack: ExitStack, size: int) -> None:
        self.size = size
        self.hosts = []
        for _ in range(2):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            simulator = Simulator.open(folder, product="rome")
            stack.callback(simulator.close)
            self.hosts.append(simulator)

    def migrate(self) -> float:
        """Seconds of the pages' way."""
        (source, target), size = self.hosts, self.size
        here, there = source.process(), target.process()
        own, theirs = (self.exported(simulator) for simulator in (source, target))
        with Sev(here) as leaving, Sev(there) as coming:
            leaving.create(size, 0, 1, CPU)
            leaving.memory(0, size)[:] = os.urandom(size)
            leaving.start(0)
            leaving.update(0, size)
            leaving.measure()
            leaving.finish()
            coming.create(size, 0, 1, CPU)
            with Sender(leaving) as sender, Receiver(coming) as receiver:
                receiver.start(sender.start(*theirs), own[0])
                begin = time.perf_counter()
                for first in range(0, size, BATCH * PAGE):
                    gpas = range(first, min(first + BATCH * PAGE, size), PAGE)
                    receiver.pages(zip(gpas, sender.pages(gpas), strict=True))
                took = time.perf_counter() - begin
                receiver.finish()
                sender.finish()
        here.exit()
        there.exit()
        return took

    @staticmethod
    def exported(simulator: Simulator) -> tuple[bytes, bytes, bytes]:
        """PDH, chain and authorities of a host."""
        process, made = simulator.process(), simulator.sev_certificates()
        with SevDevice(process, "/dev/sev") as device:
            pdh, chain = device.pdh_export()
        process.exit()
        return pdh, chain[: 2 * 2084] + made["cek"], made["authorities"]


class Daemons:
    """Two daemons, and a guest that goes to and fro."""

    def __init__(self, hosts: list[Host], size: int) -> None:
        self.hosts = hosts
        self.size = size
        self.guest = ""

    def migrate(self) -> float:
        """Seconds of the whole migration."""
        source, target = self.hosts
        if not self.guest:
            self.guest = launched(source, os.urandom(self.size))
        trusted = roots(target)
        took = seconds(lambda: migrate(source, target, self.guest, roots=trusted))
        self.hosts.reverse()
        return took


@contextmanager
def daemons(workers: bool) -> Iterator[list[Host]]:
    """Two daemons' clients."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hosts = []
        for name in ("source", "target"):
            place = folder / name
            place.mkdir()
            way: AbstractContextManager[Service | Daemon] = (
                served_service(place, "rome") if workers else running(place, "--simulate=rome")
            )
            hosts.append(stack.enter_context(stack.enter_context(way).connect(timeout=60)))
        yield hosts


def show(name: str, way: Callable[[], float], mib: int, rounds: int) -> float:
    """Measures one way and prints a line; the median ratio."""
    pages = (mib << 20) // PAGE
    way()
    pairs = [(seconds(lambda: floor(pages)), way()) for _ in range(rounds)]
    best = min(took for _, took in pairs)
    ratio = statistics.median(took / lowest for lowest, took in pairs)
    print(f"{name:<9}{best:7.2f} s {1e6 * best / pages:8.0f} us a page {mib / best:8.1f} MiB/s   ratio {ratio:6.2f}")
    return ratio


def main() -> None:
    """Prints time, throughput and ratio of each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="8 MiB, one round")
    arguments = parser.parse_args()
    mib, rounds = (8, 1) if arguments.quick else (arguments.mib, arguments.rounds)
    pages = (mib << 20) // PAGE
    lowest = seconds(lambda: floor(pages))
    print(f"floor    {lowest:7.2f} s {1e6 * lowest / pages:8.0f} us a page, both sides, {mib} MiB")
    with ExitStack() as stack:
        show("model", Model(stack, mib << 20).migrate, mib, rounds)
    with daemons(workers=False) as hosts:
        show("daemons", Daemons(hosts, mib << 20).migrate, mib, rounds)
    if os.geteuid() == 0:
        with daemons(workers=True) as hosts:
            ratio = show("workers", Daemons(hosts, mib << 20).migrate, mib, rounds)
        print(f"wanted: workers below {RATIO_WANTED}; {ratio:.2f}")


if __name__ == "__main__":
    main()
