"""Programs for the two faces of a simulated host (tests.support.two_faces): launches that mostly go right, and noise."""

from __future__ import annotations

import contextlib
import os
import random

from sev.abi import guest_device, kvm, kvm_sev, kvm_sev_legacy, kvm_vcpu, sev_device
from sevd.simulator.address_space import BASE
from tests.support.two_faces import BUFFERS, DATA, ENVELOPE, NAME, PAGE, RAM, RAM_PAGES, SIZE, Outcome, Step, Write

SEV_IDS = (*range(14), 14, 99, 0xFFFFFFFF)
SEV_IDS_GOOD = tuple(range(13))
SIZES = (0, 1, 8, 16, 63, 64, 65, 2083, 2084, 2085, 6252, 0x4000, 0x4001, 0xFFFF, 1 << 31, 0xFFFFFFFF)
NOWHERE = (0, 8, BASE - 8, BASE + SIZE, 1 << 47, 1 << 63, (1 << 64) - 8)
OTHER_IOCTLS = (0x5300, 0xC0105301, 0xC0105200, 0x80105300, sev_device.SEV_ISSUE_CMD, guest_device.SNP_GET_REPORT)
KVM_IOCTLS = tuple(value for name, value in vars(kvm).items() if name.startswith("KVM_") and isinstance(value, int))
VCPU_STATE = {
    kvm.KVM_GET_REGS: 144, kvm.KVM_SET_REGS: 144, kvm.KVM_GET_SREGS: 312, kvm.KVM_SET_SREGS: 312,
    kvm.KVM_GET_FPU: 416, kvm.KVM_SET_FPU: 416, kvm.KVM_GET_DEBUGREGS: 128, kvm.KVM_SET_DEBUGREGS: 128,
}  # fmt: skip


class Programmer:
    """Makes programs: launches that mostly go right, with noise in between; it sees what the steps answer."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._plan: list[str] = []
        self._handles: dict[str, list[int]] = {}

    def next(self) -> Step:
        """The next step."""
        rng = self._random
        if not self._plan and rng.random() < 0.25:
            self._plan = self._launch()
        if self._plan and rng.random() < 0.75:
            return getattr(self, "_" + self._plan.pop(0))()  # type: ignore[no-any-return]
        noise: tuple[str, ...] = ("issue",) * 6 + ("op",) * 5 + ("system",) * 3 + ("vm",) * 3 + ("state",) * 3
        noise += ("wild",) * 2 + ("guest",) * 3 + ("open", "open", "open", "close", "free", "title", "random_msrs")
        return getattr(self, "_" + rng.choice(noise))()  # type: ignore[no-any-return]

    def learn(self, step: Step, outcome: Outcome) -> None:
        """What a step answered."""
        if step.kind == "drop":
            self._handles.clear()
            self._plan.clear()
        elif step.makes and not outcome.errno:
            kind = step.path if step.kind == "open" else self._made(step.number)
            self._handles.setdefault(kind, []).append(outcome.value)
        elif step.kind == "close":
            for handles in self._handles.values():
                with contextlib.suppress(ValueError):
                    handles.remove(step.handle)

    def _made(self, request: int) -> str:
        return {kvm.KVM_CREATE_VM: "vm", kvm.KVM_CREATE_VCPU: "vcpu", kvm.KVM_CREATE_GUEST_MEMFD: "memfd"}[request]

    def _launch(self) -> list[str]:
        rng = self._random
        vcpus = ["vcpu"] * rng.randrange(3)
        if rng.random() < 0.4:
            updates, asked = ["data"] * rng.randrange(1, 4), ["measure", "measure"][: rng.randrange(3)]
            steps = ["sev", "kvm", rng.choice(("older", "encrypted")), "init2", *vcpus, "begin", *updates, "vmsa"]
            return [*steps, *asked, "secret", "end", "status", "debug", "attest"]
        updates, asked = ["update"] * rng.randrange(1, 4), ["report"] * rng.randrange(1, 4)
        steps = ["sev", "kvm", "machine", "init2", "title", *vcpus, "memfd", "region", "private", "start", *updates]
        return [*steps, "finish", "enter", *asked]

    # A launch of an SEV or SEV-ES guest.

    def _older(self) -> Step:
        return Step("ioctl", self._last("kvm"), kvm.KVM_CREATE_VM, kvm.VM_TYPE_SEV, makes=True)

    def _encrypted(self) -> Step:
        return Step("ioctl", self._last("kvm"), kvm.KVM_CREATE_VM, kvm.VM_TYPE_SEV_ES, makes=True)

    def _begin(self) -> Step:
        policy = self._random.choice((0, 1, 5, 0x8))
        return self._command(kvm_sev.LAUNCH_START, kvm_sev_legacy.LaunchStart(policy=policy).encode())

    def _data(self) -> Step:
        rng = self._random
        size = rng.choice((PAGE, 16, 5 * PAGE, 7))
        data = kvm_sev_legacy.LaunchUpdateData(BASE + RAM + rng.choice((0, 16, PAGE, 3 * PAGE)), size).encode()
        return self._command(kvm_sev.LAUNCH_UPDATE_DATA, data)

    def _vmsa(self) -> Step:
        return self._command(kvm_sev.LAUNCH_UPDATE_VMSA, b"")

    def _measure(self) -> Step:
        data = kvm_sev_legacy.LaunchMeasure(BASE + BUFFERS, self._random.choice((0, 48, 48, 16, 100))).encode()
        return self._command(kvm_sev.LAUNCH_MEASURE, data)

    def _secret(self) -> Step:
        data = kvm_sev_legacy.LaunchSecret(BASE + BUFFERS, 52, BASE + RAM, 32, BASE + BUFFERS + 0x100, 32).encode()
        return self._command(kvm_sev.LAUNCH_SECRET, data)

    def _end(self) -> Step:
        return self._command(kvm_sev.LAUNCH_FINISH, b"")

    def _status(self) -> Step:
        return self._command(kvm_sev.GUEST_STATUS, bytes(12))

    def _debug(self) -> Step:
        number = self._random.choice((kvm_sev.DBG_DECRYPT, kvm_sev.DBG_ENCRYPT))
        size = self._random.choice((16, 33, PAGE))
        return self._command(number, kvm_sev_legacy.Debug(BASE + RAM, BASE + RAM + 9 * PAGE, size).encode())

    def _attest(self) -> Step:
        data = kvm_sev_legacy.AttestationReport(uaddr=BASE + BUFFERS, len=self._random.choice((0, 0x1000)))
        return self._command(kvm_sev.GET_ATTESTATION_REPORT, data.encode())

    # A launch.

    def _sev(self) -> Step:
        return Step("open", number=os.O_RDONLY, path="sev", makes=True)

    def _kvm(self) -> Step:
        return Step("open", number=os.O_RDWR, path="kvm", makes=True)

    def _machine(self) -> Step:
        return Step("ioctl", self._last("kvm"), kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP, makes=True)

    def _init2(self) -> Step:
        return self._command(kvm_sev.SEV_INIT2, kvm_sev.SevInit().encode())

    def _vcpu(self) -> Step:
        return Step("ioctl", self._last("vm"), kvm.KVM_CREATE_VCPU, self._random.randrange(4), makes=True)

    def _memfd(self) -> Step:
        data = kvm.CreateGuestMemfd(RAM_PAGES * PAGE).encode()
        return self._make("vm", kvm.KVM_CREATE_GUEST_MEMFD, data, makes=True)

    def _region(self) -> Step:
        data = kvm.UserMemoryRegion2(0, kvm.MEM_GUEST_MEMFD, 0, RAM_PAGES * PAGE, BASE + RAM).encode()
        at = DATA + kvm.UserMemoryRegion2.offsets()["guest_memfd"][0]
        writes = (Write(DATA, data), Write(at, handle=self._last("memfd")))
        return Step("ioctl", self._last("vm"), kvm.KVM_SET_USER_MEMORY_REGION2, BASE + DATA, writes=writes)

    def _private(self) -> Step:
        data = kvm.MemoryAttributes(0, RAM_PAGES * PAGE, kvm.MEMORY_ATTRIBUTE_PRIVATE).encode()
        return self._make("vm", kvm.KVM_SET_MEMORY_ATTRIBUTES, data)

    def _start(self) -> Step:
        return self._command(kvm_sev.SNP_LAUNCH_START, kvm_sev.SnpLaunchStart(0x30000).encode())

    def _update(self) -> Step:
        rng = self._random
        page_type = rng.choice((1, 1, 3, 4, 5, 6))
        pages = rng.choice((1, 1, 2, 5, RAM_PAGES)) if page_type in (1, 3, 4) else 1
        first = rng.randrange(RAM_PAGES)
        source = BASE + RAM + first * PAGE
        data = kvm_sev.SnpLaunchUpdate(first, source, pages * PAGE, page_type).encode()
        return self._command(kvm_sev.SNP_LAUNCH_UPDATE, data)

    def _finish(self) -> Step:
        data = kvm_sev.SnpLaunchFinish(host_data=self._random.randbytes(32)).encode()
        return self._command(kvm_sev.SNP_LAUNCH_FINISH, data)

    def _enter(self) -> Step:
        return Step("open", number=os.O_RDWR, path="guest", makes=True)

    # Noise.

    def _issue(self) -> Step:
        rng = self._random
        number = rng.choice(SEV_IDS_GOOD if rng.random() < 0.8 else SEV_IDS)
        data = self._contents(number)
        address = BASE + DATA if rng.random() < 0.9 else rng.choice(NOWHERE)
        envelope = sev_device.IssueCmd(number, address, rng.choice((0, 0xA5A5A5A5))).encode()
        where = BASE + ENVELOPE
        return Step(
            "ioctl", self._any("sev"), sev_device.SEV_ISSUE_CMD, where,
            writes=(Write(ENVELOPE, envelope), Write(DATA, data)),
        )  # fmt: skip

    def _contents(self, number: int) -> bytes:
        rng = self._random
        one, other = (self._place() for _ in range(2))
        size, length = rng.choice(SIZES), rng.choice(SIZES)
        if number in (sev_device.PEK_CSR, sev_device.GET_ID2):
            return sev_device.PekCsr(one, size).encode()
        if number in (sev_device.PDH_CERT_EXPORT, sev_device.PEK_CERT_IMPORT):
            return sev_device.PdhCertExport(one, size, other, length).encode()
        if number == sev_device.SNP_SET_CONFIG:
            # No other TCB that is possible: the certificate which it takes is made with a salt and a date.
            config = sev_device.SnpConfig(rng.choice((0, 0, rng.getrandbits(64))), rng.choice((0, 1, 2, 3, 4)))
            return config.encode()
        if number == sev_device.SNP_VLEK_LOAD:
            return sev_device.SnpVlekLoad(rng.choice((16, 16, 0)), rng.choice((0, 0, 1)), one).encode()
        return rng.randbytes(64)

    def _op(self) -> Step:
        rng = self._random
        number = rng.choice((*range(24), 100, 101, 102, 103, 104, 1 << 31))
        choices = (
            lambda: rng.randbytes(96),
            lambda: bytes(96),
            kvm_sev.SevInit(rng.choice((0, 0, 1, 32, 512)), rng.choice((0, 0, 1)), rng.choice((0, 1, 2, 3))).encode,
            kvm_sev.SnpLaunchStart(rng.choice((0x30000, 0x20000, 0x10000, 0xB0000, 1 << 40))).encode,
            kvm_sev.SnpLaunchUpdate(
                rng.randrange(RAM_PAGES + 4), self._place(), rng.choice((PAGE, 0, 5, 3 * PAGE)), rng.randrange(8)
            ).encode,
            kvm_sev.SnpLaunchFinish(self._place(), self._place(), rng.randrange(2), rng.randrange(2)).encode,
        )
        return self._command(number, rng.choice(choices)(), BASE + DATA if rng.random() < 0.85 else rng.choice(NOWHERE))

    def _system(self) -> Step:
        rng = self._random
        request = rng.choice(
            (kvm.KVM_GET_API_VERSION, kvm.KVM_CHECK_EXTENSION, kvm.KVM_GET_VCPU_MMAP_SIZE, kvm.KVM_CREATE_VM,
             kvm.KVM_GET_DEVICE_ATTR, kvm.KVM_HAS_DEVICE_ATTR, kvm.KVM_GET_SUPPORTED_CPUID)
        )  # fmt: skip
        if request == kvm.KVM_CREATE_VM:
            return Step("ioctl", self._any("kvm"), request, rng.randrange(7), makes=True)
        if request in (kvm.KVM_GET_DEVICE_ATTR, kvm.KVM_HAS_DEVICE_ATTR):
            data = kvm.DeviceAttr(0, rng.randrange(3), rng.randrange(4), self._place()).encode()
            return self._make("kvm", request, data)
        if request == kvm.KVM_GET_SUPPORTED_CPUID:
            return self._make("kvm", request, bytes(kvm_vcpu.empty_cpuid(rng.choice((0, 10, 256)))), at=BUFFERS)
        return Step("ioctl", self._any("kvm"), request, rng.choice((0, 0, rng.randrange(260))))

    def _vm(self) -> Step:
        rng = self._random
        what = rng.randrange(6)
        if what == 0:
            return Step("ioctl", self._any("vm"), kvm.KVM_CREATE_VCPU, rng.choice((0, 1, 2, 5000)), makes=True)
        if what == 1:
            size = rng.choice((0, 5, PAGE, 16 * PAGE, 1 << 63))
            data = kvm.CreateGuestMemfd(size, rng.choice((0, 0, 1, 2, 4))).encode()
            return self._make("vm", kvm.KVM_CREATE_GUEST_MEMFD, data, makes=True)
        if what == 2:
            data = kvm.MemoryAttributes(
                rng.choice((0, PAGE, 7, 1 << 60)), rng.choice((0, PAGE, 9 * PAGE)), rng.choice((0, 8, 8, 1)), 0
            ).encode()
            return self._make("vm", kvm.KVM_SET_MEMORY_ATTRIBUTES, data)
        if what == 3:
            request = rng.choice((kvm.KVM_MEMORY_ENCRYPT_REG_REGION, kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION))
            data = kvm.EncRegion(self._place(), rng.choice((0, PAGE, 1 << 63))).encode()
            return self._make("vm", request, data)
        if what == 4:
            data = kvm.EnableCap(rng.choice((kvm.CAP_EXIT_HYPERCALL, 1)), 0, rng.choice((0, 1 << 12, 1))).encode()
            return self._make("vm", kvm.KVM_ENABLE_CAP, data)
        flags = rng.choice((0, kvm.MEM_GUEST_MEMFD, kvm.MEM_READONLY))
        region = kvm.UserMemoryRegion2(
            rng.randrange(4), flags, rng.choice((0, PAGE, 1 << 32, 3)), rng.choice((0, PAGE, 4 * PAGE)), BASE + RAM
        )
        at = DATA + kvm.UserMemoryRegion2.offsets()["guest_memfd"][0]
        writes = (Write(DATA, region.encode()), Write(at, handle=self._any(rng.choice(("memfd", "vm", "sev")))))
        return Step("ioctl", self._any("vm"), kvm.KVM_SET_USER_MEMORY_REGION2, BASE + DATA, writes=writes)

    def _state(self) -> Step:
        rng = self._random
        request, size = rng.choice(tuple(VCPU_STATE.items()))
        if rng.random() < 0.1:
            return Step("ioctl", self._any("vcpu"), kvm.KVM_RUN, rng.choice((0, 0, 1)))
        return self._make("vcpu", request, rng.choice((bytes(size), rng.randbytes(size))))

    def _random_msrs(self) -> Step:
        rng = self._random
        entries = [
            kvm_vcpu.MsrEntry(rng.choice((0x277, 0x174, 0xC0000081, 0x10)), rng.choice((0, kvm_vcpu.PAT_RESET, 2)))
            for _ in range(rng.randrange(4))
        ]
        request = rng.choice((kvm.KVM_GET_MSRS, kvm.KVM_SET_MSRS))
        return self._make("vcpu", request, kvm_vcpu.encode_list(entries))

    def _wild(self) -> Step:
        rng = self._random
        kind = rng.choice(("sev", "kvm", "vm", "vcpu", "memfd", "guest", "nothing"))
        served = kind in ("sev", "guest")
        request = rng.choice(OTHER_IOCTLS if served else (*OTHER_IOCTLS, *KVM_IOCTLS, rng.getrandbits(32)))
        # The kernel itself copies what a request's number says, before a served file's server is asked.
        argument = BASE + DATA if served else rng.choice((BASE + DATA, *NOWHERE))
        makes = request in (kvm.KVM_CREATE_VM, kvm.KVM_CREATE_VCPU, kvm.KVM_CREATE_GUEST_MEMFD)
        return Step("ioctl", self._any(kind), request, argument, writes=(Write(DATA, rng.randbytes(160)),), makes=makes)

    def _report(self) -> Step:
        request = guest_device.ReportRequest(self._random.randbytes(64), self._random.randrange(4)).encode()
        return self._ask(guest_device.SNP_GET_REPORT, request)

    def _guest(self) -> Step:
        rng = self._random
        what = rng.randrange(3)
        if what == 0:
            return self._report()
        if what == 1:
            key = guest_device.DerivedKeyRequest(
                root_key_select=rng.randrange(2), guest_field_select=rng.choice((0, 1, 0x3F)), vmpl=rng.randrange(4)
            )
            return self._ask(guest_device.SNP_GET_DERIVED_KEY, key.encode())
        report = guest_device.ReportRequest(rng.randbytes(64), 0)
        extended = guest_device.ExtReportRequest(report, rng.choice((0, BASE + RAM)), rng.choice((0, PAGE, 0x4000, 5)))
        return self._ask(guest_device.SNP_GET_EXT_REPORT, extended.encode())

    def _ask(self, request: int, data: bytes) -> Step:
        rng = self._random
        version = rng.choice((1, 1, 1, 0, 2))
        good = rng.random() < 0.9
        where = BASE + BUFFERS if good else rng.choice(NOWHERE)
        envelope = guest_device.GuestRequestIoctl(version, BASE + DATA, where, 0).encode()
        writes = (Write(ENVELOPE, envelope), Write(DATA, data))
        return Step("ioctl", self._any("guest"), request, BASE + ENVELOPE, writes=writes)

    def _open(self) -> Step:
        path = self._random.choice(("sev", "sev", "sev", "kvm", "guest"))
        flags = self._random.choice((os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_PATH))
        return Step("open", number=flags, path=path, makes=True)

    def _close(self) -> Step:
        if self._random.random() < 0.4:
            return Step("drop")
        return Step("close", self._any(self._random.choice(("sev", "kvm", "vm", "vcpu", "memfd", "guest"))))

    def _free(self) -> Step:
        offset = self._random.choice((0, PAGE, 7, 1 << 40))
        return Step("discard", self._any("memfd"), offset, self._random.choice((PAGE, 0, 5, 8 * PAGE)))

    def _title(self) -> Step:
        return Step("name", self._last("vm"), path=NAME)

    # Helpers.

    def _command(self, number: int, data: bytes, address: int = BASE + DATA) -> Step:
        envelope = kvm_sev.SevCmd(number, address, 0xA5A5A5A5, 0).encode()
        sev_fd = self._last("sev") if self._random.random() < 0.95 else self._any("vm")
        at = ENVELOPE + kvm_sev.SevCmd.offsets()["sev_fd"][0]
        writes = (Write(ENVELOPE, envelope), Write(at, handle=sev_fd), Write(DATA, data))
        vm = self._last("vm") if self._random.random() < 0.9 else self._any("vm")
        return Step("ioctl", vm, kvm.KVM_MEMORY_ENCRYPT_OP, BASE + ENVELOPE, writes=writes)

    def _make(self, kind: str, request: int, data: bytes, *, makes: bool = False, at: int = DATA) -> Step:
        handle = self._last(kind)
        return Step("ioctl", handle, request, BASE + at, writes=(Write(at, data),), makes=makes)

    def _place(self) -> int:
        rng = self._random
        if rng.random() < 0.1:
            return rng.choice(NOWHERE)
        return BASE + rng.choice((BUFFERS, BUFFERS + 0x5001, RAM, RAM + 5 * PAGE))

    def _last(self, kind: str) -> int:
        handles = self._handles.get(kind)
        return handles[-1] if handles else -1

    def _any(self, kind: str) -> int:
        handles = self._handles.get(kind)
        return self._random.choice(handles) if handles else -1
