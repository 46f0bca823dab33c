"""What the daemon stands on, real or simulated, as one value: everything above is built from it and cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sev.records import record

if TYPE_CHECKING:
    from sev.certs import Roots
    from sev.host.reader import Reader
    from sev.launch.seam import Kernel
    from sevd.devices.facts import HostFacts
    from sevd.guests.port import Machines


PLATFORM_SERVICES = ("SnpPlatformService", "SevPlatformService")
"""Services that ask /dev/sev alone."""


@record
class HostParts:
    """A host.

    Attributes:
        facts: What the machine says about itself.
        simulated: It is a model.
        platform_kernel: The kernel for platform commands; None where there is no SEV device.
        machines: Where guests' machines come from; None where no guest of any kind can be created.
        asids: (total, in use) of "sev" and "sev_es" ASIDs.
        asids_age: Seconds for which `asids` stays true; None where only this daemon changes them.
        missing: What is missing, one sentence each; empty on a host that is ready.
        sev_path: The SEV device.
        kvm_path: The KVM device.
        plain: Plain guests are admitted, and can be had.
        committed_tcb: The committed TCB as a raw integer, where it can be known.
        endorsements: Certificates in DER by kind, where the host itself has them.
        sev_certificates: What vouches for the chip in SEV's own form, where the host itself has it: the signed CEK
            ("cek", 2084 bytes), and ASK and ARK in a row ("authorities").
        roots: The roots that its certificates end in. Loaded when asked for.
        reader: Makes a reader of the host, for its checks; None: this machine's, with the devices above.
        present: Whether the SEV device can be opened now; it may appear later.
        may_go: What is there now may go away: another process serves it.
        look: Reads `facts` anew, after something appeared; None where nothing can.
        firmware_update: Has another firmware run (version, TCB as text or "", commit); only a simulated host can.
        close: Ends it.
    """

    facts: HostFacts
    simulated: bool
    platform_kernel: Kernel | None
    machines: Machines | None
    asids: Callable[[], Mapping[str, tuple[int, int]]]
    roots: Callable[[], Roots]
    asids_age: float | None = None
    missing: Sequence[str] = ()
    sev_path: str = "/dev/sev"
    kvm_path: str = "/dev/kvm"
    plain: bool = False
    committed_tcb: Callable[[], int | None] = lambda: None
    endorsements: Callable[[], Mapping[str, bytes]] | None = None
    sev_certificates: Callable[[], Mapping[str, bytes]] | None = None
    reader: Callable[[], Reader] | None = None
    present: Callable[[], bool] = lambda: True
    may_go: bool = False
    look: Callable[[], HostFacts] | None = None
    firmware_update: Callable[[str, str, bool], None] | None = None
    close: Callable[[], None] = lambda: None

    def host_reader(self) -> Reader:
        """A reader of the host, for its checks."""
        from sev.host.linux import LinuxReader

        return self.reader() if self.reader else LinuxReader(sev_path=self.sev_path, kvm_path=self.kvm_path)

    def missing_for(self, service: str) -> Sequence[str]:
        """What is missing for the device calls of a service: platform commands do without KVM."""
        if service in PLATFORM_SERVICES and self.platform_kernel is not None and self.present():
            return ()
        if service == "GuestService" and self.plain:
            return ()  # what a guest of another type lacks is said when one is asked for
        return self.missing
