"""Launching a hosted SNP guest: predict its digest, create it, fill it, launch it, and leave nothing behind on failure.

    plan      which pages are measured in which order: `sev.measurement.plan`, what QEMU would do
    create    the VM with its ASID
    load      firmware and metadata pages over a stream
    start     SNP_LAUNCH_START with the guest policy
    measure   SNP_LAUNCH_UPDATE, region by region in the plan's order
    finish    SNP_LAUNCH_FINISH: the VMSAs, the ID block

A launch that fails, is interrupted or cancelled deletes the guest that it created.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev import guest_operations
from sev.errors import (
    DeviceMissing,
    LimitReached,
    MalformedInput,
    NotFound,
    NotOffered,
    NotPermitted,
    SevError,
    UsageError,
)
from sev.guest_model import LaunchedGuest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sev.calls import Operation
    from sev.guest_model import Guest
    from sev.guest_operations import Progress
    from sev.measurement.plan import LaunchPlan

DEFAULT_POLICY = 0x30000
"""Guest policy when none is given: SMT allowed, the bit that must be one, nothing else."""

DEFAULT_MEMORY = 64 << 20
"""Bytes of memory when none are given and the image does not need more."""

DEFAULT_VCPU_TYPE = "EPYC-v4"
"""CPU model when none is given."""

ID_BLOCK_BYTES = 96
ID_AUTH_BYTES = 4096
AUTHOR_KEY_AT = 0x880
AUTHOR_KEY_BYTES = 0x404
PAGE = 4096
FOUR_GIB = 1 << 32
UPDATE_BYTES = 8 << 20
"""Most bytes of one launch update, so that progress is seen and other guests get their turn."""


def launch_snp(
    firmware: bytes | memoryview,
    vcpus: int = 1,
    *,
    vcpu_type: str | None = None,
    vcpu_signature: int | None = None,
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    append: str | None = None,
    guest_features: int = 0x1,
    memory_bytes: int | None = None,
    policy: int = DEFAULT_POLICY,
    id_block: bytes = b"",
    id_auth: bytes = b"",
    vcek_disabled: bool = False,
    host_data: bytes = b"",
    label: str = "",
    progress: Progress | None = None,
) -> Operation[LaunchedGuest]:
    """Launches an SNP guest from a firmware image, and predicts the digest it should have.

    Args:
        firmware: OVMF image with SEV metadata.
        vcpus: Number of vCPUs.
        vcpu_type: CPU model as QEMU names them; EPYC-v4 if neither it nor a signature is given.
        vcpu_signature: CPUID leaf 1 EAX instead of a model.
        kernel: Kernel for direct boot; its hash is measured.
        initrd: Initial RAM disk; needs a kernel.
        append: Kernel command line; needs a kernel.
        guest_features: SEV_FEATURES of the VMSAs.
        memory_bytes: Bytes of memory; default 64 MiB, or more where the image's metadata lies higher.
        policy: SNP guest policy.
        id_block: ID block, 96 bytes.
        id_auth: ID authentication page, 4096 bytes; needs an ID block.
        vcek_disabled: Forbid the VCEK for this guest.
        host_data: Host data that reports show, 32 bytes.
        label: Label of the owner's choosing.
        progress: Called with (step, done, total).

    Raises:
        MalformedInput: The image is malformed or has no SEV metadata.
    """
    from sev.measurement.plan import snp_plan

    if vcpu_type is None and vcpu_signature is None:
        vcpu_type = DEFAULT_VCPU_TYPE
    plan = snp_plan(
        firmware,
        vcpus,
        vcpu_type=vcpu_type,
        vcpu_signature=vcpu_signature,
        kernel=kernel,
        initrd=initrd,
        append=append,
        guest_features=guest_features,
    )
    return launch_plan(
        plan,
        cpuid_signature=signature_of(vcpu_type, vcpu_signature),
        guest_features=guest_features,
        memory_bytes=memory_bytes,
        policy=policy,
        id_block=id_block,
        id_auth=id_auth,
        vcek_disabled=vcek_disabled,
        host_data=host_data,
        label=label,
        progress=progress,
    )


def launch_plan(
    plan: LaunchPlan,
    *,
    cpuid_signature: int,
    guest_features: int = 0x1,
    memory_bytes: int | None = None,
    policy: int = DEFAULT_POLICY,
    id_block: bytes = b"",
    id_auth: bytes = b"",
    vcek_disabled: bool = False,
    host_data: bytes = b"",
    label: str = "",
    progress: Progress | None = None,
) -> Operation[LaunchedGuest]:
    """Launches an SNP guest as a plan says; arguments as `launch_snp` has them.

    Raises:
        MalformedInput: The plan's image has no SEV metadata, or a page lies outside of memory.
        UsageError: The memory is too small for the image's metadata, or a value does not fit.
    """
    if not plan.has_metadata:
        raise MalformedInput(
            "the firmware image has no SEV metadata: it would not find its secrets and CPUID pages",
            field="firmware",
            remedy="Use an OVMF build with SEV-SNP support, such as OVMF.fd of Debian's ovmf or AmdSev's.",
        )
    if not guest_features & 1:
        raise UsageError(
            f"guest_features is {guest_features:#x}: bit 0 (SNPActive) is set in every SNP guest",
            field="guest_features",
        )
    author_key = check_id_block(id_block, id_auth)
    if len(host_data) not in (0, 32):
        raise UsageError(f"host_data: {len(host_data)} bytes, expected 32", field="host_data")
    firmware_bytes = FOUR_GIB - plan.firmware_gpa
    memory_bytes = _memory(plan, memory_bytes)
    guest_id = new_guest_id()
    return _launch(
        plan,
        guest_id,
        progress or (lambda step, done, total: None),
        create=guest_operations.create_guest(
            guest_id=guest_id,
            memory_bytes=memory_bytes,
            firmware_bytes=firmware_bytes,
            vcpu_count=len(plan.vmsas),
            cpuid_signature=cpuid_signature,
            ap_reset_address=plan.ap_reset_address if len(plan.vmsas) > 1 else 0,
            vmsa_features=guest_features,
            label=label,
        ),
        start=guest_operations.start_launch(guest_id, policy=policy),
        finish=guest_operations.finish_launch(
            guest_id,
            id_block=id_block,
            id_auth=id_auth,
            author_key_enabled=author_key,
            vcek_disabled=vcek_disabled,
            host_data=host_data,
        ),
    )


def _launch(
    plan: LaunchPlan,
    guest_id: str,
    progress: Progress,
    *,
    create: Operation[Guest],
    start: Operation[Guest],
    finish: Operation[Guest],
) -> Operation[LaunchedGuest]:
    expected = plan.digest()
    pieces = [(region.gpa, region.data) for region in plan.regions if region.data is not None]
    rest = _measured(plan, guest_id, progress, finish)
    guest = yield from launch_steps(guest_id, progress, create=create, pieces=pieces, start=start, rest=rest)
    return LaunchedGuest(guest, expected)


def _measured(plan: LaunchPlan, guest_id: str, progress: Progress, finish: Operation[Guest]) -> Operation[Guest]:
    total = sum(region.size for region in plan.regions)
    done = 0
    for batch in _batches(plan):
        progress("measure", done, total)
        yield from guest_operations.update_launch(guest_id, batch)
        done += sum(size for _, size, _ in batch)
    progress("measure", total, total)
    progress("finish", 0, 1)
    guest = yield from finish
    progress("finish", 1, 1)
    return guest


def launch_steps(
    guest_id: str,
    progress: Progress,
    *,
    create: Operation[Guest],
    pieces: Iterable[tuple[int, bytes | memoryview]],
    start: Operation[Guest],
    rest: Operation[Guest],
) -> Operation[Guest]:
    """The calls of any launch: creates the guest, fills it, starts, and does the rest; deletes it where that fails.

    The guest's id is of our choosing, so that it can be deleted even if no answer came. One whose creation the daemon
    has refused was never made.

    Args:
        guest_id: The guest.
        progress: Called with (step, done, total).
        create: Creates it.
        pieces: (address, content) of its memory.
        start: LAUNCH_START.
        rest: What follows; its guest is the answer.
    """
    made = False
    try:
        progress("create", 0, 1)
        yield from create
        made = True
        progress("create", 1, 1)
        yield from guest_operations.load_memory(guest_id, pieces, progress=progress)
        yield from start
        return (yield from rest)
    except GeneratorExit:
        raise
    except BaseException as error:
        if made or not isinstance(error, _NOT_MADE):
            yield from _abandon(guest_id, error)
        raise


_NOT_MADE = (LimitReached, NotPermitted, NotOffered, DeviceMissing, UsageError)
"""Errors of a creation that say that there is no guest; after any other there may be one."""


def _abandon(guest_id: str, error: BaseException) -> Operation[None]:
    """Deletes the guest of a failed launch; where that fails too, the error's remedy says what is left to do."""
    try:
        yield from guest_operations.delete_guest(guest_id)
    except NotFound:
        pass
    except SevError as second:
        if isinstance(error, SevError):
            left = f"The guest {guest_id} may be left: delete it with sev guest delete {guest_id} ({second.message})."
            error.remedy = f"{error.remedy} {left}".strip()


def _batches(plan: LaunchPlan) -> Iterator[list[tuple[int, int, int]]]:
    """The plan's regions in order, cut so that no batch has more than `UPDATE_BYTES`."""
    batch: list[tuple[int, int, int]] = []
    room = UPDATE_BYTES
    for region in plan.regions:
        gpa, left = region.gpa, region.size
        while left:
            size = min(left, room)
            batch.append((gpa, size, region.page_type))
            gpa, left, room = gpa + size, left - size, room - size
            if not room:
                yield batch
                batch, room = [], UPDATE_BYTES
    if batch:
        yield batch


def _memory(plan: LaunchPlan, asked: int | None) -> int:
    """Bytes of memory: what was asked for, else the default or what the metadata needs."""
    needed = 0
    for region in plan.regions:
        end = region.gpa + region.size
        if region.gpa < plan.firmware_gpa < end or end > FOUR_GIB:
            raise MalformedInput(f"{region.name}: {region.gpa:#x} to {end:#x} is in no memory", field="firmware")
        if end <= plan.firmware_gpa:
            needed = max(needed, end)
    if asked is None:
        return max(DEFAULT_MEMORY, needed)
    if asked % PAGE or not asked:
        raise UsageError(f"memory_bytes is {asked}, expected a multiple of {PAGE} above 0", field="memory_bytes")
    if asked < needed:
        raise UsageError(f"memory_bytes is {asked}: the image's metadata needs {needed} bytes", field="memory_bytes")
    return asked


def check_id_block(id_block: bytes, id_auth: bytes) -> bool:
    """Checks the sizes of an ID block and its authentication page; answers whether the page holds an author key.

    Raises:
        UsageError: One without the other.
        MalformedInput: Not 96 and 4096 bytes.
    """
    if not id_block and not id_auth:
        return False
    if not id_block or not id_auth:
        missing, given = ("id_block", "id_auth") if not id_block else ("id_auth", "id_block")
        raise UsageError(f"{given} without {missing}: they belong together", field=missing)
    for name, data, size in (("id_block", id_block, ID_BLOCK_BYTES), ("id_auth", id_auth, ID_AUTH_BYTES)):
        if len(data) != size:
            raise MalformedInput(
                f"{name}: {len(data)} bytes, expected {size}", field=name, remedy="Make them with sev id-block create."
            )
    return any(id_auth[AUTHOR_KEY_AT : AUTHOR_KEY_AT + AUTHOR_KEY_BYTES])


def new_guest_id(guest_type: str = "snp") -> str:
    """A fresh guest id: the guest's type, such as "snp", a hyphen and 12 hexadecimal digits."""
    from os import urandom

    return f"{guest_type}-{urandom(6).hex()}"


def signature_of(vcpu_type: str | None, vcpu_signature: int | None) -> int:
    """CPUID leaf 1 EAX: as given, of a CPU model, or of the default one.

    Raises:
        UsageError: Both, or an unknown model.
    """
    from sev.measurement.vcpu_types import signature

    if vcpu_type is not None and vcpu_signature is not None:
        raise UsageError("a CPU type and a CPU signature were given: give one of them", field="vcpu_signature")
    return signature(vcpu_type or DEFAULT_VCPU_TYPE) if vcpu_signature is None else vcpu_signature
