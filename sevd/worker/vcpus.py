"""The vCPUs of a worker's guest: run over one link at a time, pause when it ends, stop when the guest has ended.

    ready ── attach ──> running ── pause, the link ends ──> paused ── resume, attach ──> running
                           └── shutdown, failure, stop ──> stopped

A guest whose client, daemon or link vanishes pauses: nobody would answer it. Its open exits go to the next link.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading

from sev.abi import kvm
from sev.errors import InternalError, NotNow, SevError, UsageError, WrongState
from sev.launch.vcpu import Vcpu
from sevd.worker.conversions import Conversions
from sevd.worker.run_wire import PAUSE, RESUME, STOP, Completion
from sevd.worker.vcpu_runner import STACK_BYTES, Runner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.launch.machine import Machine
    from sev.launch.seam import Kernel
    from sevd.worker.run_link import RunLink

READY, RUNNING, PAUSED, STOPPED = "ready", "running", "paused", "stopped"

PARK_SECONDS = 30.0
"""How long a vCPU may take to leave the guest: an exit of the kernel's that cannot be interrupted may be slow."""

log = logging.getLogger(__name__)


class Vcpus:
    """All vCPUs of one machine whose launch is finished. From any thread.

    `sev.launch.vcpu.allow_interrupts` must have been called in this process.

    Attributes:
        state: READY, RUNNING, PAUSED or STOPPED.
        reason: Why it is STOPPED; empty otherwise.
        failed: It is STOPPED because it could not be run on.
    """

    def __init__(self, kernel: Kernel, machine: Machine) -> None:
        self._kernel = kernel
        self._machine = machine
        self._lock = threading.RLock()
        self._control = threading.Lock()
        self._runners: list[Runner] = []
        self._link: RunLink | None = None
        self._closed = False
        self.state = READY
        self.reason = ""
        self.failed = False

    def attach(self, link: RunLink) -> None:
        """Runs the guest over this link.

        Raises:
            NotNow: Another link runs it.
            WrongState: It has stopped, or its launch is not finished.
            KernelError: Its vCPUs cannot be run.
        """
        with self._control:
            with self._lock:
                if self._closed or self.state == STOPPED or not self._machine.finished:
                    raise self._wrong("run_guest")
                if self._link is not None:
                    raise NotNow(
                        "the guest is run by another stream", remedy="Pause it first (sev guest pause ID), or wait."
                    )
                self._prepare()
                self._link = link
            self._go()

    def detach(self, link: RunLink) -> None:
        """The link is gone: the guest pauses. Does nothing if it is not run over this link."""
        with self._control:
            with self._lock:
                if self._link is not link:
                    return
                self._link = None
            try:
                self._park()
            except SevError as error:
                log.error("%s", error.message)

    def control(self, word: int) -> None:
        """PAUSE, RESUME or STOP, as the client of the link says.

        Raises:
            UsageError: Another number.
            WrongState: It has stopped.
            NotNow: A vCPU does not leave the guest.
        """
        with self._control:
            if word not in (PAUSE, RESUME, STOP):
                raise UsageError(f"control: {word} is no RunControl", field="control")
            if word == STOP:
                self.ended("its owner stopped it", failed=False)
            elif self.state == STOPPED:
                raise self._wrong("pause_guest")
            elif word == RESUME:
                self._go()
            else:
                self._park()

    def settle(self) -> None:
        """Has KVM end what every vCPU's last exit began, so that its state can be taken. They stand still.

        Raises:
            NotNow: They run, or an exit waits for the client's answer.
        """
        with self._control:
            if self.state == RUNNING or self._link is not None:
                raise NotNow("the guest runs", remedy="Pause it first (sev guest pause ID).")
            for runner in self._runners:
                runner.settle()

    def complete(self, completions: list[Completion]) -> None:
        """Answers of the client.

        Raises:
            UsageError: No such vCPU or exit, or another number of bytes.
        """
        for one in completions:
            if one.vcpu >= len(self._runners):
                raise UsageError(f"vcpu: {one.vcpu}, expected 0 to {len(self._runners) - 1}", field="completions.vcpu")
            self._runners[one.vcpu].complete(one.sequence, one.data)

    def ended(self, reason: str, *, failed: bool) -> None:
        """The guest is STOPPED: whatever still runs of it stands still."""
        with self._lock:
            if self.state == STOPPED:
                return
            self.state, self.reason, self.failed = STOPPED, reason, failed
            for runner in self._runners:
                runner.park()
            link = self._link
        if link is not None:
            link.tell(self)

    def close(self) -> None:
        """Ends every vCPU's thread; once more does nothing. The VM may be closed afterwards.

        Raises:
            InternalError: A vCPU does not leave the guest; the process has to end without it.
        """
        with self._lock:
            self._closed = True
            link = self._link
        if link is not None:
            link.end()
        with self._control:
            for runner in self._runners:
                runner.park(end=True)
            stuck = [runner.index for runner in self._runners if not runner.close(PARK_SECONDS)]
            self._runners.clear()
        if stuck:
            raise InternalError(f"vCPUs do not leave the guest: {stuck}")

    def _prepare(self) -> None:
        if self._runners:
            return
        machine = self._machine
        with contextlib.suppress(SevError):  # without it KVM answers the hypercall with an error itself
            machine.enable(kvm.CAP_EXIT_HYPERCALL, 1 << kvm.HC_MAP_GPA_RANGE)
        conversions, size = Conversions(self._kernel, machine), machine.vcpu_mmap_size()
        made: list[Vcpu] = []
        try:
            for fd in machine.vcpu_fds:
                made.append(Vcpu(self._kernel, fd, size))
        except BaseException:
            for vcpu in made:
                vcpu.close()
            raise
        before = threading.stack_size(STACK_BYTES)
        try:
            self._runners = [Runner(index, vcpu, conversions, self) for index, vcpu in enumerate(made)]
        finally:
            threading.stack_size(before)

    def _go(self) -> None:
        with self._lock:
            link = self._link
            if link is None or self.state == STOPPED:
                return
            self.state = RUNNING
        link.tell(self)
        for runner in self._runners:
            runner.go(link)

    def _park(self) -> None:
        for runner in self._runners:
            runner.park()
        stuck = [runner.index for runner in self._runners if not runner.parked(PARK_SECONDS)]
        with self._lock:
            if self.state == STOPPED:
                return
            self.state = PAUSED
            link = self._link
        if link is not None:
            link.tell(self)
        if stuck:
            raise NotNow(
                f"vCPUs {stuck} do not leave the guest: the kernel is at work for them",
                remedy="Try again later, or delete the guest.",
                errno=errno.EBUSY,
            )

    def _wrong(self, step: str) -> WrongState:
        state = self.state if self._machine.finished else "not launched"
        why = f" ({self.reason})" if self.reason else ""
        return WrongState(
            f"{step} is not possible: the guest is {state}{why}",
            remedy="Delete the guest and launch another one." if self.state == STOPPED else "Finish its launch first.",
            metadata={"state": state.upper(), "allowed": "delete_guest" if self.state == STOPPED else "finish_launch"},
        )
