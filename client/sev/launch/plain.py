"""An ordinary VM in the process that owns it: the same steps as a protected launch has, without any protection.

It lets everything around a launch run on any machine with KVM. Nothing is measured, and the host can read and change
all of its memory: whoever offers it must say so. Its vCPUs start as an SNP guest's do, at the firmware's reset vector.
"""

from __future__ import annotations

from sev.abi import kvm
from sev.errors import UsageError
from sev.launch.machine import Machine
from sev.launch.owned import OwnedGuest


class Plain(OwnedGuest):
    """One unprotected guest of this process; arguments as of `OwnedGuest`. It needs no secure processor."""

    def create(
        self,
        memory_bytes: int,
        firmware_bytes: int,
        vcpu_count: int,
        cpuid_signature: int = 0,
        ap_reset_address: int = 0,
        vmsa_features: int = 0,
    ) -> None:
        """Makes the VM with its memory and vCPUs; nothing is left behind if it fails.

        Args:
            memory_bytes: Guest RAM, whole pages.
            firmware_bytes: Size of the region that ends at 4 GiB, whole pages; 0 for none.
            vcpu_count: Number of vCPUs, at least 1.
            cpuid_signature: CPUID leaf 1 EAX that the guest sees; 0: the processor's own.
            ap_reset_address: Where vCPUs other than the first start; needed with more than one.
            vmsa_features: 0: there is no VMSA.

        Raises:
            UsageError: A value that no VM can have.
            DeviceMissing, NotPermitted: KVM is not there, or not for this process.
            KernelError: Refused.
            WrongState: There is a VM already, or it was closed.
        """
        self._begin()
        if vmsa_features:
            raise UsageError(f"vmsa_features: 0x{vmsa_features:x}: a plain guest has no VMSA", field="vmsa_features")
        self._machine = machine = Machine(self.kernel, self._kvm_path, kvm.VM_TYPE_DEFAULT)
        try:
            machine.check_vcpu_count(vcpu_count)
            machine.add_memory(memory_bytes, firmware_bytes)
            machine.add_vcpus(vcpu_count, cpuid_signature, ap_reset_address)
        except BaseException:
            self._machine = None
            machine.close()
            raise

    def start(self, policy: int = 0, gosvw: bytes = bytes(16)) -> None:
        """Nothing is launched. Raises UsageError for a policy or workarounds: nobody would keep them."""
        if policy or any(gosvw):
            raise _nobody_keeps("gosvw" if not policy else "policy")
        self.machine.finished = False

    def update(self, gpa: int, size: int, page_type: int) -> None:
        """Nothing is measured. Raises UsageError outside of the guest's memory."""
        self.machine.view(gpa, size).release()

    def finish(
        self,
        id_block: bytes | None = None,
        id_auth: bytes | None = None,
        auth_key_en: bool = False,
        vcek_disabled: bool = False,
        host_data: bytes = bytes(32),
    ) -> None:
        """The guest may run. Raises UsageError for anything that only a report could show."""
        for name, given in (("id_block", id_block), ("id_auth", id_auth), ("vcek_disabled", vcek_disabled)):
            if given:
                raise _nobody_keeps(name)
        if any(host_data):
            raise _nobody_keeps("host_data")
        self.machine.finished = True


def _nobody_keeps(name: str) -> UsageError:
    return UsageError(
        f"{name}: a plain guest is not protected, so that nobody would keep to it",
        field=name,
        remedy="Leave it out, or launch a guest of a type that protects it.",
    )
