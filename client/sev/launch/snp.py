"""Launching a SEV-SNP guest in the process that owns the VM.

    guest = Snp(kernel)
    guest.create(memory_bytes, firmware_bytes, vcpu_count, cpuid_signature, ap_reset_address, vmsa_features)
    guest.memory(gpa, size)[:] = …                # fill the shared view
    guest.start(policy)
    guest.update(gpa, size, page_type)            # in measuring order
    guest.finish()
    guest.close()

The driver keeps no order of its own: a step out of order gets KVM's own answer (EINVAL, ENOTTY), as a KernelError.
Only what it needs itself it checks first. The VM lives as long as the object: `close` ends it.

Memory: guest RAM starts at address 0; what does not fit below 2 GiB goes on at 4 GiB; the firmware ends at 4 GiB.
"""

from __future__ import annotations

import errno
from functools import lru_cache

from sev import status as statuses
from sev.abi import cpuid_page, kvm, kvm_sev, kvm_vcpu
from sev.errors import InternalError, MalformedInput, SevError, UsageError
from sev.launch import commands
from sev.launch.machine import PAGE, Machine
from sev.launch.owned import OwnedGuest, check_features

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.abi.record import Record

_NO_RETRIES = 1000


class Snp(OwnedGuest):
    """One SNP guest of this process. Its `memory` is what `update` will take; arguments as of `OwnedGuest`."""

    _signature = 0
    _started = False

    def create(
        self,
        memory_bytes: int,
        firmware_bytes: int,
        vcpu_count: int,
        cpuid_signature: int,
        ap_reset_address: int = 0,
        vmsa_features: int = kvm_sev.VMSA_SNP_ACTIVE,
    ) -> None:
        """Makes the VM with its ASID, memory and vCPUs; nothing is left behind if it fails.

        Args:
            memory_bytes: Guest RAM, whole pages.
            firmware_bytes: Size of the region that ends at 4 GiB, whole pages; 0 for none.
            vcpu_count: Number of vCPUs, at least 1.
            cpuid_signature: CPUID leaf 1 EAX that the guest sees.
            ap_reset_address: Where vCPUs other than the first start; needed with more than one.
            vmsa_features: SEV_FEATURES; bit 0 (SNPActive) is set in any case.

        Raises:
            UsageError: A value that no VM can have.
            DeviceMissing, NotPermitted: A device is not there, or not for this process.
            NotOffered: KVM cannot create SNP guests, or lacks a VMSA feature asked for.
            LimitReached: All ASIDs are in use (EBUSY).
            FirmwareError, KernelError: Another refusal.
            WrongState: There is a VM already, or it was closed.
        """
        self._begin()
        try:
            self._create(memory_bytes, firmware_bytes, vcpu_count, vmsa_features)
            self._signature = cpuid_signature
            self.machine.add_vcpus(vcpu_count, cpuid_signature, ap_reset_address)
        except BaseException:
            self._give_up()
            raise

    def start(self, policy: int, gosvw: bytes = bytes(16)) -> None:
        """SNP_LAUNCH_START.

        Args:
            policy: Guest policy (sev.abi.policy.SnpPolicy), raw.
            gosvw: Guest OS visible workarounds, 16 bytes.

        Raises:
            FirmwareError: POLICY_FAILURE: the firmware is older than the policy asks, or cannot honour it.
            KernelError: EINVAL: a second start, or a policy bit that KVM does not take; ENOTTY: no guest context.
        """
        remedies = {
            errno.EINVAL: "Either the launch was started before, or the policy has a bit that this kernel does not "
            "take, or lacks bit 17, which must be one.",
            errno.ENOTTY: "KVM could not create the guest's context at the firmware: is SNP initialised?",
        }
        self._command(
            kvm_sev.SNP_LAUNCH_START, kvm_sev.SnpLaunchStart(policy, _exactly(gosvw, 16, "gosvw")), remedies=remedies
        )
        self._started = True

    def update(self, gpa: int, size: int, page_type: int) -> None:
        """SNP_LAUNCH_UPDATE of whole pages, in as many calls as the kernel wants.

        A CPUID page that is all zero is filled first with what KVM supports, with the guest's CPU signature. A refusal
        has `accepted_bytes` in its metadata: that many bytes from the start are part of the launch all the same.

        Args:
            gpa: Guest physical address, at a page.
            size: Bytes, whole pages.
            page_type: sev.abi.kvm_sev.PAGE_*; others are the kernel's to refuse (EINVAL).

        Raises:
            UsageError: The range is not inside one region of guest memory, or not whole pages.
            FirmwareError: The firmware refused a page; for a CPUID page `metadata` has its `corrections`.
            KernelError: EINVAL: before the start, after the finish, or a bad type; EIO: a page is assigned already.
        """
        machine = self.machine
        if gpa % PAGE or size % PAGE:
            raise UsageError(f"update: 0x{gpa:x} and {size} bytes are not whole pages of {PAGE}", field="gpa")
        address = machine.address(gpa, size)
        before = b""
        if page_type == kvm_sev.PAGE_CPUID and size == PAGE:
            before = self._fill_cpuid(machine.view(gpa, PAGE))
        request = kvm_sev.SnpLaunchUpdate(gpa // PAGE, address, size, page_type)
        remedies = {
            errno.EINVAL: "Pages are added between start and finish, with a type that the firmware knows.",
            errno.EIO: "A page of this range is part of the launch already, or cannot be read.",
        }
        stalled = 0
        try:
            while True:
                left, request = request.len, self._update(request, remedies)
                if not request.len:
                    return
                stalled = stalled + 1 if request.len == left else 0
                if stalled > _NO_RETRIES:
                    raise InternalError("SNP_LAUNCH_UPDATE: the kernel reports success and makes no progress")
        except SevError as error:
            error.metadata["accepted_bytes"] = str(size - request.len)
            if before and error.firmware_status == statuses.INVALID_PARAM:
                try:
                    lines = list(cpuid_page.corrections(before, machine.view(gpa, PAGE)))
                except MalformedInput as malformed:
                    lines = [malformed.message]
                error.metadata["corrections"] = "; ".join(lines)
            raise

    def finish(
        self,
        id_block: bytes | None = None,
        id_auth: bytes | None = None,
        auth_key_en: bool = False,
        vcek_disabled: bool = False,
        host_data: bytes = bytes(32),
    ) -> None:
        """SNP_LAUNCH_FINISH: measures every vCPU, then checks the ID block. A failure ends this guest for good.

        Args:
            id_block: 96 bytes; None or empty for none.
            id_auth: ID authentication page, 4096 bytes, with an ID block.
            auth_key_en: The authentication page has an author key.
            vcek_disabled: Forbid the VCEK for this guest's reports.
            host_data: 32 bytes for its reports.

        Raises:
            UsageError: A length that cannot be.
            FirmwareError: BAD_MEASUREMENT, POLICY_FAILURE, BAD_SIGNATURE: the ID block does not fit.
            KernelError: EINVAL: finished already, or not started.
            WrongState: An earlier finish failed.
        """
        if id_block and not id_auth:
            raise UsageError("an ID block needs its authentication page", field="id_auth")
        memory = self.kernel.memory
        placed: list[int] = []
        machine = self.machine
        try:
            if id_block and id_auth:
                placed.append(memory.place(_exactly(id_block, kvm_sev.ID_BLOCK_SIZE, "id_block")))
                placed.append(memory.place(_exactly(id_auth, kvm_sev.ID_AUTH_SIZE, "id_auth")))
            block, auth = placed or (0, 0)
            request = kvm_sev.SnpLaunchFinish(
                id_block_uaddr=block,
                id_auth_uaddr=auth,
                id_block_en=int(bool(id_block)),
                auth_key_en=int(auth_key_en),
                vcek_disabled=int(vcek_disabled),
                host_data=_exactly(host_data, 32, "host_data"),
            )
            try:
                self._command(kvm_sev.SNP_LAUNCH_FINISH, request, remedies={errno.EINVAL: _FINISH})
            except SevError:
                if self._started and not machine.finished:
                    self._dead = "its launch failed; close it and start over"
                raise
            machine.finished = True
        finally:
            for address in placed:
                memory.release(address)

    def _create(self, memory_bytes: int, firmware_bytes: int, vcpu_count: int, vmsa_features: int) -> None:
        self._open_sev()
        machine = Machine(self.kernel, self._kvm_path, kvm.VM_TYPE_SNP)
        self._machine = machine
        machine.check_vcpu_count(vcpu_count)
        wanted = vmsa_features & ~kvm_sev.VMSA_SNP_ACTIVE
        check_features(machine, wanted, always=kvm_sev.VMSA_SNP_ACTIVE)
        machine.enable(kvm.CAP_EXIT_HYPERCALL, 1 << kvm.HC_MAP_GPA_RANGE)
        self._command(kvm_sev.SEV_INIT2, kvm_sev.SevInit(vmsa_features=wanted))
        machine.add_memory(memory_bytes, firmware_bytes, shared=self._share_memory)

    def _update(self, request: kvm_sev.SnpLaunchUpdate, remedies: dict[int, str]) -> kvm_sev.SnpLaunchUpdate:
        """One call; answers what is left. EAGAIN, which the kernel's documentation allows, leaves everything."""
        try:
            return kvm_sev.SnpLaunchUpdate.decode(self._command(kvm_sev.SNP_LAUNCH_UPDATE, request, remedies=remedies))
        except SevError as error:
            if error.errno == errno.EAGAIN and not error.firmware_status:
                return request
            raise

    def _command(self, number: int, request: Record, *, remedies: dict[int, str] | None = None) -> bytearray:
        """One KVM_MEMORY_ENCRYPT_OP; answers its structure as the kernel left it."""
        return commands.issue(self.kernel, self.machine.vm_fd, number, request, sev_fd=self._sev_fd, remedies=remedies)

    def _fill_cpuid(self, page: memoryview) -> bytes:
        if bytes(page) == bytes(PAGE):
            page[:] = _cpuid_page(self.machine.supported_cpuid(self._signature))
        return bytes(page)


_FINISH = (
    "The launch was finished already, was not started, or an earlier finish failed: a failed one cannot be repeated."
)


@lru_cache(maxsize=16)
def _cpuid_page(leaves: bytes) -> bytes:
    return cpuid_page.build(cpuid_page.from_kvm(kvm_vcpu.decode_cpuid(leaves)))


def _exactly(data: bytes, size: int, name: str) -> bytes:
    if len(data) != size:
        raise UsageError(f"{name}: {len(data)} bytes where exactly {size} were expected", field=name)
    return bytes(data)
