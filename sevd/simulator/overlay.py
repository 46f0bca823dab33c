"""The kernel of a process whose SEV is simulated and whose guests really run (sev.launch.seam.Kernel).

    kernel = OverlayKernel(directory)            # where sevd-simulator serves its files
    guest = Snp(kernel, sev_path=f"{directory}/sev")

Paths are opened as they are, the simulator's `sev` among them. KVM's device is the simulator's model, reached over its
control socket: it answers every ioctl, and keeps the launch. Where the real device can be opened, a real VM of the
default type stands below each simulated one, with the same memory, vCPUs and CPUID: once the launch is finished, the
vCPUs are given exactly the state that was measured, and KVM_RUN runs them on the pages that were measured. Before that
KVM_RUN answers as KVM does for a guest that cannot be entered. Without a real device guests are launched and never run:
EOPNOTSUPP.

A VM that is not SEV's is the real one as soon as it has vCPUs: they are no business of the model. The vCPUs of an SEV
guest are the real ones too, once it may run; how its memory is kept is told in `sevd.simulator.overlay_sev`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from functools import partial
from pathlib import Path

from sev.abi import kvm, kvm_run, kvm_sev
from sev.errors import WrongState
from sev.launch.linux import LinuxKernel
from sevd.simulator import overlay_sev, overlay_state
from sevd.simulator.control_client import PATH as MODEL_PATH
from sevd.simulator.control_client import ControlClient
from sevd.simulator.errnos import until_refused
from sevd.simulator.overlay_memory import OverlayMemory
from sevd.simulator.overlay_sev import SevOverlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from sev.abi.kvm_run import Hypercall
    from sev.launch.linux import LinuxMemory

_FINISHES = frozenset({kvm_sev.SNP_LAUNCH_FINISH}) | overlay_sev.FINISHES
_INITIALISES = frozenset({kvm_sev.SEV_INIT, kvm_sev.SEV_ES_INIT, kvm_sev.SEV_INIT2})
_FIRST_MODEL_DESCRIPTOR = 1 << 20
_ENCRYPTED = 1 << 4
"""In the attributes of KVM_HC_MAP_GPA_RANGE: the pages become private."""


class OverlayKernel:
    """A process on the simulated host; descriptors of the model are numbers from 1 << 20 on.

    Args:
        directory: Where sevd-simulator serves its files.
        kvm_path: The real device, and the path by which the model's is opened.

    Raises:
        DeviceMissing: There is no simulator.
        NotPermitted: It is not for this user.
    """

    def __init__(self, directory: Path, kvm_path: str = "/dev/kvm") -> None:
        self.control = ControlClient.connect(Path(directory) / "control.sock")
        self._linux = LinuxKernel()
        self._kvm_path = kvm_path
        self._files: dict[int, _File] = {}

    @property
    def memory(self) -> LinuxMemory:
        """This process's memory."""
        return self._linux.memory

    def fileno(self) -> int:
        """poll(2) of it tells POLLHUP when the simulator is gone."""
        return self.control.fileno()

    def open(self, path: str, flags: int) -> int:
        """open(2), close-on-exec. Raises OSError."""
        if path != self._kvm_path:
            return self._linux.open(path, flags)
        fd = self.control.open(MODEL_PATH, flags & ~os.O_CLOEXEC)
        real = -1
        with contextlib.suppress(OSError):
            real = self._linux.open(path, os.O_RDWR)
        self._files[fd] = _Device(self, fd, real)
        return fd

    def close(self, fd: int) -> None:
        """close(2). Raises OSError(EBADF)."""
        file = self._files.pop(fd, None)
        if file is None:
            self._linux.close(fd)
            return
        try:
            self.control.close_descriptor(fd)
        finally:
            file.close()

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """ioctl(2). Raises OSError with the kernel's errno, the simulated one's or the real one's."""
        file = self._files.get(fd)
        if file is not None:
            return file.ioctl(request, argument)
        return self._linux.ioctl(fd, request, argument)

    def ioctls(self, fd: int, request: int, arguments: Sequence[int]) -> tuple[int, int]:
        """The same ioctl(2) again and again, until one fails: (how many succeeded, errno or 0)."""
        file = self._files.get(fd)
        return self._linux.ioctls(fd, request, arguments) if file is None else file.ioctls(request, arguments)

    def map(self, fd: int, size: int) -> memoryview:
        """mmap(2) of a vCPU, the real one's. Raises OSError: EOPNOTSUPP: nothing executes here."""
        file = self._files.get(fd)
        if file is None:
            return self._linux.map(fd, size)
        if file.real < 0:
            raise _refusal(errno.EOPNOTSUPP)
        return self._linux.map(file.real, size)

    def unmap(self, view: memoryview) -> None:
        """Gives back what `map` answered."""
        self._linux.unmap(view)

    def discard(self, fd: int, offset: int, size: int) -> None:
        """fallocate(2) that frees whole pages. Raises OSError."""
        if fd in self._files:
            self.control.discard(fd, offset, size)
        else:
            self._linux.discard(fd, offset, size)

    def exit(self) -> None:
        """The process ends: all that it held is closed, the connection too."""
        self.control.close()
        for file in (*self._files.values(),):
            file.close()
        self._files.clear()
        self._linux.exit()

    def name(self, vm_fd: int, guest_id: str) -> None:
        """Names a guest, for the simulator's files. Raises UsageError."""
        self.control.name(vm_fd, guest_id)

    def launch_digest(self, vm_fd: int) -> bytes:
        """The firmware's launch digest, 48 bytes. Raises UsageError, WrongState."""
        return self.control.launch_digest(vm_fd)

    def asid(self, vm_fd: int) -> int:
        """The ASID. Raises UsageError."""
        return self.control.asid(vm_fd)

    def report(self, vm_fd: int, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
        """A report as the guest gets it, 1184 bytes. Raises FirmwareError, UsageError, WrongState."""
        return self.control.report(vm_fd, report_data, vmpl, key_selection)

    def key(self, vm_fd: int, **request: int) -> bytes:
        """A derived key as the guest gets it, 32 bytes, secret. Raises as `report`."""
        return self.control.key(vm_fd, **request)

    def model(self, fd: int, request: int, argument: int) -> int:
        """An ioctl of the model. Raises OSError."""
        return self.control.ioctl(fd, request, argument)

    @property
    def linux(self) -> LinuxKernel:
        """The real kernel."""
        return self._linux

    def install(self, fd: int, file: _File) -> int:
        """A descriptor that the model has made stands for this file."""
        self._files[fd] = file
        return fd

    def file(self, fd: int) -> _File | None:
        """The file behind a descriptor of the model."""
        return self._files.get(fd)


class _File:
    """An open file of the model, with the real one below it (-1: none)."""

    def __init__(self, kernel: OverlayKernel, fd: int, real: int = -1) -> None:
        self.kernel = kernel
        self.fd = fd
        self.real = real

    def ioctl(self, request: int, argument: int) -> int:
        """The model answers."""
        return self.kernel.model(self.fd, request, argument)

    def ioctls(self, request: int, arguments: Sequence[int]) -> tuple[int, int]:
        """One after the other."""
        return until_refused(partial(self.ioctl, request), arguments)

    def close(self) -> None:
        """The descriptor is closed."""
        real, self.real = self.real, -1
        if real >= 0:
            with contextlib.suppress(OSError):
                self.kernel.linux.close(real)


class _Device(_File):
    """/dev/kvm."""

    def ioctl(self, request: int, argument: int) -> int:
        """As the model; VMs get a real one below them, and vCPUs have the size of the real ones."""
        if request == kvm.KVM_GET_VCPU_MMAP_SIZE and self.real >= 0:
            return self.kernel.linux.ioctl(self.real, request, argument)
        result = super().ioctl(request, argument)
        if request != kvm.KVM_CREATE_VM:
            return result
        real = -1
        try:
            if self.real >= 0:
                real = self.kernel.linux.ioctl(self.real, kvm.KVM_CREATE_VM, kvm.VM_TYPE_DEFAULT)
        except OSError:
            self.kernel.control.close_descriptor(result)
            raise
        return self.kernel.install(result, _Vm(self, result, real, argument))


class _Vm(_File):
    """A VM. The real one's memory goes when its last descriptor, vCPUs' included, is closed."""

    def __init__(self, device: _Device, fd: int, real: int, vm_type: int) -> None:
        super().__init__(device.kernel, fd, real)
        self.device = device.real
        self.sev = vm_type != kvm.VM_TYPE_DEFAULT
        self.hides_state = vm_type in (kvm.VM_TYPE_SEV_ES, kvm.VM_TYPE_SNP)
        self.runs = not self.sev
        self._memory = OverlayMemory(self.kernel.linux, real) if real >= 0 else None
        self._encrypted: SevOverlay | None = None
        if self._memory is not None and vm_type != kvm.VM_TYPE_SNP:
            self._encrypted = SevOverlay(self.kernel, fd, self._memory)
        self._vcpus: list[_Vcpu] = []
        self._references = 1

    def hold(self) -> None:
        """One more file that keeps it alive."""
        self._references += 1

    def drop(self) -> None:
        """One file less."""
        self._references -= 1
        if not self._references and self._memory is not None:
            self._memory.close()
            if self._encrypted is not None:
                self._encrypted.close()

    def close(self) -> None:
        """The VM's descriptor is closed."""
        super().close()
        self.drop()

    def ioctl(self, request: int, argument: int) -> int:
        """The model answers; what it accepts happens to the real VM too."""
        if request == kvm.KVM_CREATE_GUEST_MEMFD:
            fd, memory = self.kernel.control.create_memory(self.fd, request, argument)
            return self.kernel.install(fd, _Memory(self, fd, memory))
        command = self._command(argument) if request == kvm.KVM_MEMORY_ENCRYPT_OP and argument else -1
        if self.sev and self._encrypted is not None and command in overlay_sev.COMMANDS:
            result = self._encrypted.command(command, argument)
        else:
            result = super().ioctl(request, argument)
        if request == kvm.KVM_CREATE_VCPU:
            return self._add_vcpu(result, argument)
        if command in _INITIALISES:
            self.sev, self.runs = True, False
            self.hides_state |= command == kvm_sev.SEV_ES_INIT
        elif self._memory is not None:
            self._follow(self._memory, request, argument, command)
        return result

    def ioctls(self, request: int, arguments: Sequence[int]) -> tuple[int, int]:
        """Pages of a guest on its way go together."""
        commands = {self._command(one) for one in arguments} if request == kvm.KVM_MEMORY_ENCRYPT_OP else set()
        if self._encrypted is not None and len(commands) == 1 and self.sev:
            return self._encrypted.each(commands.pop(), arguments)
        return super().ioctls(request, arguments)

    def guest_asks(self, asked: Hypercall) -> None:
        """A guest in encrypted memory wants pages to be private or shared. Raises OSError if they cannot be mapped."""
        if self.sev and self._encrypted is not None and asked.number == kvm.HC_MAP_GPA_RANGE:
            gpa, pages, attributes = asked.arguments[:3]
            self._encrypted.convert(gpa, pages, private=bool(attributes & _ENCRYPTED))

    def _follow(self, memory: OverlayMemory, request: int, argument: int, command: int) -> None:
        read = self.kernel.memory.read
        if request == kvm.KVM_SET_USER_MEMORY_REGION2:
            region = kvm.UserMemoryRegion2.decode(read(argument, kvm.UserMemoryRegion2.size()))
            private = self.kernel.file(region.guest_memfd) if region.flags & kvm.MEM_GUEST_MEMFD else None
            memory.set_region(region, private.real if private is not None else -1)
            self._adopt(region)
        elif request == kvm.KVM_SET_USER_MEMORY_REGION:
            old = kvm.UserMemoryRegion.decode(read(argument, kvm.UserMemoryRegion.size()))
            region = kvm.UserMemoryRegion2(*(getattr(old, name) for name in old.fields()))
            memory.set_region(region, -1)
            self._adopt(region)
        elif request == kvm.KVM_SET_MEMORY_ATTRIBUTES:
            memory.set_attributes(kvm.MemoryAttributes.decode(read(argument, kvm.MemoryAttributes.size())))
        elif request == kvm.KVM_ENABLE_CAP:
            self.kernel.linux.ioctl(self.real, request, argument)
        elif command in _FINISHES:
            for vcpu in self._vcpus if self.hides_state else ():
                vcpu.start_as_measured()
            self.runs = True

    def _adopt(self, region: kvm.UserMemoryRegion2) -> None:
        if self._encrypted is not None and region.memory_size:
            self._encrypted.adopt(region.slot)

    def _add_vcpu(self, fd: int, argument: int) -> int:
        real = -1
        try:
            if self.real >= 0:
                real = self.kernel.linux.ioctl(self.real, kvm.KVM_CREATE_VCPU, argument)
        except OSError:
            self.kernel.control.close_descriptor(fd)
            raise
        vcpu = _Vcpu(self, fd, real)
        self._vcpus.append(vcpu)
        return self.kernel.install(fd, vcpu)

    def _command(self, argument: int) -> int:
        try:
            return kvm_sev.SevCmd.decode(self.kernel.memory.read(argument, kvm_sev.SevCmd.size())).id
        except OSError:
            return -1  # the model says EFAULT


class _Memory(_File):
    """A guest_memfd; `real` is the memory itself."""

    def __init__(self, vm: _Vm, fd: int, memory: int) -> None:
        super().__init__(vm.kernel, fd, memory)
        self._vm = vm
        vm.hold()

    def close(self) -> None:
        """The descriptor is closed."""
        super().close()
        self._vm.drop()


class _Vcpu(_File):
    """A vCPU."""

    def __init__(self, vm: _Vm, fd: int, real: int) -> None:
        super().__init__(vm.kernel, fd, real)
        self._vm = vm
        self._measured = False
        self._page: memoryview | None = None
        vm.hold()

    def ioctl(self, request: int, argument: int) -> int:
        """The model keeps the state of a guest's vCPU until it is measured; running is the real one's part."""
        if self.real < 0:
            return super().ioctl(request, argument)
        if request == kvm.KVM_RUN and self._vm.runs and (self._measured or not self._vm.hides_state):
            return self._run(argument)
        if not self._vm.sev or (request != kvm.KVM_RUN and not self._vm.hides_state):
            return self.kernel.linux.ioctl(self.real, request, argument)
        result = super().ioctl(request, argument)
        if request == kvm.KVM_SET_CPUID2:
            overlay_state.set_cpuid(self.kernel.linux, self._vm.device, self.real, argument)
        return result

    def start_as_measured(self) -> None:
        """Takes on the state of the save area. Raises OSError if the real KVM refuses it."""
        if self.real < 0:
            return
        try:
            page = self.kernel.control.save_area(self.fd)
        except WrongState:
            return  # its owner launched the guest without it: it cannot be entered
        overlay_state.apply(self.kernel.linux, self.real, page)
        self._measured = True

    def close(self) -> None:
        """The descriptor is closed."""
        page, self._page = self._page, None
        if page is not None:
            self.kernel.linux.unmap(page)
        super().close()
        self._vm.drop()

    def _run(self, argument: int) -> int:
        result = self.kernel.linux.ioctl(self.real, kvm.KVM_RUN, argument)
        if self._vm.sev:
            if self._page is None:
                self._page = self.kernel.linux.map(self.real, kvm.PAGE_SIZE)
            reason = int.from_bytes(self._page[kvm_run.EXIT_REASON : kvm_run.EXIT_REASON + 4], "little")
            found = kvm_run.decode(self._page) if reason == kvm_run.EXIT_HYPERCALL else None
            if isinstance(found, kvm_run.Hypercall):
                self._vm.guest_asks(found)
        return result


def _refusal(number: int) -> OSError:
    return OSError(number, os.strerror(number))
