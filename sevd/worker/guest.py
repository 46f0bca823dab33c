"""The guest of this worker: the steps of its launch as the daemon asks for them, and how far it is.

What the daemon is told, it is told again when it starts anew: the worker alone knows what was done for certain.
"""

from __future__ import annotations

import contextlib
import json
import os

from sev.errors import MalformedInput, NotOffered, SevError, WrongState
from sevd.guests.machine import Finish, KeyRequest, Machine, accepted_bytes
from sevd.guests.memory import Intervals
from sevd.guests.model import PAGE, GuestState, GuestType
from sevd.guests.port import Progress
from sevd.worker import notes, wire
from sevd.worker.travel import TravelSteps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sev.launch.seam import Kernel
    from sevd.guests.machine import SimulatedView
    from sevd.guests.port import Card
    from sevd.worker.vcpus import Vcpus

    Answer = tuple[dict[str, object], tuple[int, ...]]

CARD = "guest.json"
"""The file in the worker's folder that tells whose guest this is, once there is one."""

DEBUG_BYTES = 32 << 10
"""Bytes of guest memory in one answer."""

TAKEN_RUNS = 2000
"""Address ranges in one answer."""


class WorkerGuest:
    """One guest.

    Args:
        kernel: Answers the kernel for a type of guest, and the model's view where it is one.
        sev_path: The SEV device.
        kvm_path: The KVM device.

    Attributes:
        card: Whose guest it is; None before it was created.
        machine: Its machine.
        state: How far its launch is.
        vcpus: Its vCPUs, which know how it runs; None before it was created.
    """

    def __init__(
        self, kernel: Callable[[GuestType], tuple[Kernel, SimulatedView | None]], *, sev_path: str, kvm_path: str
    ) -> None:
        self._make_kernel = kernel
        self._paths = (sev_path, kvm_path)
        self.card: Card | None = None
        self.kernel: Kernel | None = None
        self.machine: Machine | None = None
        self.state = GuestState.CREATED
        self.vcpus: Vcpus | None = None
        self._memory: Answer = {}, ()
        self._policy = 0
        self._digest = b""
        self._measurement = b""
        self._failure = ""
        self._pages = 0
        self._taken = Intervals()
        self._travel = TravelSteps(lambda: self._living().travel, self._settle)

    def create(self, card: Card) -> Answer:
        """Makes the machine; answers its ASID and its memory."""
        if self.machine is not None:
            raise WrongState("this worker has its guest", metadata={"state": self.state.name, "allowed": "end"})
        sev_path, kvm_path = self._paths
        self.kernel, observer = kernel, _ = self._make_kernel(card.request.type)
        machine = Machine(lambda: kernel, observer, sev_path=sev_path, kvm_path=kvm_path)
        machine.create(card)
        fd, layout = machine.share()
        # Kept: a machine whose launch has failed tells nothing any more, and its memory is there all the same.
        self._memory = {"asid": machine.asid, "layout": [list(piece) for piece in layout]}, (fd,)
        self.machine, self.card = machine, card
        return self._memory

    def write_card(self, folder: int) -> None:
        """Says in the folder (a descriptor of it) that there is a guest now, whole or not at all."""
        assert self.card is not None
        document = {**notes.card_document(self.card), "pid": os.getpid(), "boot": boot_id()}
        fd = os.open(f"{CARD}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            os.write(fd, json.dumps(document).encode())
        finally:
            os.close(fd)
        os.rename(f"{CARD}.new", CARD, src_dir_fd=folder, dst_dir_fd=folder)

    def memory(self) -> Answer:
        """ASID, the memfd and what lies where in it."""
        self._living()
        return self._memory

    def step(self, name: str, message: dict[str, object], fds: Sequence[int] = ()) -> Answer:
        """One step of the launch, or a question. The descriptors that came with it stay the caller's.

        Raises:
            MalformedInput: There is no such step, or it lacks something.
            SevError: Refused.
        """
        steps: dict[str, Callable[[dict[str, object]], Answer]] = {
            "memory": lambda _: self.memory(),
            "start": self._start,
            "update": self._update,
            "measure": self._measure,
            "secret": self._secret,
            "finish": self._finish,
            "attestation": self._attestation,
            "debug-read": self._debug_read,
            "debug-write": self._debug_write,
            "travel": lambda asked: self._go(asked, fds),
            "report": self._report,
            "key": self._key,
            "describe": self._describe,
            "taken": self._taken_runs,
        }
        if name not in steps:
            raise MalformedInput(f"op: {name!r:.40}, expected one of {', '.join(steps)}", field="op")
        return steps[name](message)

    def progress(self) -> Progress:
        """How far it is, without the ranges that were taken."""
        state, failure = self.state, self._failure
        if self.vcpus is not None and state is GuestState.READY:
            state, failure = GuestState[self.vcpus.state.upper()], self.vcpus.reason
        return Progress(state, self._policy, self._digest, failure, self._pages, measurement=self._measurement)

    def close(self) -> None:
        """Ends the machine."""
        machine, self.machine = self.machine, None
        if machine is not None:
            machine.close()

    def _start(self, message: dict[str, object]) -> Answer:
        policy = wire.whole(message, "policy")
        session = wire.octets(message, "certificate"), wire.octets(message, "session")
        self._living().start(policy, wire.octets(message, "gosvw"), *session)
        self._policy, self.state = policy, GuestState.LAUNCHING
        return {}, ()

    def _update(self, message: dict[str, object]) -> Answer:
        gpa, size, page_type = (wire.whole(message, name) for name in ("gpa", "size", "page_type"))
        done = 0
        try:
            self._living().update(gpa, size, page_type)
            done = size
        except SevError as error:
            done = accepted_bytes(error)
            raise
        finally:
            self._pages += -(-done // PAGE)
            self._taken.add(gpa, gpa + done)
        return {}, ()

    def _measure(self, message: dict[str, object]) -> Answer:
        del message
        with self._final():
            measured = self._living().measure()
        self._measurement, self._digest = measured
        self.state = GuestState.MEASURED
        return {"measurement": self._measurement.hex(), "digest": self._digest.hex()}, ()

    def _secret(self, message: dict[str, object]) -> Answer:
        gpa, payload = wire.whole(message, "gpa"), wire.octets(message, "payload")
        self._living().secret(gpa, wire.octets(message, "header"), payload)
        self._taken.add(gpa, gpa + len(payload))
        return {}, ()

    def _attestation(self, message: dict[str, object]) -> Answer:
        return {"report": self._living().attestation(wire.octets(message, "mnonce")).hex()}, ()

    def _debug_read(self, message: dict[str, object]) -> Answer:
        size = wire.whole(message, "size")
        if size > DEBUG_BYTES:
            raise MalformedInput(f"size: {size} bytes, expected at most {DEBUG_BYTES}", field="size")
        return {"data": self._living().debug_read(wire.whole(message, "gpa"), size).hex()}, ()

    def _debug_write(self, message: dict[str, object]) -> Answer:
        self._living().debug_write(wire.whole(message, "gpa"), wire.octets(message, "data"))
        return {}, ()

    def _finish(self, message: dict[str, object]) -> Answer:
        finish = Finish(
            wire.octets(message, "id_block"),
            wire.octets(message, "id_auth"),
            message.get("author_key_enabled") is True,
            message.get("vcek_disabled") is True,
            wire.octets(message, "host_data"),
        )
        with self._final():
            self._digest = self._living().finish(finish) or self._digest
        self.state = GuestState.READY
        return {"digest": self._digest.hex()}, ()

    def _report(self, message: dict[str, object]) -> Answer:
        vmpl, selection = wire.whole(message, "vmpl"), wire.whole(message, "key_selection")
        report = self._living().report(wire.octets(message, "report_data"), vmpl, selection)
        return {"report": report.hex()}, ()

    def _key(self, message: dict[str, object]) -> Answer:
        request = KeyRequest(*(wire.whole(message, name) for name in KeyRequest._fields))
        return {"key": self._living().key(request).hex()}, ()

    def _describe(self, message: dict[str, object]) -> Answer:
        del message
        self._living()
        assert self.card is not None
        card = notes.card_document(self.card)
        return {"card": card, "progress": notes.progress_document(self.progress()), "pid": os.getpid()}, ()

    def _taken_runs(self, message: dict[str, object]) -> Answer:
        """Address ranges that updates took, from an address on, so many as fit in an answer."""
        runs = self._taken.runs(wire.whole(message, "from"), TAKEN_RUNS)
        return {"runs": [list(run) for run in runs], "more": len(runs) == TAKEN_RUNS}, ()

    def _go(self, message: dict[str, object], fds: Sequence[int]) -> Answer:
        """A step of a guest that leaves, or comes."""
        word = wire.text(message, "word")
        try:
            answer, state = self._travel.step(word, message, fds)
        except SevError as error:
            if word == "finish-receiving" and self.state is GuestState.RECEIVING:
                self.state, self._failure = GuestState.FAILED, error.message
            raise
        self.state = state or self.state
        if state is GuestState.RECEIVING:
            self._policy = wire.whole(message, "policy")
        return answer, ()

    def _settle(self) -> None:
        if self.vcpus is not None:
            self.vcpus.settle()

    @contextlib.contextmanager
    def _final(self) -> Iterator[None]:
        """A step that is made once: a launch that it fails has failed for good."""
        try:
            yield
        except SevError as error:
            if self.state is GuestState.LAUNCHING:
                self.state, self._failure = GuestState.FAILED, error.message
            raise

    def _living(self) -> Machine:
        if self.machine is None:
            raise NotOffered("this worker has no guest")
        return self.machine


def boot_id() -> str:
    """This boot of the machine; empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return ""
