"""SNP_LAUNCH_START, UPDATE and FINISH as KVM answers them (arch/x86/kvm/svm/sev.c).

Peculiar and true to the kernel: a context that cannot be created is ENOTTY; whatever stops the first page of an update
is EIO, and what stops a later one is success with less done; FINISH encrypts the vCPUs before it looks at the ID block,
so that a failed one cannot be repeated.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from sev import status
from sev.abi import kvm
from sev.abi import kvm_sev as abi
from sev.abi.page_info import VMSA, VMSA_GPA
from sevd.simulator.errnos import FirmwareRefused, Reply, fail
from sevd.simulator.guest_memory import CHUNK_PAGES, HYPERVISOR, PAGE, PRE_GUEST, Chunk

if TYPE_CHECKING:
    from sevd.simulator.kvm_memory import Slot
    from sevd.simulator.kvm_vm import Vm
    from sevd.simulator.process import Process


def launch_start(vm: Vm, process: Process, command: abi.SevCmd, reply: Reply) -> None:
    """id 100: creates the context, starts the launch, binds the ASID."""
    sev, ccp = vm.sev, vm.module.ccp
    if not sev.snp:
        fail(errno.ENOTTY)
    request = abi.SnpLaunchStart.decode(process.memory.read(command.data, abi.SnpLaunchStart.size()))
    if sev.context is not None or request.flags or request.policy & ~vm.module.policy_mask:
        fail(errno.EINVAL)
    if not request.policy & abi.POLICY_RESERVED_MBO:
        fail(errno.EINVAL)
    firmware = ccp.firmware
    try:
        ccp.resolve(process, command.sev_fd)
        context = ccp.call(reply, firmware.snp_gctx_create)
    except OSError:
        fail(errno.ENOTTY)
    tsc_khz = vm.module.hardware.tsc_khz if sev.vmsa_features & abi.VMSA_SECURE_TSC else 0
    try:
        ccp.call(
            reply,
            lambda: firmware.snp_launch_start(context, request.policy, request.gosvw, desired_tsc_khz=tsc_khz),
        )
        sev.fd = command.sev_fd
        ccp.call(reply, lambda: firmware.snp_activate(context, sev.asid))
    except BaseException:
        _discard(vm, context)
        raise
    if vm.dead:
        fail(errno.EIO)
    sev.policy = request.policy
    sev.context = context


def launch_update(vm: Vm, process: Process, command: abi.SevCmd, reply: Reply) -> None:
    """id 101: adds pages of guest_memfd memory, as far as they go."""
    sev, memory = vm.sev, process.memory
    if not sev.snp or sev.context is None:
        fail(errno.EINVAL)
    size = abi.SnpLaunchUpdate.size()
    request = abi.SnpLaunchUpdate.decode(memory.read(command.data, size))
    if not request.len or request.len % PAGE or request.flags or request.type not in abi.PAGE_TYPES:
        fail(errno.EINVAL)
    copied = request.type != abi.PAGE_ZERO
    if copied and (not request.uaddr or request.uaddr % PAGE):
        fail(errno.EINVAL)
    slot = vm.memory.slot_of(request.gfn_start)
    if slot is None or not slot.flags & kvm.MEM_GUEST_MEMFD:
        fail(errno.EINVAL)
    pages = min(request.len // PAGE, slot.end - request.gfn_start)
    done, error = _Update(vm, process, request, slot, command.sev_fd).run(pages)
    if not done:
        reply.error = error
        fail(errno.EIO)
    after = abi.SnpLaunchUpdate(
        gfn_start=request.gfn_start + done,
        uaddr=request.uaddr + (done * PAGE if copied else 0),
        len=request.len - done * PAGE,
        type=request.type,
    )
    memory.write(command.data, after.encode())


def launch_finish(vm: Vm, process: Process, command: abi.SevCmd, reply: Reply) -> None:
    """id 102: encrypts and measures every vCPU, then has the firmware check the ID block."""
    sev, ccp, memory = vm.sev, vm.module.ccp, process.memory
    if not sev.snp:
        fail(errno.ENOTTY)
    context = sev.context
    if context is None:
        fail(errno.EINVAL)
    request = abi.SnpLaunchFinish.decode(memory.read(command.data, abi.SnpLaunchFinish.size()))
    if request.flags:
        fail(errno.EINVAL)
    _encrypt_vcpus(vm, process, context, command.sev_fd, reply)
    block = auth = None
    if request.id_block_en:
        if not request.id_block_uaddr:
            fail(errno.EINVAL)
        block = memory.read(request.id_block_uaddr, abi.ID_BLOCK_SIZE)
        if not request.id_auth_uaddr:
            fail(errno.EINVAL)
        auth = memory.read(request.id_auth_uaddr, abi.ID_AUTH_SIZE)
    ccp.resolve(process, sev.fd)
    ccp.call(
        reply,
        lambda: ccp.firmware.snp_launch_finish(
            context,
            block,
            auth,
            auth_key_en=bool(block and request.auth_key_en),
            vcek_dis=bool(request.vcek_disabled),
            host_data=request.host_data,
        ),
    )
    sev.finished = True


def _encrypt_vcpus(vm: Vm, process: Process, context: int, sev_fd: int, reply: Reply) -> None:
    """Every vCPU in the order of creation, at the one address that the page table cannot show a guest."""
    ccp = vm.module.ccp
    firmware = ccp.firmware
    for vcpu in vm.vcpus:
        page = vcpu.vmsa(vm.sev.vmsa_features)
        ccp.resolve(process, sev_fd)
        states = bytearray((PRE_GUEST,))
        contents, rmp = memoryview(page), memoryview(states)
        ccp.call(reply, partial(firmware.snp_launch_update, context, VMSA, VMSA_GPA, contents, rmp))
        vcpu.page = page
        vcpu.protected = True


def _discard(vm: Vm, context: int) -> None:
    """Decommissions a context that did not become a guest's."""
    firmware = vm.module.ccp.firmware
    try:
        vm.module.ccp.call(Reply(), lambda: firmware.snp_decommission(context))
    except OSError:
        return


class _Update:
    """One SNP_LAUNCH_UPDATE under way."""

    def __init__(self, vm: Vm, process: Process, request: abi.SnpLaunchUpdate, slot: Slot, sev_fd: int) -> None:
        self._vm = vm
        self._process = process
        self._request = request
        self._slot = slot
        self._sev_fd = sev_fd
        self._copied = request.type != abi.PAGE_ZERO

    def run(self, pages: int) -> tuple[int, int]:
        """Adds up to so many pages; answers how many were added, and the firmware's status if it stopped it, else 0."""
        done = 0
        while done < pages:
            added, wanted, error = self._step(done, pages - done)
            done += added
            if added < wanted or not wanted:
                return done, error
        return done, 0

    def _step(self, done: int, left: int) -> tuple[int, int, int]:
        """Adds the next run of pages that nothing stands against: how many, out of how many, and the status."""
        request, slot, memory = self._request, self._slot, self._process.memory
        if slot.memfd is None:
            return 0, 0, 0
        gfn = request.gfn_start + done
        source = request.uaddr + done * PAGE
        chunk, first = slot.memfd.memory.locate(slot.memfd_page + gfn - slot.gfn, left)
        run = chunk.unassigned(first, min(self._vm.memory.private.run(gfn, left), CHUNK_PAGES - first))
        if run and self._copied:
            run = memory.fill(source, chunk.pages(first, run)) // PAGE
        if not run:
            return 0, 0, 0
        added, error = self._add(gfn, chunk, first, run)
        if added < run and request.type == abi.PAGE_CPUID and error == status.INVALID_PARAM:
            # The firmware wrote what it would take; the caller gets to see it.
            memory.write(source + added * PAGE, chunk.pages(first + added, 1))
        return added, run, error

    def _add(self, gfn: int, chunk: Chunk, first: int, run: int) -> tuple[int, int]:
        """Assigns a run of pages and has the firmware add them; answers how many it took, and its status."""
        ccp, context = self._vm.module.ccp, self._vm.sev.context
        assert context is not None
        contents, states = chunk.pages(first, run), chunk.states[first : first + run]
        update = ccp.firmware.snp_launch_update
        reply = Reply()
        states[:] = bytes((PRE_GUEST,)) * run
        try:
            ccp.resolve(self._process, self._sev_fd)
            ccp.call(reply, partial(update, context, self._request.type, gfn * PAGE, contents, states))
        except OSError as refused:
            added = refused.pages_done if isinstance(refused, FirmwareRefused) else 0
            # Reclaimed: the page that was refused, and those never asked for, are the hypervisor's again.
            states[added:] = bytes((HYPERVISOR,)) * (run - added)
            return added, reply.error or 0
        return run, 0
