"""The simulated host: firmware, ccp and KVM over one state directory, and processes on top.

    simulator = Simulator.open(directory, product="genoa", firmware_version=None, seed=None)
    process = simulator.process()                # a Kernel: /dev/sev and /dev/kvm, in a descriptor table of its own
    …
    simulator.close()

What it answers beyond the kernel's interface (launch digest, reports and keys as a guest gets them, endorsements) is
the model's own view, which real hardware shows nobody. Nothing here protects anything.
"""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sev import products
from sev.abi import kvm
from sev.errors import FirmwareError, KernelError, UsageError, WrongState
from sevd.devices.facts import HostFacts
from sevd.simulator import faults, guest_player, hardware, kernel_era, versions
from sevd.simulator.ccp import Ccp
from sevd.simulator.errnos import FirmwareRefused, Reply
from sevd.simulator.faults import Fault
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.guest_ref import NAME, GuestRef
from sevd.simulator.kvm import Kvm
from sevd.simulator.kvm_vm import VmFile
from sevd.simulator.process import File, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sev.launch.seam import Kernel

T = TypeVar("T")
SEV_PATH = "/dev/sev"
KVM_PATH = "/dev/kvm"
REPORT_DATA_SIZE = 64
_TECHNOLOGIES = {"sev": kvm.VM_TYPE_SEV, "sev-es": kvm.VM_TYPE_SEV_ES, "sev-snp": kvm.VM_TYPE_SNP}


class Simulator:
    """One simulated host, powered on. Safe for use from several threads."""

    def __init__(
        self,
        firmware: Firmware,
        product: products.Product,
        era: kernel_era.KernelEra,
        *,
        init_ex_path: Path | None = None,
        injected: Iterable[Fault] = (),
    ) -> None:
        self._firmware = firmware
        self._faults = faults.Faults()
        self._product = product
        self._era = era
        self._ccp = Ccp(firmware, era, init_ex_path=init_ex_path)
        firmware.faults = self._faults
        pending = [fault for fault in injected if not self._arm(fault)]
        self._kvm = Kvm(self._ccp, hardware.of(product), product)
        self._ccp.on_power_loss = self._cycle_power
        self._on_power_loss: list[Callable[[], None]] = []
        self._cycling = False
        self._processes: set[Process] = set()
        self._lock = threading.Lock()
        self._closed = False
        for fault in pending:
            self.inject(fault)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        product: str,
        firmware_version: str | None = None,
        seed: int | None = None,
        progress: Callable[[str], None] | None = None,
        kernel_era_name: str = kernel_era.DEFAULT,
        init_ex_path: Path | None = None,
        injected: Iterable[Fault] = (),
    ) -> Simulator:
        """Powers on the host whose state is in a directory; makes it, keys included, if there is none.

        Args:
            directory: State directory.
            product: Processor line: milan, genoa or turin; without SNP naples and rome.
            firmware_version: Such as "1.55.40"; None: what the state says, for a new one the line's newest.
            seed: Makes a new host, and what is random in it, repeatable.
            progress: Told what takes time.
            kernel_era_name: Kernel generation (sevd.simulator.kernel_era).
            init_ex_path: ccp's parameter of that name: a file for the keys of legacy SEV instead of the chip's flash.
            injected: Faults that are there from the beginning, when the kernel initialises the platform too.

        Raises:
            UsageError: No such product, version or era.
            MalformedInput: The stored state is damaged.
        """
        line = products.by_name(product)
        if kernel_era_name not in kernel_era.ERAS:
            known = ", ".join(kernel_era.ERAS)
            raise UsageError(f"no kernel era {kernel_era_name!r}: expected one of {known}", field="kernel_era")
        version = versions.parse(firmware_version) if firmware_version else None
        firmware = Firmware.open(directory, product=line, version=version, seed=seed, progress=progress)
        return cls(firmware, line, kernel_era.ERAS[kernel_era_name], init_ex_path=init_ex_path, injected=injected)

    def process(self, *, memlock: int | None = None) -> Process:
        """A new simulated process.

        Args:
            memlock: Its RLIMIT_MEMLOCK in bytes, which counts for SEV and SEV-ES guests; None: it may lock any number.

        Raises:
            WrongState: The host was switched off.
        """
        with self._lock:
            if self._closed:
                raise WrongState("the simulated host was switched off", metadata={"state": "closed", "allowed": ""})
            process = Process(self.devices, self._processes.discard, memlock=memlock)
            self._processes.add(process)
            return process

    def close(self) -> None:
        """Ends every process and switches the host off; once more does nothing. State stays in the directory."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            processes = list(self._processes)
        self._faults.close()
        for process in processes:
            process.exit()
        self._ccp.shut_down()
        self._ccp.present = False

    @property
    def devices(self) -> Mapping[str, Callable[[int], File]]:
        """What opens its devices, by path, given flags of open(2)."""
        return {SEV_PATH: self._ccp.open, KVM_PATH: self._kvm.open}

    @property
    def firmware(self) -> Firmware:
        """The firmware model itself."""
        return self._firmware

    @property
    def ccp(self) -> Ccp:
        """The driver of /dev/sev."""
        return self._ccp

    @property
    def kvm(self) -> Kvm:
        """KVM."""
        return self._kvm

    @property
    def product(self) -> products.Product:
        """The processor line."""
        return self._product

    @property
    def faults(self) -> Callable[[str], None]:
        """Called with the name of every firmware command before it runs; may raise FirmwareStatus, or TimeoutError.

        It is what `inject` works through; a test may set another.
        """
        return self._firmware.faults

    @faults.setter
    def faults(self, hook: Callable[[str], None]) -> None:
        self._firmware.faults = hook

    def inject(self, fault: Fault) -> None:
        """Brings a fault about: at once, or when its command comes (sevd.simulator.faults)."""
        if self._arm(fault):
            return
        if fault.action == faults.DEAD:
            self._ccp.dead = True
        elif fault.action == faults.POWER_LOSS:
            self._cycle_power()
        else:
            self._faults.clear()

    def injected(self) -> list[tuple[Fault, int]]:
        """The faults that can still happen, each with how often it happened."""
        return self._faults.armed()

    def on_power_loss(self, function: Callable[[], None]) -> None:
        """Has a function called after every power loss, on the thread that met it; it must not wait for anything."""
        self._on_power_loss.append(function)

    def guests(self) -> dict[str, GuestRef]:
        """The guests whose launch was started, by name. Waits for nothing, also while a command hangs."""
        return {vm.guest.guest_id: vm.guest for vm in tuple(self._kvm.vms) if vm.guest.alive}

    def name(self, process: Kernel | Process, vm_fd: int, guest_id: str) -> None:
        """Gives a guest its name.

        Raises:
            UsageError: No guest of this host, no possible name, or one that another guest has.
        """
        file = self._guest(process, vm_fd, snp=False)
        try:
            self._kvm.name(file.vm, guest_id)
        except OSError as error:
            why = "another guest has it" if error.errno == errno.EEXIST else f"expected {NAME.pattern}, not asid-N"
            raise UsageError(f"guest_id {guest_id!r:.60}: {why}", field="guest_id") from None

    def host_facts(self) -> HostFacts:
        """What the machine says about itself."""
        family, model, stepping = self._product.sample_cpuid
        return HostFacts(
            product=self._product.name,
            cpu_family=family,
            cpu_model=model,
            cpu_stepping=stepping,
            kernel=self._era.release,
            technologies=tuple(name for name, number in _TECHNOLOGIES.items() if self._kvm.vm_types >> number & 1),
        )

    def asids(self) -> dict[str, tuple[int, int]]:
        """(total, in use) of the ASIDs "sev" and "sev_es"; SNP guests have those of "sev_es"."""
        return {name: (pool.total, pool.in_use) for name, pool in self._kvm.asids.items()}

    def guest_count(self) -> int:
        """Guests that the firmware knows. Waits for nothing."""
        return self._firmware.guest_count

    def committed_tcb(self) -> int | None:
        """COMMITTED_TCB, raw; None on a line without SNP. Waits for nothing."""
        return self._firmware.committed_tcb if self._product.has_snp else None

    def endorsements(self) -> dict[str, bytes]:
        """The certificates that go with this chip at its reported TCB, DER by kind: ark, ask, vcek and crl; with a
        VLEK loaded also asvk, and vlek if it is for that TCB. None on a line without SNP."""
        if not self._product.has_snp:
            return {}
        with self._ccp.lock:
            ca = self._firmware.ca
            out = {
                "ark": ca.ark_der(),
                "ask": ca.ask_der(),
                "vcek": ca.vcek_der(self._firmware.reported_tcb),
                "crl": ca.crl_der(),
            }
            if self._firmware.vlek_tcb is not None:
                out["asvk"] = ca.asvk_der()
                if self._firmware.vlek_tcb == self._firmware.reported_tcb:
                    out["vlek"] = ca.vlek_der(self._firmware.vlek_tcb)
            return out

    def sev_certificates(self) -> dict[str, bytes]:
        """What vouches for the chip in SEV's own form: the CEK's certificate as signed by the ASK ("cek", 2084 bytes),
        and ASK and ARK in a row ("authorities")."""
        ca = self._firmware.ca  # it has a lock of its own
        return {"cek": ca.cek_certificate(), "authorities": ca.legacy_ca()}

    def roots_pem(self) -> bytes:
        """The simulator's own root certificate, PEM: what verifiers must trust in AMD's place."""
        with self._ccp.lock:
            return self._firmware.ca.roots_pem()

    def launch_digest(self, process: Kernel, vm_fd: int) -> bytes:
        """The firmware's launch digest of a guest so far: 48 bytes, and 32 of an SEV or SEV-ES guest.

        Raises:
            UsageError: Not a guest of this host.
            WrongState: Its launch was not started.
        """
        handle = self._guest(process, vm_fd, snp=False).vm.sev.handle
        if handle:
            return self._look("launch digest", lambda: self._firmware.legacy_digest(handle))
        gctx = self._context(process, vm_fd, snp=False)
        return self._look("launch digest", lambda: self._firmware.launch_digest(gctx))

    def asid(self, process: Kernel, vm_fd: int) -> int:
        """The ASID of a guest, which KVM tells nobody. Raises UsageError: not a guest of this host."""
        return self._guest(process, vm_fd, snp=False).vm.sev.asid

    def guest_report(self, process: Kernel, vm_fd: int, report_data: bytes, vmpl: int, key_selection: int) -> bytes:
        """Plays the guest: MSG_REPORT_REQ through an encrypted guest message; the report, 1184 bytes.

        Args:
            process: The process that owns the guest.
            vm_fd: The guest's VM.
            report_data: 64 bytes.
            vmpl: 0 to 3.
            key_selection: 0: VLEK if one is loaded, else VCEK; 1: VCEK; 2: VLEK.

        Raises:
            FirmwareError: The firmware's status for the request.
            UsageError: Not an SNP guest of this host, or report data of another length.
            WrongState: Its launch was not started.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(
                f"report data: {len(report_data)} bytes where exactly {REPORT_DATA_SIZE} were expected",
                field="report_data",
            )
        gctx = self._context(process, vm_fd)
        return self._ask("MSG_REPORT_REQ", lambda: self._firmware.guest_report(gctx, report_data, vmpl, key_selection))

    def guest_key(self, process: Kernel, vm_fd: int, request: guest_player.GuestKeyRequest) -> bytes:
        """Plays the guest: MSG_KEY_REQ through an encrypted guest message; the key, 32 bytes, secret.

        Raises:
            FirmwareError: The firmware's status for the request.
            UsageError: Not an SNP guest of this host, or a number that does not fit its field.
            WrongState: Its launch was not started.
        """
        gctx = self._context(process, vm_fd)
        message = guest_player.key_request(request)
        return self._ask("MSG_KEY_REQ", lambda: self._firmware.guest_key(gctx, message))

    def _arm(self, fault: Fault) -> bool:
        """Keeps a fault that waits for a command."""
        if fault.command:
            self._faults.add(fault)
        return bool(fault.command)

    def _cycle_power(self) -> None:
        """Power off and on: guests are lost, and the kernel starts again."""
        with self._ccp.lock:
            if self._cycling:
                return
            self._cycling = True
            try:
                self._ccp.power_cycle()
                self._kvm.load()
            finally:
                self._cycling = False
        for function in self._on_power_loss:
            function()

    def _context(self, process: Kernel, vm_fd: int, *, snp: bool = True) -> int:
        context = self._guest(process, vm_fd, snp=snp).vm.sev.context
        if context is None:
            raise WrongState(
                "the launch of this guest was not started", metadata={"state": "created", "allowed": "start"}
            )
        return context

    def _guest(self, process: Kernel, vm_fd: int, *, snp: bool = True) -> VmFile:
        """The VM of a guest: of an SNP guest, or with `snp` False of any that has an ASID."""
        try:
            file = process.take(vm_fd) if isinstance(process, Process) else None
        except OSError:
            file = None
        try:
            wanted = isinstance(file, VmFile) and (file.vm.sev.snp if snp else file.vm.sev.active)
            if not isinstance(file, VmFile) or not wanted or file.vm.module is not self._kvm:
                what = "an SNP guest" if snp else "a guest"
                raise UsageError(f"descriptor {vm_fd} is not {what} of this simulated host", field="vm_fd")
            return file
        finally:
            if file is not None:
                file.drop()

    def _look(self, what: str, function: Callable[[], T]) -> T:
        """Asks the model past the driver, also where the processor is dead."""
        with self._ccp.lock:
            try:
                return function()
            except FirmwareStatus as refused:
                raise FirmwareError(refused.code, command=what) from None

    def _ask(self, command: str, function: Callable[[], T]) -> T:
        try:
            return self._ccp.call(Reply(), function)
        except FirmwareRefused as refused:
            raise FirmwareError(refused.status, command=command) from None
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, command=command) from None
