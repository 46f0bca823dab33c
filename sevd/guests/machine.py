"""The machine of one hosted guest: the launch driver, the process it runs in, and the launch digest.

Everything here blocks and runs on the device worker, `memory` excepted. A machine that could not be created, and one
that was closed, holds nothing: no descriptor, no ASID, no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from sev.errors import NotOffered, SevError
from sev.launch import Snp
from sevd.guests.model import CreateGuest, PageType

if TYPE_CHECKING:
    from sev.launch.seam import Kernel
    from sevd.guests.digest import LaunchDigest


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
        """The firmware's own launch digest, 48 bytes."""

    def guest_report(self, process: Kernel, vm_fd: int, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
        """A report as the guest would get it, 1184 bytes. Raises FirmwareError."""

    def guest_key(self, process: Kernel, vm_fd: int, request: KeyRequest) -> bytes:
        """A derived key as the guest would get it, 32 bytes. Raises FirmwareError."""


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
    """One VM under launch.

    Args:
        process: The process that the VM belongs to; `close` ends it.
        observer: The model's view on a simulated platform; None on a real one.
        sev_path: The SEV device.
        kvm_path: The KVM device.
    """

    def __init__(
        self,
        process: Kernel,
        observer: SimulatedView | None,
        *,
        sev_path: str = "/dev/sev",
        kvm_path: str = "/dev/kvm",
    ) -> None:
        self._observer = observer
        self._process = process
        self._digest: LaunchDigest | None = None
        self._vm = Snp(self._process, sev_path=sev_path, kvm_path=kvm_path)

    def create(self, request: CreateGuest) -> None:
        """Makes the VM with its memory and vCPUs. Whatever fails, nothing is left behind."""
        try:
            self._vm.create(
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
        if self._observer is None:
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

    def start(self, policy: int, gosvw: bytes) -> None:
        """SNP_LAUNCH_START."""
        self._vm.start(policy, gosvw)

    def update(self, gpa: int, size: int, page_type: int) -> None:
        """SNP_LAUNCH_UPDATE of whole pages of one type."""
        done = 0
        try:
            self._vm.update(gpa, size, page_type)
            done = size
        except SevError as error:
            done = accepted_bytes(error)
            raise
        finally:
            if self._digest is not None and done:
                self._reckon(gpa, done, page_type)

    def finish(self, finish: Finish) -> bytes:
        """SNP_LAUNCH_FINISH; answers the launch digest, 48 bytes."""
        self._vm.finish(
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

    def close(self) -> None:
        """Ends the VM, frees its ASID, and ends the process it belonged to."""
        try:
            self._vm.close()
        finally:
            leave = getattr(self._process, "exit", None)
            if leave is not None:
                leave()

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
        if self._observer is None:
            raise NotOffered(
                "a guest's report travels encrypted with the guest's own key: the host cannot ask for it",
                remedy="Ask inside the guest: sev attest report.",
            )
        return self._observer


def accepted_bytes(error: SevError) -> int:
    """Bytes that a failed update had added to the launch before it failed (metadata `accepted_bytes`)."""
    text = error.metadata.get("accepted_bytes", "0")
    return int(text) if text.isdecimal() else 0
