"""Launching an SEV or SEV-ES guest in the process that owns the VM.

    guest = Sev(kernel)                            # SevEs(kernel) for encrypted registers too
    guest.create(memory_bytes, firmware_bytes, vcpu_count, cpuid_signature, ap_reset_address)
    guest.memory(gpa, size)[:] = …                 # fill guest memory
    guest.start(policy, certificate, session)      # what the guest owner made (sev.session); none: no secrets
    guest.update(gpa, size)                        # in measuring order; the memory is ciphertext afterwards
    guest.update_vmsa()                            # SEV-ES: every vCPU
    blob = guest.measure()                         # for the owner
    guest.secret(gpa, header, payload)             # what the owner made of it
    guest.finish()
    guest.close()

The driver keeps no order of its own: a step out of order gets the firmware's own answer (INVALID_GUEST_STATE).
"""

from __future__ import annotations

import errno

from sev import status as statuses
from sev.abi import kvm, kvm_sev
from sev.abi import kvm_sev_legacy as abi
from sev.abi.legacy_report import SIZE as REPORT_SIZE
from sev.errors import FirmwareError, InternalError, SevError, UsageError
from sev.launch import commands
from sev.launch.machine import NO_LOCKED_MEMORY, PAGE, Machine
from sev.launch.owned import OwnedGuest, check_features

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sev.abi.record import Record

MEASURE_SIZE = 48
ALIGNMENT = 16
"""Firmware takes addresses and lengths in multiples of this."""
UPDATE_BYTES = 1 << 30
"""Bytes of one LAUNCH_UPDATE_DATA: its length is an u32."""

_REMEDIES = {
    errno.ENOTTY: "This VM is no SEV guest, or this kernel has no SEV-ES.",
    errno.ENOMEM: NO_LOCKED_MEMORY,
}
_NODBG = (
    "The guest's policy has nodbg, and keeps it: launch it with a policy without (such as --policy 0, or es alone for "
    "SEV-ES) to debug it."
)


class Sev(OwnedGuest):
    """One SEV guest of this process. Its `memory` is plain before an update took it, ciphertext after; arguments as of
    `OwnedGuest`."""

    VM_TYPE = kvm.VM_TYPE_SEV
    NAME = "SEV"

    def create(
        self,
        memory_bytes: int,
        firmware_bytes: int,
        vcpu_count: int,
        cpuid_signature: int,
        ap_reset_address: int = 0,
        vmsa_features: int = 0,
    ) -> None:
        """Makes the VM with its ASID, its memory, registered with the kernel, and vCPUs; nothing is left if it fails.

        Args:
            memory_bytes: Guest RAM, whole pages.
            firmware_bytes: Size of the region that ends at 4 GiB, whole pages; 0 for none.
            vcpu_count: Number of vCPUs, at least 1.
            cpuid_signature: CPUID leaf 1 EAX that the guest sees.
            ap_reset_address: Where vCPUs other than the first start; needed with more than one.
            vmsa_features: SEV_FEATURES; none for SEV.

        Raises:
            UsageError: A value that no VM can have.
            DeviceMissing, NotPermitted: A device is not there, or not for this process.
            NotOffered: KVM cannot create such guests, or lacks a VMSA feature asked for.
            LimitReached: All ASIDs are in use (EBUSY).
            FirmwareError, KernelError: Another refusal.
            WrongState: There is a VM already, or it was closed.
        """
        self._begin()
        self._open_sev()
        try:
            self._machine = machine = Machine(self.kernel, self._kvm_path, self.VM_TYPE)
            machine.check_vcpu_count(vcpu_count)
            self._check_features(machine, vmsa_features)
            self.command(kvm_sev.SEV_INIT2, kvm_sev.SevInit(vmsa_features=vmsa_features))
            machine.add_memory(memory_bytes, firmware_bytes, shared=self._share_memory)
            machine.register_memory()
            machine.add_vcpus(vcpu_count, cpuid_signature, ap_reset_address)
        except BaseException:
            self._give_up()
            raise

    def start(self, policy: int, certificate: bytes = b"", session: bytes = b"", *, handle: int = 0) -> int:
        """LAUNCH_START and ACTIVATE; answers the firmware's handle.

        Args:
            policy: Guest policy (sev.abi.sev_policy.SevPolicy), raw.
            certificate: The owner's ECDH certificate, 2084 bytes; empty for no session.
            session: The owner's launch blob, 128 bytes; empty for no session.
            handle: Of a guest whose keys are shared; 0: keys of its own.

        Raises:
            UsageError: Certificate without session, or the reverse.
            FirmwareError: POLICY_FAILURE, BAD_MEASUREMENT (a blob for another platform or policy), UNSUPPORTED.
        """
        if bool(certificate) != bool(session):
            raise UsageError(
                "a session is the owner's certificate and the launch blob: both or neither", field="session"
            )
        placed: list[int] = []
        memory = self.kernel.memory
        try:
            placed += [memory.place(bytes(blob)) for blob in (certificate, session) if blob]
            dh, blob = placed or (0, 0)
            request = abi.LaunchStart(handle, policy, dh, len(certificate), blob, len(session))
            return abi.LaunchStart.decode(self.command(kvm_sev.LAUNCH_START, request)).handle
        finally:
            for address in placed:
                memory.release(address)

    def update(self, gpa: int, size: int) -> None:
        """LAUNCH_UPDATE_DATA: the range is measured and encrypted in place.

        Raises:
            UsageError: Not inside one region, or not in multiples of 16 bytes.
            FirmwareError: INVALID_GUEST_STATE before the start and after the measurement.
        """
        if gpa % ALIGNMENT or size % ALIGNMENT or not size:
            raise UsageError(f"update: 0x{gpa:x} and {size} bytes: expected multiples of {ALIGNMENT}", field="gpa")
        address = self.machine.address(gpa, size)
        for offset in range(0, size, UPDATE_BYTES):
            piece = min(UPDATE_BYTES, size - offset)
            self.command(kvm_sev.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(address + offset, piece))

    def update_vmsa(self) -> None:
        """LAUNCH_UPDATE_VMSA of every vCPU, in their order: SEV-ES alone. Nothing can change their registers then."""
        self.command(kvm_sev.LAUNCH_UPDATE_VMSA, None)

    def measure(self) -> bytes:
        """LAUNCH_MEASURE: measure and nonce, 48 bytes, for the owner. Nothing can be updated afterwards."""
        return self._answer(kvm_sev.LAUNCH_MEASURE, MEASURE_SIZE, abi.LaunchMeasure)

    def secret(self, gpa: int, header: bytes, payload: bytes) -> None:
        """LAUNCH_SECRET: what the owner packed for this measurement goes to a place in guest memory, in one page run.

        Raises:
            UsageError: Not inside one region.
            FirmwareError: BAD_MEASUREMENT: packed for another launch, or changed.
        """
        memory = self.kernel.memory
        address = self.machine.address(gpa, len(payload))
        placed: list[int] = []
        try:
            placed += [memory.place(bytes(header) or b"\0"), memory.place(bytes(payload) or b"\0")]
            request = abi.LaunchSecret(placed[0], len(header), address, len(payload), placed[1], len(payload))
            self.command(kvm_sev.LAUNCH_SECRET, request)
        finally:
            for place in placed:
                memory.release(place)

    def finish(self) -> None:
        """LAUNCH_FINISH: the guest may run, the firmware forgets the session's keys."""
        self.command(kvm_sev.LAUNCH_FINISH, None)
        self.machine.finished = True

    def status(self) -> abi.GuestStatus:
        """GUEST_STATUS: handle, policy, state."""
        return abi.GuestStatus.decode(self.command(kvm_sev.GUEST_STATUS, abi.GuestStatus()))

    def attestation(self, mnonce: bytes) -> bytes:
        """GET_ATTESTATION_REPORT: a report over this nonce (16 bytes), 208 bytes, signed by the PEK."""
        if len(mnonce) != abi.MNONCE_SIZE:
            raise UsageError(
                f"mnonce: {len(mnonce)} bytes where exactly {abi.MNONCE_SIZE} were expected", field="mnonce"
            )
        return self._answer(
            kvm_sev.GET_ATTESTATION_REPORT, REPORT_SIZE, lambda at, size: abi.AttestationReport(mnonce, at, size)
        )

    def debug_read(self, gpa: int, size: int) -> bytes:
        """DBG_DECRYPT: guest memory in plain, where the policy allows it. Raises FirmwareError: POLICY_FAILURE."""
        return self._debug(kvm_sev.DBG_DECRYPT, gpa, bytes(max(size, 0)))

    def debug_write(self, gpa: int, data: bytes) -> None:
        """DBG_ENCRYPT: guest memory replaced, where the policy allows it. Raises FirmwareError: POLICY_FAILURE."""
        self._debug(kvm_sev.DBG_ENCRYPT, gpa, bytes(data))

    def command(self, number: int, request: Record | None, *, data: bytearray | None = None) -> bytearray:
        """Any command of this guest's (sev.abi.kvm_sev): its structure as the kernel left it.

        Raises:
            FirmwareError, KernelError: Refused.
            WrongState: There is no VM.
        """
        return commands.issue(
            self.kernel, self.vm_fd, number, request, sev_fd=self._sev_fd, remedies=_REMEDIES, data=data
        )

    def command_each(self, number: int, envelopes: Sequence[int]) -> None:
        """One command again and again, in envelopes that lie in memory with their structures (`envelope` fills one).

        Raises:
            FirmwareError, KernelError: One was refused; those before it are done.
            WrongState: There is no VM.
        """
        commands.issue_each(self.kernel, self.vm_fd, number, envelopes, remedies=_REMEDIES)

    def envelope(self, number: int, data: int) -> kvm_sev.SevCmd:
        """The envelope of a command whose structure lies at an address."""
        return kvm_sev.SevCmd(number, data, 0, self._sev_fd)

    def _check_features(self, machine: Machine, features: int) -> None:
        if features:
            raise UsageError(f"vmsa_features: 0x{features:x}: an SEV guest has no VMSA", field="vmsa_features")

    def _debug(self, number: int, gpa: int, data: bytes) -> bytes:
        size, memory = len(data), self.kernel.memory
        if not size:
            raise UsageError("nothing to read or write", field="size")
        address = self.machine.address(gpa, size)
        place = memory.place(data)  # a copy: only whole pages at a page may be shared
        try:
            ends = (address, place) if number == kvm_sev.DBG_DECRYPT else (place, address)
            self.command(number, abi.Debug(*ends, size))
            return memory.read(place, size)
        except FirmwareError as error:
            if error.firmware_status == statuses.POLICY_FAILURE:
                error.remedy = _NODBG
            raise
        finally:
            memory.release(place)

    def _answer(self, number: int, size: int, request: object) -> bytes:
        """What a command writes to a buffer of its own choosing of length: asked for first, as the kernel has it."""
        make = request
        assert callable(make)
        data = bytearray()
        try:
            self.command(number, make(0, 0), data=data)
        except SevError as error:
            if error.firmware_status != statuses.INVALID_LENGTH:
                raise
        needed = int.from_bytes(data[_LENGTH_AT[number] : _LENGTH_AT[number] + 4], "little") or size
        if needed > PAGE:
            raise InternalError(f"{kvm_sev.command_name(number)}: the firmware wants {needed} bytes")
        buffer = bytearray(needed)
        place = self.kernel.memory.place(buffer)
        try:
            self.command(number, make(place, needed))
        finally:
            self.kernel.memory.release(place)
        return bytes(buffer)


class SevEs(Sev):
    """One SEV-ES guest of this process: registers are encrypted and measured too."""

    VM_TYPE = kvm.VM_TYPE_SEV_ES
    NAME = "SEV-ES"

    def _check_features(self, machine: Machine, features: int) -> None:
        check_features(machine, features, without=kvm_sev.VMSA_SECURE_TSC)


_LENGTH_AT = {
    kvm_sev.LAUNCH_MEASURE: abi.LaunchMeasure.offsets()["len"][0],
    kvm_sev.GET_ATTESTATION_REPORT: abi.AttestationReport.offsets()["len"][0],
}
"""Where the kernel writes the length that is needed."""
