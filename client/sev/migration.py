"""Moves an SEV guest from one host to another, by way of this program: neither daemon needs to reach the other.

    with sev.connect(here) as source, sev.connect(there) as target:
        guest = sev.migration.migrate(source, target, guest_id, roots=None)

The receiving platform's chain is verified before anything is sent. The guest is whole at the source until everything of
it is at the target: whatever fails before that is undone. It is never at both.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sev.errors import SevError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.certs.sev_roots import SevRoots
    from sev.client import Host
    from sev.guest_model import Guest

    Progress = Callable[[str, int, int], object]


def migrate(
    source: Host,
    target: Host,
    guest_id: str,
    *,
    roots: SevRoots | None = None,
    progress: Progress | None = None,
) -> Guest:
    """Moves a guest of the caller's own, which is launched and does not run; answers it as it is at the target.

    It keeps its id, memory, registers, and which pages it shares; it is READY there.

    Args:
        source: The host where it is.
        target: The host where it goes.
        guest_id: The guest.
        roots: Trusted roots of the target's platform; AMD's if none are given.
        progress: Called with ("send", pages sent, pages in all).

    Raises:
        VerificationError: The target's chain does not reach a trusted root; nothing was begun.
        FirmwareError: POLICY_FAILURE: the guest's policy keeps it; BAD_MEASUREMENT: a packet was changed.
        NotNow, WrongState: It runs, or is not launched.
    """
    from sev.certs import sev_chain

    exported = target.export_platform()
    chain = exported.chain()
    sev_chain.verify(chain, roots=roots)
    theirs = b"".join(one.encode() for one in (chain.pek, chain.oca, chain.cek))
    authorities = exported.authorities or b"".join(one.encode() for one in chain.authorities)
    own = source.export_platform().pdh
    leaving = source.start_sending(guest_id, pdh=exported.pdh, chain=theirs, authorities=authorities)
    guest = leaving.guest
    made = ""
    try:
        created = target.create_guest(
            guest_type="sev",
            guest_id=guest_id,
            memory_bytes=guest.memory_bytes,
            firmware_bytes=leaving.firmware_bytes,
            vcpu_count=guest.vcpu_count,
            cpuid_signature=leaving.cpuid_signature,
            ap_reset_address=leaving.ap_reset_address,
            label=guest.label,
        )
        made = created.guest_id
        target.start_receiving(made, policy=guest.policy, pdh=own, session=leaving.session)
        total = (guest.memory_bytes + leaving.firmware_bytes) // 4096
        position = 0
        while True:
            pages, position = source.send_pages(guest_id, position)
            if pages:
                target.receive_pages(made, pages)
            if progress is not None:
                progress("send", position or total, total)
            if not position:
                break
        source.finish_sending(guest_id, confirm=True)
    except BaseException:
        with contextlib.suppress(SevError):
            if made:
                target.delete_guest(made)
        with contextlib.suppress(SevError):
            source.cancel_sending(guest_id)
        raise
    return target.finish_receiving(made, leaving.vcpus)
