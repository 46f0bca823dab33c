"""Faults of the simulated platform, injected by hand: what they are called, and the hook that brings them about.

    SNP_LAUNCH_UPDATE:status=0x16            a status instead of the command's effect, by number or name
    SNP_LAUNCH_UPDATE:status=INVALID_PARAM:times=3:after=2
    PLATFORM_STATUS:delay=2                  the command takes two seconds longer
    *:hang                                   no answer until the fault is cleared, or the simulator ends
    SNP_COMMIT:timeout                       no answer in time: ETIMEDOUT; the processor is dead (EBUSY) from then on
    SNP_ACTIVATE:power-loss                  the power fails instead of the command
    EXT_GUEST_REQUEST:busy:times=2           the host answers a guest's request with "busy"
    dead     power-loss     clear            at once: a dead processor; a power loss; no faults any more

A fault names the firmware command that it waits for, or a pattern with `*`; the commands of the kernel's devices are
understood by their own names too (SNP_SET_CONFIG is SNP_CONFIG). GUEST_REQUEST and EXT_GUEST_REQUEST are a guest's
hypercalls, which no pattern covers. `after=N` lets N of these commands pass first, `times=N` ends the fault after N (a
power loss happens once if nothing is said). The first fault that applies to a command is the one that happens.

What the kernel makes of it is the kernel's affair (sevd.simulator.ccp): EIO with the status, ETIMEDOUT, EBUSY.
"""

from __future__ import annotations

import math
import threading
from fnmatch import fnmatchcase

from sev import status
from sev.abi.guest_device import VMM_ERROR_BUSY
from sev.errors import UsageError
from sev.records import record
from sevd.simulator.errnos import PowerLost
from sevd.simulator.firmware_status import FirmwareStatus

COMMANDS = (
    "INIT", "INIT_EX", "SHUTDOWN", "FACTORY_RESET", "PLATFORM_STATUS", "PEK_GEN", "PEK_CSR", "PEK_CERT_IMPORT",
    "PDH_CERT_EXPORT", "PDH_GEN", "DF_FLUSH", "DOWNLOAD_FIRMWARE", "GET_ID", "SNP_INIT", "SNP_SHUTDOWN",
    "SNP_PLATFORM_STATUS", "SNP_DF_FLUSH", "SNP_CONFIG", "SNP_COMMIT", "SNP_VLEK_LOAD", "SNP_DOWNLOAD_FIRMWARE_EX",
    "SNP_FEATURE_INFO",
    "SNP_GCTX_CREATE", "SNP_LAUNCH_START", "SNP_ACTIVATE", "DEACTIVATE", "SNP_LAUNCH_UPDATE", "SNP_LAUNCH_FINISH",
    "SNP_GUEST_REQUEST", "SNP_HV_REPORT_REQ", "SNP_GUEST_STATUS", "SNP_DECOMMISSION", "LAUNCH_START", "ACTIVATE",
    "DECOMMISSION", "GUEST_STATUS", "LAUNCH_UPDATE_DATA", "LAUNCH_UPDATE_VMSA", "LAUNCH_MEASURE", "LAUNCH_SECRET",
    "LAUNCH_FINISH", "ATTESTATION", "SEND_START", "SEND_UPDATE_DATA", "SEND_UPDATE_VMSA", "SEND_FINISH", "SEND_CANCEL",
    "RECEIVE_START", "RECEIVE_UPDATE_DATA", "RECEIVE_UPDATE_VMSA", "RECEIVE_FINISH", "DBG_DECRYPT", "DBG_ENCRYPT",
)  # fmt: skip
"""The firmware commands that are modelled."""

HYPERCALLS = ("GUEST_REQUEST", "EXT_GUEST_REQUEST")
"""What a guest asks of its host."""

_OTHER_NAMES = {
    "SNP_SET_CONFIG": "SNP_CONFIG",
    "SNP_INIT_EX": "SNP_INIT",
    "SNP_SHUTDOWN_EX": "SNP_SHUTDOWN",
    "GET_ID2": "GET_ID",
    "PLATFORM_RESET": "FACTORY_RESET",
    "GET_ATTESTATION_REPORT": "ATTESTATION",
}

STATUS, DELAY, HANG, TIMEOUT, BUSY, DEAD, POWER_LOSS, CLEAR = (
    "status", "delay", "hang", "timeout", "busy", "dead", "power-loss", "clear",
)  # fmt: skip
_OF_COMMANDS = (STATUS, DELAY, HANG, TIMEOUT, POWER_LOSS)
_OF_HYPERCALLS = (STATUS, DELAY, HANG, TIMEOUT, BUSY)
AT_ONCE = (DEAD, POWER_LOSS, CLEAR)
"""Faults that wait for no command."""

DELAY_MAX = 100.0
"""Seconds after which the kernel gives a command up (psp_cmd_timeout of ccp)."""

_COUNT_MAX = 1 << 31
_SPEC_MAX = 200


@record
class Fault:
    """One fault.

    Attributes:
        command: The command's name, or a pattern; empty for one that happens at once.
        action: STATUS, DELAY, HANG, TIMEOUT, BUSY, DEAD, POWER_LOSS or CLEAR.
        value: The status, or the delay in seconds.
        after: Commands to let pass first.
        times: How often it happens; 0: for as long as it is there.
    """

    command: str
    action: str
    value: float = 0
    after: int = 0
    times: int = 0

    def __str__(self) -> str:
        action = self.action
        if action == STATUS:
            action += f"=0x{int(self.value):02x}"
        elif action == DELAY:
            action += f"={self.value:g}"
        parts = [self.command, action] if self.command else [action]
        parts += [f"{name}={number}" for name, number in (("after", self.after), ("times", self.times)) if number]
        return ":".join(parts)


def parse(spec: str) -> Fault:
    """A fault by its text.

    Raises:
        UsageError: It is none; says which part is not understood, and what was expected.
    """
    if len(spec) > _SPEC_MAX:
        raise _refused(spec[:20] + "…", f"{len(spec)} characters, expected at most {_SPEC_MAX}")
    target, *parts = (part.strip() for part in spec.split(":"))
    if not parts:
        if target not in AT_ONCE:
            raise _refused(spec, f"expected COMMAND:ACTION, or one of {', '.join(AT_ONCE)}")
        return Fault("", target)
    command = target.upper()
    command = _OTHER_NAMES.get(command, command)
    hypercall = command in HYPERCALLS
    if not hypercall and not any(fnmatchcase(name, command) for name in COMMANDS):
        known = ", ".join(COMMANDS + HYPERCALLS)
        raise _refused(spec, f"no command {target!r}: expected one of {known}, or a pattern with *")
    action, value = _action(spec, parts[0], _OF_HYPERCALLS if hypercall else _OF_COMMANDS)
    counts = {"after": 0, "times": int(action == POWER_LOSS)}
    for part in parts[1:]:
        name, _, number = part.partition("=")
        if name not in counts or not (number.isascii() and number.isdigit()) or len(number) > len(str(_COUNT_MAX)):
            raise _refused(spec, f"{part!r}, expected after=N or times=N")
        counts[name] = int(number)
    return Fault(command, action, value, counts["after"], counts["times"])


def _action(spec: str, text: str, known: tuple[str, ...]) -> tuple[str, float]:
    action, equals, value = text.partition("=")
    if action not in known or bool(equals) != (action in (STATUS, DELAY)):
        raise _refused(spec, f"{text!r}, expected status=S, delay=SECONDS, {', '.join(known[2:])}")
    if action == STATUS:
        code = status.find(value).code
        if not 0 < code <= 0xFFFF:
            raise _refused(spec, f"status 0x{code:x}, expected 1 to 0xffff")
        return action, code
    if action == DELAY:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= DELAY_MAX:
            raise _refused(
                spec, f"delay of {value!r}, expected 0 to {DELAY_MAX:g} seconds: then the kernel gives up (timeout)"
            )
        return action, seconds
    return action, 0


def _refused(spec: str, why: str) -> UsageError:
    return UsageError(f"fault {spec!r}: {why}", field="fault", remedy="Such as SNP_LAUNCH_UPDATE:status=0x16:times=3.")


class _Armed:
    """A fault that is there: how many of its commands came, and how often it happened."""

    __slots__ = ("fault", "happened", "passed")

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.passed = 0
        self.happened = 0

    def takes(self, command: str) -> bool:
        """Whether it happens to this command, which is counted."""
        wanted = self.fault.command
        if self.spent or not (command == wanted or (command in COMMANDS and fnmatchcase(command, wanted))):
            return False
        self.passed += 1
        if self.passed <= self.fault.after:
            return False
        self.happened += 1
        return True

    @property
    def spent(self) -> bool:
        return bool(self.fault.times) and self.happened >= self.fault.times


class Faults:
    """The hook for the firmware (`Firmware.faults`). Safe for use from several threads.

    Args:
        faults: Those that are there from the beginning; none that happen at once.
    """

    def __init__(self, faults: tuple[Fault, ...] = ()) -> None:
        self._armed: list[_Armed] = []
        self._lock = threading.Lock()
        self._cleared = threading.Event()
        self._closed = False
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """From now on it happens. Raises UsageError for a fault that waits for no command."""
        if not fault.command:
            raise UsageError(f"fault {fault}: it does not wait for a command", field="fault")
        with self._lock:
            self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """No faults any more; commands that hang or wait go on."""
        with self._lock:
            self._armed.clear()
            cleared, self._cleared = self._cleared, threading.Event()
        cleared.set()

    def close(self) -> None:
        """The simulator ends: nothing waits any more; commands that hang time out."""
        self._closed = True
        self.clear()

    def armed(self) -> list[tuple[Fault, int]]:
        """The faults that can still happen, in order, each with how often it happened."""
        with self._lock:
            return [(one.fault, one.happened) for one in self._armed if not one.spent]

    def __call__(self, command: str) -> None:
        """A command is about to run.

        Raises:
            FirmwareStatus: It is refused instead.
            TimeoutError: It is not answered.
            PowerLost: The power fails.
            HostRefused: A hypercall is answered with "busy".
        """
        with self._lock:
            cleared = self._cleared
            fault = next((one.fault for one in self._armed if one.takes(command)), None)
        if fault is None or self._closed:
            return
        if fault.action == STATUS:
            raise FirmwareStatus(int(fault.value))
        if fault.action == TIMEOUT:
            raise TimeoutError(f"{command}: not answered (injected)")
        if fault.action == POWER_LOSS:
            raise PowerLost
        if fault.action == BUSY:
            from sevd.simulator.guest_host import HostRefused

            raise HostRefused(VMM_ERROR_BUSY)
        cleared.wait(fault.value if fault.action == DELAY else None)
        if fault.action == HANG and self._closed:
            raise TimeoutError(f"{command}: not answered until the end (injected)")
