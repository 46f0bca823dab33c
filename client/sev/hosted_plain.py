"""Launching a plain guest: an ordinary VM that nothing protects, for machines without SEV.

The steps are those of a protected launch (`sev.hosted`), so that one way of running serves all; nothing is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev import guest_operations, hosted
from sev.errors import MalformedInput, UsageError

if TYPE_CHECKING:
    from sev.calls import Operation
    from sev.guest_model import Guest
    from sev.guest_operations import Progress

MAX_FIRMWARE = 16 << 20


def launch_plain(
    firmware: bytes | memoryview,
    vcpus: int = 1,
    *,
    memory_bytes: int | None = None,
    vcpu_signature: int = 0,
    label: str = "",
    progress: Progress | None = None,
) -> Operation[Guest]:
    """Launches a plain guest from a firmware image, where the daemon admits such guests. State afterwards: ready.

    Args:
        firmware: An image whose last bytes are the reset vector; its end lies at 4 GiB. At most 16 MiB.
        vcpus: Number of vCPUs; more than one need an image that says where the others start (OVMF's SEV-ES reset
            block).
        memory_bytes: Bytes of memory; default 64 MiB.
        vcpu_signature: CPUID leaf 1 EAX; 0: the processor's own.
        label: Label of the owner's choosing.
        progress: Called with (step, done, total).

    Raises:
        MalformedInput: The image is empty or too large.
        UsageError: More than one vCPU, and the image does not say where they start.
    """
    size = len(firmware)
    if not 0 < size <= MAX_FIRMWARE:
        raise MalformedInput(f"the firmware image has {size} bytes, expected 1 to {MAX_FIRMWARE}", field="firmware")
    whole = -(-size // hosted.PAGE) * hosted.PAGE
    reset = _reset_address(firmware) if vcpus > 1 else 0
    guest_id = hosted.new_guest_id("plain")
    return hosted.launch_steps(
        guest_id,
        progress or (lambda step, done, total: None),
        create=guest_operations.create_guest(
            guest_type="plain",
            guest_id=guest_id,
            memory_bytes=hosted.DEFAULT_MEMORY if memory_bytes is None else memory_bytes,
            firmware_bytes=whole,
            vcpu_count=vcpus,
            cpuid_signature=vcpu_signature,
            ap_reset_address=reset,
            vmsa_features=0,
            label=label,
        ),
        pieces=[(hosted.FOUR_GIB - size, firmware)],
        start=guest_operations.start_launch(guest_id, policy=0),
        rest=guest_operations.finish_launch(guest_id),
    )


def _reset_address(firmware: bytes | memoryview) -> int:
    from sev.measurement import ovmf

    address = ovmf.Image(bytes(firmware)).u32(ovmf.RESET_BLOCK)
    if not address:
        raise UsageError(
            "the firmware image does not say where the other vCPUs start (it has no SEV-ES reset block)",
            field="vcpus",
            remedy="Use one vCPU, or an OVMF image.",
        )
    return address
