"""A simulated host that another process serves: what the daemon learns from a running sevd-simulator.

Devices are opened as the real ones are, by the files in its directory; what real hosts tell otherwise (facts, ASIDs,
certificates) comes over its control socket. The simulator may end, and come back: while it is gone the daemon says so.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sev import packets
from sev.errors import DeviceMissing, MalformedInput, NotPermitted, SevError, UsageError
from sevd.devices.facts import HostFacts
from sevd.devices.missing import Missing

ANSWER_SECONDS = 2.0
"""Seconds that the simulator has to answer."""

UPDATE_SECONDS = 30.0
"""Seconds that it has to take another firmware into use."""

COUNT_SECONDS = 0.2
"""Seconds that it has to count its ASIDs, which the daemon asks between two calls; else the last count stands."""

_FILE_BYTES = 1 << 20
_REMEDY = "Start it: sevd-simulator --state-dir STATE --device-dir {}."

log = logging.getLogger(__name__)


class RemoteSimulator:
    """A running sevd-simulator. From any thread.

    Args:
        directory: Its device directory.

    Raises:
        UsageError: That is not the directory of a simulator that runs; says what is wrong with it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._asids: dict[str, tuple[int, int]] = {}
        self._cpuid = self._check()
        self._roots = self._read("roots/ark.pem")
        try:
            self._facts = self._look()
        except SevError as error:
            self.close()
            raise UsageError(
                f"{directory}: the simulator does not say what it simulates: {error.message}",
                field="simulator",
                remedy="Start the sevd-simulator of the same version as the daemon.",
            ) from None

    @property
    def sev_path(self) -> str:
        """Its SEV device."""
        return os.fspath(self.directory / "sev")

    def facts(self) -> HostFacts:
        """What it says about its machine; what it last said, while it does not run."""
        try:
            self._facts = self._look()
        except SevError as error:
            log.debug("the simulator does not tell its facts: %s", error.message)
        return self._facts

    def asids(self) -> Mapping[str, tuple[int, int]]:
        """(total, in use) of "sev" and "sev_es" ASIDs, as last counted. Quick."""
        try:
            self._count(self._ask("host", COUNT_SECONDS))
        except SevError as error:
            log.debug("the simulator does not count its ASIDs: %s", error.message)
            if not self.present():
                return {name: (total, 0) for name, (total, _) in self._asids.items()}
        return self._asids

    def committed_tcb(self) -> int | None:
        """The committed TCB as a raw integer. Raises DeviceMissing."""
        value = self._ask("committed").get("committed_tcb")
        return value if isinstance(value, int) else None

    def endorsements(self) -> Mapping[str, bytes]:
        """Certificates in DER by kind, for the TCB that it reports now. Raises DeviceMissing."""
        found = packets.table(self._ask("endorsements"), "endorsements")
        return {kind: packets.octets(found, kind) for kind in found}

    def sev_certificates(self) -> Mapping[str, bytes]:
        """What vouches for the chip in SEV's own form: the signed CEK, ASK and ARK. Raises DeviceMissing."""
        found = packets.table(self._ask("sev-certificates"), "certificates")
        return {kind: packets.octets(found, kind) for kind in found}

    def update_firmware(self, version: str, tcb: str, commit: bool) -> None:
        """Has another firmware run. Raises UsageError, FirmwareError, KernelError, NotPermitted, DeviceMissing."""
        self._ask("firmware-update", UPDATE_SECONDS, version=version, tcb=tcb, commit=commit)

    def roots_pem(self) -> bytes:
        """The root that its certificates end in: PEM."""
        return self._roots

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX and EDX of its processor; zeros for a leaf that it does not tell."""
        return self._cpuid.get((leaf, subleaf), (0, 0, 0, 0))

    def present(self) -> bool:
        """Whether it runs. Quick."""
        with self._lock:
            return self._connected() is not None

    def missing(self) -> Sequence[str]:
        """One sentence if it does not run."""
        if self.present():
            return ()
        sentence = f"The simulator of {self.directory} does not run."
        return (Missing(sentence, _REMEDY.format(self.directory)),)

    def close(self) -> None:
        """Hangs up."""
        with self._lock:
            self._hang_up()

    def _check(self) -> dict[tuple[int, int], tuple[int, int, int, int]]:
        """Its CPUID leaves. Raises UsageError, saying precisely what this directory lacks."""
        remedy = _REMEDY.format(self.directory)
        try:
            names = set(os.listdir(self.directory))
        except OSError as error:
            raise _no(self.directory, os.strerror(error.errno or 0), remedy) from None
        for name in ("platform.json", "control.sock", "sev"):
            if name not in names:
                known = names & {"platform.json", "control.sock", ".files"}
                why = f"it holds no {name}: " + (
                    "the simulator is not ready, or has ended" if known else "no sevd-simulator serves it"
                )
                raise _no(self.directory, why, remedy)
        try:
            platform = json.loads(self._read("platform.json"))
            leaves = {_leaf(one) for one in platform["cpuid"]} if platform["simulated"] is True else None
        except (ValueError, RecursionError, LookupError, TypeError):
            leaves = None
        if leaves is None:
            raise _no(self.directory, "its platform.json is not that of a simulator", remedy)
        with self._lock:
            if self._connected() is None:
                raise _no(self.directory, "nobody answers at its control.sock: the simulator has ended", remedy)
        try:
            os.close(os.open(self.sev_path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            self.close()
            why = f"its sev cannot be opened: {os.strerror(error.errno or 0)}"
            raise _no(self.directory, why, "Run the daemon as the user that runs the simulator, or as root.") from None
        return dict(leaves)

    def _read(self, name: str) -> bytes:
        try:
            with (self.directory / name).open("rb") as file:
                return file.read(_FILE_BYTES)
        except OSError as error:
            why = f"{name} cannot be read: {os.strerror(error.errno or 0)}"
            raise _no(self.directory, why, _REMEDY.format(self.directory)) from None

    def _look(self) -> HostFacts:
        answer = self._ask("host")
        self._count(answer)
        technologies = answer.get("technologies")
        if not isinstance(technologies, list) or not all(isinstance(one, str) for one in technologies):
            raise MalformedInput("technologies: expected a list of texts", field="technologies")
        return HostFacts(
            product=packets.text(answer, "product"),
            cpu_family=packets.whole(answer, "cpu_family"),
            cpu_model=packets.whole(answer, "cpu_model"),
            cpu_stepping=packets.whole(answer, "cpu_stepping"),
            kernel=packets.text(answer, "kernel"),
            technologies=tuple(technologies),
        )

    def _count(self, answer: dict[str, object]) -> None:
        asids = packets.table(answer, "asids")
        counted = {name: packets.runs({name: [asids[name]]}, name, 2)[0] for name in asids}
        self._asids = {name: (pair[0], pair[1]) for name, pair in counted.items()}

    def _ask(self, name: str, seconds: float = ANSWER_SECONDS, **fields: object) -> dict[str, object]:
        """One question. Raises DeviceMissing where nobody answers in time, and what the simulator answers."""
        until = time.monotonic() + seconds
        if not self._lock.acquire(timeout=seconds):
            raise DeviceMissing(f"the simulator of {self.directory} does not answer")
        try:
            sock = self._connected()
            if sock is not None:
                try:
                    sock.settimeout(max(until - time.monotonic(), 0.001))
                    return packets.ask(sock, {"op": name, **fields})
                except OSError:
                    # A late answer must not be taken for that of the next question.
                    self._hang_up()
        finally:
            self._lock.release()
        raise DeviceMissing(f"the simulator of {self.directory} does not answer", remedy=_REMEDY.format(self.directory))

    def _connected(self) -> socket.socket | None:
        """The connection, made anew if the simulator came back; None while it is gone."""
        if self._sock is not None:
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            if not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0)):
                return self._sock
            self._hang_up()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # By way of the directory's descriptor: its path may be longer than a socket's can be.
            directory = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{directory}/control.sock")
            finally:
                os.close(directory)
        except PermissionError:
            sock.close()
            raise NotPermitted(f"{self.directory}/control.sock: this user may not connect", field="simulator") from None
        except OSError:
            sock.close()
            return None
        self._sock = sock
        return sock

    def _hang_up(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()


def _leaf(entry: dict[str, str]) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """An entry of `cpuid` in platform.json. Raises LookupError, ValueError, TypeError."""
    leaf, subleaf, *registers = (int(entry[name], 16) for name in ("leaf", "subleaf", "eax", "ebx", "ecx", "edx"))
    eax, ebx, ecx, edx = registers
    return (leaf, subleaf), (eax, ebx, ecx, edx)


def _no(directory: Path, why: str, remedy: str) -> UsageError:
    return UsageError(f"{directory}: {why}", field="simulator", remedy=remedy)
