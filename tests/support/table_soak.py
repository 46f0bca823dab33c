"""Readers of the certificate table as VMMs are, each with a fresh report, while the platform changes under them."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sev import products
from sev.abi import cert_table
from sev.abi.tcb import TcbVersion
from sev.attestation import Collateral, Report, Roots, verify
from sev.client import Host
from sev.errors import MalformedInput, NotNow, SevError
from sevd.simulator.chip import Chip
from tests.support.table_readers import read_locked

LEAVES = {cert_table.VCEK: "vcek", cert_table.VLEK: "vlek"}


@contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """The table under a shared OFD lock, as the kernel's documentation has it of VMMs; None while it is being changed."""
    try:
        fd = read_locked(path)
    except BlockingIOError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def judged(report: bytes, table: bytes, nonce: bytes, roots: Roots) -> tuple[str, Report]:
    """Whether a table fits a report: "vcek" or "vlek" by what signed and verified, "bare" where guests got no leaf.

    Raises:
        SevError: It does not fit.
    """
    parsed = Report.parse(report)
    assert parsed.report_data == nonce
    leaf = next((LEAVES[guid] for guid, _ in cert_table.parse(table) if guid in LEAVES), None)
    if leaf is None:
        return "bare", parsed
    if parsed.signing_key != leaf:
        raise MalformedInput(f"the report is signed by the {parsed.signing_key}, the table holds a {leaf}")
    collateral = Collateral(certificate_table=table)
    verify(parsed, collateral, at=datetime.now(UTC), roots=roots, allow_masked_chip_id=True)
    return leaf, parsed


def judged_now(host: Host, guest_id: str, path: Path, roots: Roots) -> tuple[str, Report]:
    """The same of a report that is asked for now, with the table as it lies there then."""
    nonce = bytes(64)
    return judged(host.guest_report(guest_id, nonce).report, path.read_bytes(), nonce, roots)


class Readers:
    """Readers on threads, each with a lock of its own.

    Args:
        connect: Makes a client of the daemon.
        guest_id: Whose reports are asked for.
        path: The table.
        roots: The simulated host's.
        number: How many.
        pause: Seconds between two reports of one, on average.
    """

    def __init__(
        self, connect: Callable[[], Host], guest_id: str, path: Path, roots: Roots, *, number: int, pause: float
    ) -> None:
        self.counted: Counter[str] = Counter()
        self.mismatches: list[str] = []
        self.tcbs: Counter[str] = Counter()
        self._guest_id = guest_id
        self._path = path
        self._roots = roots
        self._pause = pause
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._hosts = [connect() for _ in range(min(5, number))]
        hosts = itertools.cycle(self._hosts)
        self._threads = [threading.Thread(target=self._run, args=(next(hosts), n)) for n in range(number)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for host in self._hosts:
            host.close()

    def _run(self, host: Host, number: int) -> None:
        chance = random.Random(number)
        while not self._stop.wait(chance.uniform(0, 2 * self._pause)):
            nonce = chance.randbytes(64)
            try:
                with locked(self._path) as fd:
                    if fd is None:
                        self._count("busy")
                        continue
                    # As in KVM's exit: the lock is held from before the report is made until the table was read.
                    answer = host.guest_report(self._guest_id, nonce)
                    table = os.pread(fd, 1 << 20, 0)
            except SevError as error:
                self._wrong(f"no report: {error.message}")
                return
            try:
                outcome, report = judged(answer.report, table, nonce, self._roots)
                if answer.certificate_table != table:
                    raise MalformedInput("the daemon told another table than lies there")
            except SevError as error:
                self._wrong(f"{error.reason}: {error.message}")
                continue
            self._count(outcome)
            with self._lock:
                self.tcbs[f"{outcome} {report.reported_tcb}"] += 1

    def _count(self, what: str) -> None:
        with self._lock:
            self.counted[what] += 1

    def _wrong(self, what: str) -> None:
        with self._lock:
            self.mismatches.append(what)


class Changes:
    """Commits over provisional firmware, configurations and VLEKs, one after the other.

    Args:
        host: A client of the daemon.
        chip: The simulated chip, which wraps hash sticks as AMD's service would.
    """

    def __init__(self, host: Host, chip: Chip) -> None:
        self.counted: Counter[str] = Counter()
        self._host = host
        self._chip = chip
        self._chance = random.Random(1)
        status = host.snp_status()
        self._tcb = status.current_tcb
        self._build = [int(part) for part in status.firmware.split(".")]
        self._raised = itertools.cycle(("snp", "microcode", "bootloader", "tee"))

    def commit(self) -> None:
        """Another firmware, provisionally, with a TCB one higher; then it is committed."""
        name = next(self._raised)
        value = self._tcb.get(name)
        assert value is not None
        self._tcb = self._tcb.replace(**{name: min(255, value + 1)})
        self._build[2] += 1
        if self._build[2] > 255:
            self._build[1:] = [self._build[1] + 1, 0]
        version = ".".join(map(str, self._build))
        status = self._host.update_firmware(version, self._tcb.components())
        assert (status.current_tcb, status.firmware) == (self._tcb, version)
        assert status.committed_tcb != self._tcb
        assert self._insist("commits", lambda: self._host.snp_commit(confirm=True)) == self._tcb

    def configure(self) -> None:
        """A lower reported TCB, or none, with one mask or the other."""
        snp = self._tcb.snp
        assert snp is not None
        if self._chance.random() < 0.3:
            self._insist("configurations", self._host.snp_reset_config)
            return
        lower = {"snp": snp - self._chance.randrange(4)}
        mask = self._chance.random() < 0.5
        self._insist("configurations", lambda: self._host.snp_set_config(reported_tcb=lower, mask_chip_id=mask))

    def load_vlek(self) -> None:
        """The VLEK of the TCB that is reported now."""
        tcb = self._host.snp_status().reported_tcb
        stick = self._chip.wrap_vlek(tcb.encode(), os.urandom(12))
        self._insist("VLEKs", lambda: self._host.vlek_load(stick))

    def _insist(self, what: str, change: Callable[[], object]) -> TcbVersion:
        """Until no reader holds it back."""
        while True:
            try:
                change()
            except NotNow:
                self.counted["held back"] += 1
            else:
                self.counted[what] += 1
                return self._host.snp_status().reported_tcb


def chip_of(state: Path) -> Chip:
    """The chip in a simulated host's state directory."""
    return Chip.load(products.GENOA, state / "simulator" / "genoa")


def churn(changes: Changes, seconds: float, *, vlek: bool, rest: float = 0.15) -> None:
    """Changes for so long, and at least two rounds, with a rest after each."""
    until = time.monotonic() + seconds
    rounds = 0
    while rounds < 2 or time.monotonic() < until:
        rounds += 1
        changes.commit()
        if vlek:
            changes.load_vlek()
        for _ in range(2):
            changes.configure()
            if vlek:
                changes.load_vlek()
        time.sleep(rest)
