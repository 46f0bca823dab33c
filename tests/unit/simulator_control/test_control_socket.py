"""The control socket: KVM for a process elsewhere, and processes that die."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sev import status
from sev.abi import kvm, kvm_sev
from sev.errors import DeviceMissing, FirmwareError, UsageError, WrongState
from sev.measurement.plan import snp_plan
from sevd.simulator.control_client import ControlClient
from sevd.simulator.overlay import OverlayKernel
from tests.support.control import FIRMWARE, NO_KVM, Served, launch
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]


def test_a_process_elsewhere_launches_a_guest(served: Served, kernel: OverlayKernel) -> None:
    guest, digest = launch(kernel, served.sev)
    assert kernel.launch_digest(guest.vm_fd) == digest
    assert kernel.asid(guest.vm_fd) == 1
    kernel.name(guest.vm_fd, "guest-one")
    assert list(served.simulator.guests()) == ["guest-one"]
    report = kernel.report(guest.vm_fd, bytes(range(64)), 1, 0)
    assert (report[0x50:0x90], report[0x90:0xC0]) == (bytes(range(64)), digest)
    keys = {
        kernel.key(
            guest.vm_fd, root_key=0, key_selection=0, guest_field_select=0, vmpl=vmpl, guest_svn=0, tcb_version=0
        )
        for vmpl in (1, 2)
    }
    assert len(keys) == 2
    guest.close()
    assert served.in_use() == (0, 0)
    kernel.exit()
    eventually(lambda: len(served.server) == 0, "nobody is connected", 10)


def test_without_a_real_kvm_nothing_runs(served: Served, kernel: OverlayKernel) -> None:
    guest, _ = launch(kernel, served.sev)
    vcpu = guest.machine.vcpu_fds[0]
    with pytest.raises(OSError, match="not supported"):
        kernel.ioctl(vcpu, kvm.KVM_RUN)
    with pytest.raises(OSError, match="not supported"):
        kernel.map(vcpu, 4096)
    assert guest.machine.vcpu_mmap_size() == kvm.VCPU_MMAP_SIZE


def test_the_memory_of_a_guest_is_handed_over(served: Served, kernel: OverlayKernel) -> None:
    """What the firmware wrote is in the memfd: the secrets page is not what was given."""
    guest, _ = launch(kernel, served.sev)
    fd, offset = guest.machine.private_pages(0, 4096)
    memory = kernel._files[fd].real
    secrets = next(region for region in snp_plan(FIRMWARE, 2, vcpu_type="EPYC-v4").regions if region.name == "secrets")
    page = os.pread(memory, 4096, offset + secrets.gpa)
    assert page[0x20:0x40] == served.simulator.guests()["asid-1"].vmpck(0)
    for size in (0, 1 << 40):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, size)
    kernel.discard(fd, offset + secrets.gpa, 4096)
    assert os.pread(memory, 4096, offset + secrets.gpa) == bytes(4096)
    for wrong in ((1, 4096), (0, 1), (0, 0)):
        with pytest.raises(OSError, match="Invalid argument"):
            kernel.discard(fd, *wrong)


def test_descriptors_are_the_peers_own_or_the_models(served: Served, kernel: OverlayKernel) -> None:
    """sev_fd is a number of the peer's table: another file, or none, is EBADF, which a start tells as ENOTTY."""
    device = kernel.open(NO_KVM, os.O_RDWR)
    assert device >= 1 << 20
    vm = kernel.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP)

    def op(number: int, data: bytes, sev: int) -> int:
        address = kernel.memory.place(data)
        place = kernel.memory.place(kvm_sev.SevCmd(number, address, 0, sev & 0xFFFFFFFF).encode())
        try:
            kernel.ioctl(vm, kvm.KVM_MEMORY_ENCRYPT_OP, place)
        except OSError as error:
            return error.errno or -1
        finally:
            kernel.memory.release(place)
            kernel.memory.release(address)
        return 0

    assert op(kvm_sev.SEV_INIT2, kvm_sev.SevInit().encode(), 0) == 0
    start = kvm_sev.SnpLaunchStart(0x30000).encode()
    with open(os.devnull, "rb") as other:
        path_only = os.open(served.sev, os.O_PATH)
        for wrong in (other.fileno(), path_only, 999_999, -1, vm, device, 1 << 30):
            assert op(kvm_sev.SNP_LAUNCH_START, start, wrong) == errno.ENOTTY
        os.close(path_only)
    sev = kernel.open(served.sev, os.O_RDONLY)
    assert op(kvm_sev.SNP_LAUNCH_START, start, sev) == 0
    # The number is what counts: closed, it is gone for the finish; opened again there, it is back.
    finish = kvm_sev.SnpLaunchFinish().encode()
    kernel.close(sev)
    assert op(kvm_sev.SNP_LAUNCH_FINISH, finish, sev) == errno.EBADF
    again = kernel.open(served.sev, os.O_RDWR)
    os.dup2(again, sev)
    assert op(kvm_sev.SNP_LAUNCH_FINISH, finish, -1) == 0
    if again != sev:
        os.close(sev)


def test_a_file_that_is_no_guest_memory_cannot_be_bound(served: Served) -> None:
    with ControlClient.connect(served.folder / "control.sock") as control:
        import ctypes

        device = control.open("/dev/kvm", 2)
        vm = control.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP)
        for fd, expected in ((control.fileno(), errno.EINVAL), (device, errno.EINVAL), (1 << 29, errno.EBADF)):
            region = kvm.UserMemoryRegion2(0, kvm.MEM_GUEST_MEMFD, 0, 4096, 0, 0, fd).encode()
            buffer = ctypes.create_string_buffer(region)
            with pytest.raises(OSError, match=r".") as refused:
                control.ioctl(vm, kvm.KVM_SET_USER_MEMORY_REGION2, ctypes.addressof(buffer))
            assert refused.value.errno == expected


def test_one_connections_descriptors_are_nobody_elses(served: Served) -> None:
    with (
        ControlClient.connect(served.folder / "control.sock") as one,
        ControlClient.connect(served.folder / "control.sock") as other,
    ):
        device = one.open("/dev/kvm", 2)
        vm = one.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP)
        for request in (kvm.KVM_CREATE_VCPU, kvm.KVM_CHECK_EXTENSION):
            with pytest.raises(OSError, match="Bad file descriptor"):
                other.ioctl(vm, request, 0)
        with pytest.raises(UsageError, match="not a guest"):
            other.launch_digest(vm)
        with pytest.raises(OSError, match="Bad file descriptor"):
            other.save_area(vm)
        with pytest.raises(OSError, match="No such file"):
            other.open("/dev/sev", 0)


def test_a_save_area_is_there_once_it_was_measured(served: Served, kernel: OverlayKernel) -> None:
    device = kernel.open(NO_KVM, os.O_RDWR)
    vm = kernel.ioctl(device, kvm.KVM_CREATE_VM, kvm.VM_TYPE_SNP)
    vcpu = kernel.ioctl(vm, kvm.KVM_CREATE_VCPU, 0)
    with pytest.raises(WrongState, match="not measured yet"):
        kernel.control.save_area(vcpu)
    with pytest.raises(UsageError, match="no vCPU"):
        kernel.control.save_area(vm)


OWNER = """
    import sys, time
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from tests.support.control import NO_KVM, launch
    from sevd.simulator.overlay import OverlayKernel

    folder = Path({folder!r})
    kept = launch(OverlayKernel(folder, NO_KVM), str(folder / "sev"))
    print("ready", flush=True)
    {then}
"""


@pytest.mark.parametrize("inherited", [False, True], ids=["alone", "its child has the socket"])
def test_a_process_that_is_killed_frees_its_guest_at_once(served: Served, inherited: bool) -> None:
    fork = "import os; child = os.fork(); child or time.sleep(60); print(child, flush=True) if child else None"
    then = f"{fork}; time.sleep(60)" if inherited else "time.sleep(60)"
    program = textwrap.dedent(OWNER).format(root=str(ROOT), folder=str(served.folder), then=then)
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        child = int(owner.stdout.readline()) if inherited else 0
        assert served.in_use() == (1, 1)
        killed = time.monotonic()
        owner.kill()
        eventually(lambda: served.in_use() == (0, 0), "its guest is gone", 10)
        assert time.monotonic() - killed < 2
        eventually(lambda: len(served.server) == 0, "nobody is connected", 10)
    finally:
        owner.kill()
        owner.wait()
        if child:
            os.kill(child, signal.SIGKILL)
        if owner.stdout is not None:
            owner.stdout.close()


def test_the_end_of_the_simulator_is_a_device_that_is_gone(served: Served, kernel: OverlayKernel) -> None:
    guest, _ = launch(kernel, served.sev)
    served.server.close()
    with pytest.raises(OSError, match="gone") as gone:
        kernel.asid(guest.vm_fd)
    assert gone.value.errno == errno.ENODEV
    with pytest.raises(DeviceMissing, match=r"control\.sock"):
        served.kernel()


def test_a_power_loss_ends_who_has_something(served: Served, kernel: OverlayKernel) -> None:
    guest, _ = launch(kernel, served.sev)
    with ControlClient.connect(served.folder / "control.sock") as admin:
        admin.call("power-loss")
        assert served.in_use() == (0, 0)
        assert admin.call("faults") == {"faults": [], "dead": False}
        with pytest.raises(OSError, match="gone"):
            kernel.asid(guest.vm_fd)
    after = served.kernel()
    launch(after, served.sev)
    after.exit()


def test_faults_over_the_socket(served: Served, kernel: OverlayKernel) -> None:
    with ControlClient.connect(served.folder / "control.sock") as control:
        control.fault("SNP_GCTX_CREATE:status=RESOURCE_LIMIT:times=1")
        spec = f"SNP_GCTX_CREATE:status=0x{status.RESOURCE_LIMIT:02x}:times=1"
        assert control.call("faults")["faults"] == [{"spec": spec, "happened": 0}]
        with pytest.raises(UsageError, match="no command"):
            control.fault("NOTHING:hang")
        control.fault("SNP_LAUNCH_START:status=POLICY_FAILURE:times=1")
        control.fault("clear")
        control.fault("SNP_LAUNCH_START:status=POLICY_FAILURE:times=1")
        with pytest.raises(FirmwareError, match="POLICY_FAILURE"):
            launch(kernel, served.sev)
        launch(kernel, served.sev)[0].close()
