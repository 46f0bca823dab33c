"""Whether this is an SEV-SNP guest that can ask for reports, looked at check by check; what `sev attest check` shows.

A machine is able if it has a way to the firmware that can be used, `/dev/sev-guest` or configfs-tsm, and SEV_STATUS,
where it can be read, does not deny SEV-SNP. (Neither way exists outside an SNP guest. CPUID is what a hypervisor makes
of it: it adds reasons and decides nothing.)
"""

from __future__ import annotations

import errno
import os

from sev.errors import DeviceMissing, SevError
from sev.guest import device as sev_guest
from sev.guest import sev_status
from sev.guest import tsm as configfs
from sev.guest.levels import VMPL_PATH
from sev.host.machine import Machine
from sev.host.result import FAILED, PASSED, NotSeen, Outcome, failed, passed, skipped
from sev.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.host.reader import Reader

SNP, ES, PLAIN_SEV, VIRTUAL, BARE, UNKNOWN = "sev-snp", "sev-es", "sev", "virtual-machine", "bare-metal", "unknown"
"""Kinds of machine."""

GROUPS = ("processor", "status", "features", "interfaces", "request")

_SUMMARIES = {
    ES: "This is an SEV-ES guest: it cannot ask for reports. Its owner measured its launch from outside.",
    PLAIN_SEV: "This is an SEV guest: it cannot ask for reports. Its owner measured its launch from outside.",
    VIRTUAL: "This is a virtual machine, but no SEV guest: its memory is open to its host.",
    BARE: "This is no virtual machine. Whether it can run SEV guests says: sev host check",
    UNKNOWN: "Nothing here tells an SEV guest.",
}

_GUEST_ONLY = "Start the guest as an SEV-SNP guest; inside, nothing can be done about it."
_DRIVER = "In an SEV-SNP guest, load the driver: modprobe sev-guest. In a container, pass the device in."
_CONFIGFS = (
    "In an SEV-SNP guest, mount configfs (mount -t configfs none /sys/kernel/config) and load the drivers: modprobe "
    "tsm_report, modprobe sev-guest; Linux 6.7 or newer."
)
_MICROSOFT = "Microsoft Hv"
_AZURE = (
    "On Azure a paravisor keeps the device to itself; the report lies in the vTPM (NV index 0x01400001), and "
    "sev report verify reads that form."
)


@record
class GuestCheckResult:
    """One check with its outcome.

    Attributes:
        id: Stable identifier, such as "status.sev-snp".
        group: One of GROUPS.
        title: A few words for people.
        result: "passed", "failed" or "skipped".
        reason: What was seen.
        remedy: What to do; empty where nothing is to be done.
    """

    id: str
    group: str
    title: str
    result: str
    reason: str
    remedy: str

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "id": self.id, "group": self.group, "title": self.title, "result": self.result, "reason": self.reason,
            "remedy": self.remedy,
        }  # fmt: skip


@record
class GuestCheck:
    """A machine, looked at from inside.

    Attributes:
        able: It can ask for reports.
        kind: One of the kinds above.
        summary: One sentence.
        checks: In order.
    """

    able: bool
    kind: str
    summary: str
    checks: tuple[GuestCheckResult, ...]

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev attest check --json` prints it."""
        return {
            "able": self.able,
            "kind": self.kind,
            "summary": self.summary,
            "checks": [check.document() for check in self.checks],
        }


def check_guest(
    reader: Reader,
    *,
    device: str = sev_guest.PATH,
    tsm: str = configfs.PATH,
    provider: Callable[[], str] | None = None,
    probe: Callable[[], None] | None = None,
    request: Callable[[], str] | None = None,
) -> GuestCheck:
    """Looks at this machine.

    Args:
        reader: The machine.
        device: The device.
        tsm: The folder of configfs-tsm.
        provider: Tells who makes reports there; by default an entry is made, read and removed.
        probe: Raises SevError if the device, which can be opened, is another kind of file; None: it is believed.
        request: Asks for a report and says in a few words what came; None: none is asked for. Raises SevError.
    """
    look = _Look(Machine(reader), device, tsm, provider or configfs.ConfigfsTsm(tsm).provider, probe)
    look.processor()
    look.status()
    look.interfaces()
    if request is not None:
        look.request(request)
    return look.verdict()


class _Look:
    """One look at one machine."""

    def __init__(
        self,
        machine: Machine,
        device: str,
        tsm: str,
        provider: Callable[[], str],
        probe: Callable[[], None] | None,
    ) -> None:
        self._machine = machine
        self._device = device
        self._tsm = tsm
        self._provider = provider
        self._probe = probe
        self._results: dict[str, GuestCheckResult] = {}
        self._bits: int | None = None

    def processor(self) -> None:
        """What CPUID says."""
        machine = self._machine
        self._check("cpu.vendor", "processor", "AMD processor", self._vendor)
        self._check("cpu.hypervisor", "processor", "virtual machine", self._hypervisor)
        for bit, word, flag in ((1, "SEV", "sev"), (3, "SEV-ES", "sev_es"), (4, "SEV-SNP", "sev_snp")):

            def feature(bit: int = bit, word: str = word, flag: str = flag) -> Outcome:
                for before in ("cpu.vendor", "cpu.sev"):
                    if self._failed(before):
                        return skipped(f"not looked at: {before} failed")
                if machine.sev_bit(bit, flag):
                    return passed(f"CPUID 0x8000001F EAX bit {bit} is set")
                return failed(f"CPUID shows no {word} (0x8000001F EAX bit {bit} is 0)", _GUEST_ONLY)

            self._check(f"cpu.{word.lower()}", "processor", word, feature)

    def status(self) -> None:
        """What SEV_STATUS says."""

        def read() -> Outcome:
            if self._failed("cpu.vendor"):
                return skipped("not looked at: cpu.vendor failed")
            if self._failed("cpu.sev") and self._failed("cpu.hypervisor"):
                return skipped("not looked at: there is no such register without SEV")
            self._bits = self._machine.msr(sev_status.SEV_STATUS, "SEV_STATUS")
            return passed(f"0x{self._bits:x}")

        self._check("status.readable", "status", "SEV_STATUS register", read)
        names = ((sev_status.SEV, "SEV"), (sev_status.SEV_ES, "SEV-ES"), (sev_status.SEV_SNP, "SEV-SNP"))
        for bit, word in names:
            self._check(f"status.{word.lower()}", "status", f"{word} active", self._bit(bit, word))
        for bit, name, words in sev_status.FEATURES:
            self._check(f"feature.{name}", "features", words, self._feature(bit))

    def interfaces(self) -> None:
        """The ways to the firmware."""
        self._check("kernel.vmpl", "interfaces", "privilege level", self._level)
        self._check("device.sev-guest", "interfaces", self._device, self._open)
        self._check("configfs.tsm", "interfaces", self._tsm, self._reports)

    def request(self, ask: Callable[[], str]) -> None:
        """One report, really asked for."""

        def asked() -> Outcome:
            if not self._usable():
                return skipped("not asked for: there is no way to the firmware")
            try:
                return passed(ask())
            except SevError as error:
                return failed(error.message, error.remedy)

        self._check("request.report", "request", "a report", asked)

    def verdict(self) -> GuestCheck:
        """What it adds up to."""
        ways = [name for name, check in (
            ("configfs-tsm", "configfs.tsm"), ("/dev/sev-guest", "device.sev-guest"),
        ) if self._passed(check)]  # fmt: skip
        denied = self._bits is not None and not self._bits >> sev_status.SEV_SNP & 1
        able = bool(ways) and not denied and not self._failed("request.report")
        kind = self._kind(bool(ways))
        if able:
            summary = f"This SEV-SNP guest can ask for reports: through {' and '.join(ways)}."
        elif kind == SNP:
            summary = "This is an SEV-SNP guest, but it cannot ask for reports; see what failed."
        else:
            summary = _SUMMARIES[kind]
        return GuestCheck(able, kind, summary, tuple(self._results.values()))

    def _kind(self, reachable: bool) -> str:
        bits = self._bits
        if bits is not None and bits & 0x7:
            return SNP if bits >> sev_status.SEV_SNP & 1 else ES if bits >> sev_status.SEV_ES & 1 else PLAIN_SEV
        if bits is None and (reachable or self._passed("kernel.vmpl")):
            return SNP
        if self._passed("cpu.hypervisor"):
            return VIRTUAL
        return BARE if self._failed("cpu.hypervisor") else UNKNOWN

    def _vendor(self) -> Outcome:
        vendor = self._machine.vendor
        if vendor == "AuthenticAMD":
            return passed(vendor)
        return failed(f"the processor is not AMD's ({vendor or 'unknown vendor'})", _GUEST_ONLY)

    def _hypervisor(self) -> Outcome:
        if not self._machine.virtual:
            return failed("no hypervisor shows itself: this is no virtual machine", "Run this inside a guest.")
        name = self._hypervisor_name()
        return passed(f"under {name}" if name else "a hypervisor shows itself")

    def _hypervisor_name(self) -> str:
        try:
            _, ebx, ecx, edx = self._machine.cpuid(0x4000_0000)
        except NotSeen:
            return ""
        data = b"".join(word.to_bytes(4, "little") for word in (ebx, ecx, edx)).rstrip(b"\0")
        return "".join(chr(byte) for byte in data if 0x20 <= byte < 0x7F)

    def _bit(self, bit: int, word: str) -> Callable[[], Outcome]:
        def look() -> Outcome:
            if self._bits is None:
                return skipped("not looked at: SEV_STATUS was not read", "See status.readable.")
            if self._bits >> bit & 1:
                return passed(f"SEV_STATUS bit {bit} is set")
            return failed(f"{word} is not active (SEV_STATUS bit {bit} is 0)", _GUEST_ONLY)

        return look

    def _feature(self, bit: int) -> Callable[[], Outcome]:
        def look() -> Outcome:
            if self._bits is None or not self._passed("status.sev-snp"):
                return skipped("not looked at: SEV-SNP is not known to be active")
            if self._bits >> bit & 1:
                return passed(f"on (SEV_STATUS bit {bit})")
            return skipped(f"off (SEV_STATUS bit {bit}); a guest may do without it")

        return look

    def _level(self) -> Outcome:
        text = self._machine.text(VMPL_PATH, 16)
        if text is None:
            return skipped(
                f"there is no {VMPL_PATH}: no SEV-SNP guest, or a kernel before 6.10", "The level is taken to be 0."
            )
        return passed(f"VMPL {text}" + ("" if text == "0" else ": an SVSM or a paravisor is below this kernel"))

    def _open(self) -> Outcome:
        number = self._machine.opened(self._device, write=False)
        if not number:
            try:
                if self._probe is not None:
                    self._probe()
            except SevError as error:
                return failed(error.message, _DRIVER)
            return passed("can be opened")
        why = os.strerror(number)
        if number in (errno.EACCES, errno.EPERM):
            return failed(f"it may not be opened by this user: {why}", "Run as root.")
        return failed(f"it cannot be opened: {why}", _AZURE if self._on_azure() else _DRIVER)

    def _reports(self) -> Outcome:
        try:
            provider = self._provider()
        except DeviceMissing as error:
            return failed(error.message, _CONFIGFS)
        except SevError as error:
            return failed(error.message, error.remedy)
        if provider != configfs.PROVIDER:
            return failed(f"reports are made by {provider!r}", "This is no SEV-SNP guest; use the tools of its kind.")
        return passed(f"reports are made by {provider}")

    def _on_azure(self) -> bool:
        return self._hypervisor_name() == _MICROSOFT

    def _usable(self) -> bool:
        return self._passed("device.sev-guest") or self._passed("configfs.tsm")

    def _passed(self, identifier: str) -> bool:
        return identifier in self._results and self._results[identifier].result == PASSED

    def _failed(self, identifier: str) -> bool:
        return identifier in self._results and self._results[identifier].result == FAILED

    def _check(self, identifier: str, group: str, title: str, look: Callable[[], Outcome]) -> None:
        try:
            seen = look()
        except NotSeen as why:
            seen = skipped(why.reason, why.remedy)
        self._results[identifier] = GuestCheckResult(identifier, group, title, seen.result, seen.reason, seen.remedy)
