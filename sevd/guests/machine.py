"""The machine of one hosted guest in this process: the launch driver, the kernel it stands on, the launch digest.

The daemon uses it with a simulated process; a worker, which has no other task, with the real kernel.

Everything here blocks and runs on the device worker, `memory` excepted. A machine that could not be created, and one
that was closed, holds nothing: no descriptor, no ASID, no memory.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sev.errors import NotOffered, SevError
from sev.launch.plain import Plain
from sev.launch.snp import Snp
from sevd.guests.model import LEGACY, GuestType, PageType
from sevd.guests.port import Found, GuestMachine, Piece, SharedMemory
from sevd.guests.sev_launch import Measured, SevLaunch, no_such_step

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Iterator

    from sev.launch.machine import Machine as LaunchMachine
    from sev.launch.seam import Kernel
    from sev.launch.sev import Sev
    from sevd.guests.digest import LaunchDigest
    from sevd.guests.model import CreateGuest
    from sevd.guests.port import Card
    from sevd.guests.sev_travel import SevTravel


class KeyRequest(NamedTuple):
    """MSG_KEY_REQ as a guest would send it (SEV-SNP firmware ABI, guest messages).

    Attributes:
        root_key: 0: VCEK or VLEK, 1: VMRK.
        key_selection: 0: VLEK if one is loaded, else VCEK; 1: VCEK; 2: VLEK.
        guest_field_select: Bits 0 to 6.
        vmpl: 0 to 3.
        guest_svn: Mixed in if selected.
        tcb_version: Mixed in if selected: the raw integer.
    """

    root_key: int = 0
    key_selection: int = 0
    guest_field_select: int = 0
    vmpl: int = 0
    guest_svn: int = 0
    tcb_version: int = 0


class SimulatedView(Protocol):
    """What only the model of a platform can tell about, or ask for, a guest."""

    def launch_digest(self, process: Kernel, vm_fd: int) -> bytes:
        """The firmware's own launch digest, 48 bytes; 32 of an SEV or SEV-ES guest."""

    def guest_report(self, process: Kernel, vm_fd: int, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
        """A report as the guest would get it, 1184 bytes. Raises FirmwareError."""

    def guest_key(self, process: Kernel, vm_fd: int, request: KeyRequest) -> bytes:
        """A derived key as the guest would get it, 32 bytes. Raises FirmwareError."""


class Start(NamedTuple):
    """What LAUNCH_START is given; lengths were checked.

    Attributes:
        policy: Guest policy.
        gosvw: Guest OS visible workarounds of an SNP guest, 16 bytes.
        certificate: The owner's ECDH certificate of an SEV or SEV-ES guest, 2084 bytes; empty: it has no owner.
        session: The owner's launch blob, 128 bytes, with a certificate.
    """

    policy: int
    gosvw: bytes = bytes(16)
    certificate: bytes = b""
    session: bytes = b""


class Finish(NamedTuple):
    """What LAUNCH_FINISH is given; lengths were checked.

    Attributes:
        id_block: 96 bytes, or empty for none.
        id_auth: 4096 bytes with an ID block, else empty.
        author_key_enabled: `id_auth` holds an author key too.
        vcek_disabled: The VCEK may not sign for this guest.
        host_data: 32 bytes.
    """

    id_block: bytes
    id_auth: bytes
    author_key_enabled: bool
    vcek_disabled: bool
    host_data: bytes


class Machine:
    """One VM under launch (sevd.guests.port.GuestMachine).

    Args:
        process: Makes the process that the VM belongs to; `close` ends it.
        observer: The model's view on a simulated platform; None on a real one.
        sev_path: The SEV device.
        kvm_path: The KVM device.
    """

    def __init__(
        self,
        process: Callable[[], Kernel],
        observer: SimulatedView | None,
        *,
        sev_path: str = "/dev/sev",
        kvm_path: str = "/dev/kvm",
    ) -> None:
        self._observer = observer
        self._make_process = process
        self._made: Kernel | None = None
        self._sev_path = sev_path
        self._kvm_path = kvm_path
        self._digest: LaunchDigest | None = None
        self._driver: Snp | Plain | Sev | None = None
        self._launch: SevLaunch | None = None
        self._kind = GuestType.UNSPECIFIED

    @property
    def _vm(self) -> Snp | Plain | Sev:
        assert self._driver is not None, "create comes first"
        return self._driver

    @property
    def _process(self) -> Kernel:
        assert self._made is not None, "create comes first"
        return self._made

    @property
    def vm(self) -> LaunchMachine:
        """The VM itself: its descriptors and memory. Raises WrongState where there is none."""
        return self._vm.machine

    def create(self, card: Card) -> None:
        """Makes the VM with its memory and vCPUs. Whatever fails, nothing is left behind."""
        request = card.request
        self._made = self._make_process()
        self._kind = request.type
        plain = request.type == GuestType.PLAIN
        try:
            self._driver = self._make_driver(request)
            self._driver.create(
                request.memory_bytes,
                request.firmware_bytes,
                request.vcpu_count,
                request.cpuid_signature,
                request.ap_reset_address,
                request.vmsa_features,
            )
        except BaseException:
            self.close()
            raise
        if plain:
            self._observer = None
            return
        if self._launch is not None:
            self.vm.on_conversion = self._launch.travel.take
        name = getattr(self._observer, "name", None)
        if name is not None:
            with contextlib.suppress(SevError):  # another owner's guest has it: then the model gives one of its own
                name(self._process, self._driver.vm_fd, card.guest_id)
        if self._observer is None and request.type not in LEGACY:
            from sevd.guests.digest import LaunchDigest  # a simulated platform tells its digest itself

            self._digest = LaunchDigest(request)

    @property
    def asid(self) -> int:
        """The ASID where the platform is a model that tells it; 0 elsewhere: KVM tells nobody."""
        tell = getattr(self._observer, "asid", None)
        return int(tell(self._process, self._vm.vm_fd)) if tell is not None else 0

    def memory(self, gpa: int, size: int) -> memoryview:
        """The writable bytes of an address range that no update took yet. From any thread."""
        return self._vm.memory(gpa, size)

    def share(self) -> SharedMemory:
        """The guest's memfd and what lies where in it."""
        memory = self.vm.guest_memory
        assert memory is not None, "a machine that was created has memory"
        return SharedMemory(memory.fd, tuple(Piece(one.gpa, one.size, one.offset) for one in memory.ranges))

    def start(self, policy: int, gosvw: bytes, certificate: bytes = b"", session: bytes = b"") -> None:
        """SNP_LAUNCH_START, or LAUNCH_START with the owner's certificate and launch blob; nothing of a plain guest."""
        if self._launch is not None:
            self._launch.driver.start(policy, certificate, session)
        else:
            self._snp_or_plain().start(policy, gosvw)

    def update(self, gpa: int, size: int, page_type: int) -> None:
        """SNP_LAUNCH_UPDATE of whole pages of one type; of SEV and SEV-ES guests LAUNCH_UPDATE_DATA of a run."""
        if self._launch is not None:
            self._launch.update(gpa, size)
            return
        done = 0
        try:
            self._snp_or_plain().update(gpa, size, page_type)
            done = size
        except SevError as error:
            done = accepted_bytes(error)
            raise
        finally:
            if self._digest is not None and done:
                self._reckon(gpa, done, page_type)

    def measure(self) -> Measured:
        """LAUNCH_MEASURE, and LAUNCH_UPDATE_VMSA before. Raises NotOffered for other types."""
        measured = self._legacy("measure_guest").measure()
        if self._observer is not None:
            return measured._replace(digest=self._observer.launch_digest(self._process, self._vm.vm_fd))
        return measured

    def secret(self, gpa: int, header: bytes, payload: bytes) -> None:
        """LAUNCH_SECRET. Raises NotOffered for other types."""
        launch = self._legacy("inject_secret")
        launch.driver.secret(gpa, header, payload)
        launch.travel.take(gpa, len(payload))

    @property
    def travel(self) -> SevTravel:
        """The guest's way to another host, or from one. Raises NotOffered for other types than SEV."""
        if self._kind != GuestType.SEV:
            no_such_step(self._kind, "start_sending")
        return self._legacy("start_sending").travel

    def attestation(self, mnonce: bytes) -> bytes:
        """GET_ATTESTATION_REPORT, 208 bytes. Raises NotOffered for other types."""
        return self._legacy("attestation_report").driver.attestation(mnonce)

    def debug_read(self, gpa: int, size: int) -> bytes:
        """DBG_DECRYPT. Raises NotOffered for other types."""
        return self._legacy("read_guest_memory").driver.debug_read(gpa, size)

    def debug_write(self, gpa: int, data: bytes) -> None:
        """DBG_ENCRYPT. Raises NotOffered for other types."""
        launch = self._legacy("write_guest_memory")
        launch.driver.debug_write(gpa, data)
        launch.travel.take(gpa, len(data))

    def finish(self, finish: Finish) -> bytes:
        """SNP_LAUNCH_FINISH; answers the launch digest, 48 bytes, or nothing for a plain guest.

        Of SEV and SEV-ES guests LAUNCH_FINISH, which answers nothing: the digest was told by the measurement.
        """
        if self._launch is not None:
            self._launch.driver.finish()
            return b""
        self._snp_or_plain().finish(
            finish.id_block,
            finish.id_auth,
            finish.author_key_enabled,
            finish.vcek_disabled,
            finish.host_data,
        )
        if self._observer is not None:
            return self._observer.launch_digest(self._process, self._vm.vm_fd)
        return self._digest.finish() if self._digest is not None else b""

    def report(self, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
        """Plays the guest: MSG_REPORT_REQ. Raises NotOffered on a real platform."""
        return self._player().guest_report(self._process, self._vm.vm_fd, report_data, vmpl, key_selection)

    def key(self, request: KeyRequest) -> bytes:
        """Plays the guest: MSG_KEY_REQ. Raises NotOffered on a real platform."""
        return self._player().guest_key(self._process, self._vm.vm_fd, request)

    def run_connection(self) -> socket.socket:
        """Raises NotOffered: what lives in the daemon's own process does not execute."""
        raise NotOffered(
            "guests do not execute in the daemon's own simulator",
            remedy="Run sevd-simulator, and the daemon with --simulator, on a machine that has /dev/kvm.",
        )

    def leave(self) -> None:
        """It ends with the daemon."""
        self.close()

    def close(self, lost: str = "") -> None:
        """Ends the VM, frees its ASID, and ends the process it belonged to."""
        try:
            if self._launch is not None:
                self._launch.travel.close()
            if self._driver is not None:
                self._driver.close()
        finally:
            leave = getattr(self._made, "exit", None)
            if leave is not None:
                leave()

    def _make_driver(self, request: CreateGuest) -> Snp | Plain | Sev:
        sev_path, kvm_path = self._sev_path, self._kvm_path
        if request.type == GuestType.PLAIN:
            return Plain(self._process, kvm_path=kvm_path)
        if request.type not in LEGACY:
            return Snp(self._process, sev_path=sev_path, kvm_path=kvm_path)
        reckon = self._observer is None
        self._launch = SevLaunch(self._process, request, sev_path=sev_path, kvm_path=kvm_path, reckon=reckon)
        return self._launch.driver

    def _snp_or_plain(self) -> Snp | Plain:
        assert isinstance(self._vm, Snp | Plain)
        return self._vm

    def _legacy(self, step: str) -> SevLaunch:
        if self._launch is None:
            no_such_step(self._kind, step)
        return self._launch

    def _reckon(self, gpa: int, size: int, page_type: int) -> None:
        """The same pages, into our own reckoning."""
        if self._digest is None:
            return
        if page_type == PageType.NORMAL:
            with self._vm.memory(gpa, size) as pages:
                self._digest.add_pages(gpa, bytes(pages))
        else:
            self._digest.add_run(page_type, gpa, size)

    def _player(self) -> SimulatedView:
        if self._launch is not None:
            no_such_step(self._kind, "guest_report")
        if isinstance(self._driver, Plain):
            raise NotOffered("a plain guest is not protected: there is nothing that a report could vouch for")
        if self._observer is None:
            raise NotOffered(
                "a guest's report travels encrypted with the guest's own key: the host cannot ask for it",
                remedy="Ask inside the guest: sev attest report.",
            )
        return self._observer


class OwnMachines:
    """Machines in this process, which end with it (sevd.guests.port.Machines).

    Args:
        process: Makes the process that a VM belongs to.
        observer: The model's view on a simulated platform.
        sev_path: The SEV device.
        kvm_path: The KVM device.
    """

    outlive = False

    def __init__(
        self,
        process: Callable[[], Kernel],
        observer: SimulatedView | None,
        *,
        sev_path: str = "/dev/sev",
        kvm_path: str = "/dev/kvm",
    ) -> None:
        self._process = process
        self._observer = observer
        self._paths = (sev_path, kvm_path)

    def make(self) -> GuestMachine:
        """A machine to be created."""
        sev_path, kvm_path = self._paths
        return Machine(self._process, self._observer, sev_path=sev_path, kvm_path=kvm_path)

    def watch(self, machine: GuestMachine, lost: Callable[[str], None]) -> None:
        """It cannot end without the daemon."""

    def find(self) -> Iterable[Found]:
        """Nothing outlived an earlier daemon."""
        return ()

    def awaited(self) -> Collection[Card]:
        """Nothing did."""
        return ()

    def find_late(self) -> Iterator[Found]:
        """Nothing did."""
        return iter(())

    def forget(self, owner: str, guest_id: str) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Nothing was prepared."""


def accepted_bytes(error: SevError) -> int:
    """Bytes that a failed update had added to the launch before it failed (metadata `accepted_bytes`)."""
    text = error.metadata.get("accepted_bytes", "0")
    return int(text) if text.isdecimal() else 0
