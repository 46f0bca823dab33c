"""Launching a hosted SEV or SEV-ES guest: predict its digest, fill it, measure it, and let it go on or wait.

    plan      what is measured in which order: `sev.measurement.legacy`, what QEMU would do
    create    the VM with its ASID
    load      firmware image and table of kernel hashes over a stream
    start     LAUNCH_START with the policy, and the owner's session if there is an owner
    measure   LAUNCH_UPDATE_DATA piece by piece, of SEV-ES the vCPUs, LAUNCH_MEASURE
    finish    LAUNCH_FINISH, unless the guest is held for its owner's secrets

A launch that fails, is interrupted or cancelled deletes the guest that it created.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev import guest_operations, hosted, sev_guest_operations
from sev.errors import MalformedInput, UsageError
from sev.guest_model import LaunchedGuest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sev.calls import Operation
    from sev.guest_model import Guest
    from sev.guest_operations import Progress
    from sev.measurement.legacy import LegacyPlan
    from sev.session import LaunchStart

SEV_POLICY = 0x1
"""Policy of an SEV guest when none is given: no debugging."""

SEV_ES_POLICY = 0x5
"""Policy of an SEV-ES guest when none is given: no debugging, encrypted registers."""

NORMAL = 1
"""The page type of all that is measured."""


def launch_sev(
    firmware: bytes | memoryview,
    vcpus: int = 1,
    *,
    vcpu_type: str | None = None,
    vcpu_signature: int | None = None,
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    append: str | None = None,
    memory_bytes: int | None = None,
    policy: int | None = None,
    session: LaunchStart | None = None,
    hold: bool = False,
    label: str = "",
    progress: Progress | None = None,
) -> Operation[LaunchedGuest]:
    """Launches an SEV guest from a firmware image, and predicts the digest it should have.

    Args:
        firmware: OVMF image.
        vcpus: Number of vCPUs; more than one need an image that says where the others start.
        vcpu_type: CPU model as QEMU names them; EPYC-v4 if neither it nor a signature is given.
        vcpu_signature: CPUID leaf 1 EAX instead of a model.
        kernel: Kernel for direct boot; its hash is measured.
        initrd: Initial RAM disk; needs a kernel.
        append: Kernel command line; needs a kernel.
        memory_bytes: Bytes of memory; default 64 MiB.
        policy: Guest policy; the session's, or 0x1.
        session: What the guest's owner made for this platform (`sev.session.Session.start`); none: no owner.
        hold: Stop after the measurement: the owner's secrets come between it and `finish_launch`.
        label: Label of the owner's choosing.
        progress: Called with (step, done, total).

    Raises:
        MalformedInput: The image is malformed.
        UsageError: Options that contradict each other.
    """
    from sev.measurement.legacy import sev_plan

    plan = sev_plan(firmware, kernel=kernel, initrd=initrd, append=append)
    return launch_sev_plan(
        plan,
        vcpus,
        guest_type="sev",
        cpuid_signature=hosted.signature_of(vcpu_type, vcpu_signature),
        memory_bytes=memory_bytes,
        policy=_policy(policy, session, SEV_POLICY),
        session=session,
        hold=hold,
        label=label,
        progress=progress,
    )


def launch_sev_es(
    firmware: bytes | memoryview,
    vcpus: int = 1,
    *,
    vcpu_type: str | None = None,
    vcpu_signature: int | None = None,
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    append: str | None = None,
    guest_features: int = 0,
    memory_bytes: int | None = None,
    policy: int | None = None,
    session: LaunchStart | None = None,
    hold: bool = False,
    label: str = "",
    progress: Progress | None = None,
) -> Operation[LaunchedGuest]:
    """Launches an SEV-ES guest: as `launch_sev`, and its vCPUs are measured too.

    Args:
        firmware: OVMF image.
        vcpus: Number of vCPUs; more than one need an image that says where the others start.
        vcpu_type: CPU model as QEMU names them; EPYC-v4 if neither it nor a signature is given.
        vcpu_signature: CPUID leaf 1 EAX instead of a model.
        kernel: Kernel for direct boot; its hash is measured.
        initrd: Initial RAM disk; needs a kernel.
        append: Kernel command line; needs a kernel.
        guest_features: SEV_FEATURES of the VMSAs.
        memory_bytes: Bytes of memory; default 64 MiB.
        policy: Guest policy; the session's, or 0x5.
        session: What the guest's owner made for this platform; none: no owner.
        hold: Stop after the measurement.
        label: Label of the owner's choosing.
        progress: Called with (step, done, total).

    Raises:
        MalformedInput: The image is malformed, or does not say where the other vCPUs start.
        UsageError: Options that contradict each other.
    """
    from sev.measurement.legacy import sev_es_plan

    signature = hosted.signature_of(vcpu_type, vcpu_signature)
    plan = sev_es_plan(
        firmware,
        vcpus,
        vcpu_signature=signature,
        kernel=kernel,
        initrd=initrd,
        append=append,
        guest_features=guest_features,
    )
    return launch_sev_plan(
        plan,
        vcpus,
        guest_type="sev-es",
        cpuid_signature=signature,
        guest_features=guest_features,
        memory_bytes=memory_bytes,
        policy=_policy(policy, session, SEV_ES_POLICY),
        session=session,
        hold=hold,
        label=label,
        progress=progress,
    )


def launch_sev_plan(
    plan: LegacyPlan,
    vcpus: int,
    *,
    guest_type: str,
    cpuid_signature: int,
    guest_features: int = 0,
    memory_bytes: int | None = None,
    policy: int,
    session: LaunchStart | None = None,
    hold: bool = False,
    label: str = "",
    progress: Progress | None = None,
) -> Operation[LaunchedGuest]:
    """Launches an SEV or SEV-ES guest as a plan says; arguments as `launch_sev` has them, type and policy given.

    Raises:
        MalformedInput: More than one vCPU, and the image does not say where the others start; a table of hashes or an
            area for secrets that lies in no memory.
        UsageError: The memory is too small for what the image names, or a value does not fit.
    """
    if vcpus > 1 and not plan.ap_reset_address:
        raise MalformedInput(
            "the firmware image does not say where the other vCPUs start (it has no SEV-ES reset block)",
            field="firmware",
            remedy="Use one vCPU, or an OVMF image.",
        )
    guest_id = hosted.new_guest_id(guest_type)
    return _launch(
        plan,
        guest_id,
        progress or (lambda step, done, total: None),
        create=guest_operations.create_guest(
            guest_type=guest_type,
            guest_id=guest_id,
            memory_bytes=_memory(plan, memory_bytes),
            firmware_bytes=len(plan.firmware),
            vcpu_count=vcpus,
            cpuid_signature=cpuid_signature,
            ap_reset_address=plan.ap_reset_address if vcpus > 1 else 0,
            vmsa_features=guest_features,
            label=label,
        ),
        start=guest_operations.start_launch(
            guest_id,
            policy=policy,
            owner_certificate=b"" if session is None else session.certificate,
            session=b"" if session is None else session.session,
        ),
        hold=hold,
    )


def _launch(
    plan: LegacyPlan,
    guest_id: str,
    progress: Progress,
    *,
    create: Operation[Guest],
    start: Operation[Guest],
    hold: bool,
) -> Operation[LaunchedGuest]:
    expected = plan.digest()
    pieces: list[tuple[int, bytes]] = [(plan.firmware_gpa, plan.firmware)]
    if plan.kernel_hashes:
        pieces.append((plan.kernel_hashes_gpa, plan.kernel_hashes))
    rest = _measured(guest_id, pieces, progress, hold=hold)
    guest = yield from hosted.launch_steps(guest_id, progress, create=create, pieces=pieces, start=start, rest=rest)
    return LaunchedGuest(guest, expected, plan.secret_gpa, plan.secret_size)


def _measured(guest_id: str, pieces: list[tuple[int, bytes]], progress: Progress, *, hold: bool) -> Operation[Guest]:
    total, done = sum(len(data) for _, data in pieces), 0
    for gpa, size in _runs(pieces):
        progress("measure", done, total)
        yield from guest_operations.update_launch(guest_id, [(gpa, size, NORMAL)])
        done += size
    progress("measure", total, total)
    guest = yield from sev_guest_operations.measure_guest(guest_id)
    if not hold:
        progress("finish", 0, 1)
        guest = yield from guest_operations.finish_launch(guest_id)
        progress("finish", 1, 1)
    return guest


def _runs(pieces: list[tuple[int, bytes]]) -> Iterator[tuple[int, int]]:
    for gpa, data in pieces:
        for at in range(0, len(data), hosted.UPDATE_BYTES):
            yield gpa + at, min(hosted.UPDATE_BYTES, len(data) - at)


def _memory(plan: LegacyPlan, asked: int | None) -> int:
    """Bytes of memory: what was asked for, else the default or what the image's areas need."""
    needed = 0
    for name, gpa, size in (
        ("kernel hashes", plan.kernel_hashes_gpa, len(plan.kernel_hashes)),
        ("secrets", plan.secret_gpa, plan.secret_size),
    ):
        if size and gpa + size > plan.firmware_gpa:
            raise MalformedInput(f"the area for {name}: {gpa:#x} to {gpa + size:#x} is in no memory", field="firmware")
        needed = max(needed, gpa + size)
    needed += -needed % hosted.PAGE
    if asked is None:
        return max(hosted.DEFAULT_MEMORY, needed)
    if asked % hosted.PAGE or asked <= 0:
        raise UsageError(f"memory_bytes is {asked}, expected a multiple of {hosted.PAGE} above 0", field="memory_bytes")
    if asked < needed:
        raise UsageError(f"memory_bytes is {asked}: what the image names needs {needed} bytes", field="memory_bytes")
    return asked


def _policy(policy: int | None, session: LaunchStart | None, default: int) -> int:
    """The policy of a launch: a launch blob is good for one alone."""
    if session is None:
        return default if policy is None else policy
    if policy is not None and policy != session.policy:
        raise UsageError(
            f"policy is {policy:#x}, and the session was made for {session.policy:#x}",
            field="policy",
            remedy="Leave the policy out, or make a session for it.",
        )
    return session.policy
