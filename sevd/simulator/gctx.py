"""A guest context: everything the firmware keeps about one SNP guest."""

from __future__ import annotations

from dataclasses import dataclass, field

INIT, LAUNCH, RUNNING = 0, 1, 2
"""States of a guest (GSTATE_*), as SNP_GUEST_STATUS shows them."""

NO_AGENT = b"\xff" * 32
"""REPORT_ID_MA of a guest without a migration agent."""

VMPCKS = 4


@dataclass(slots=True)
class GuestContext:
    """One guest.

    Attributes:
        address: The context page's address, which names the guest.
        state: INIT, LAUNCH or RUNNING.
        asid: Bound ASID; 0 while there is none.
        on_core: A vCPU of the guest is on a core, so the ASID is in use this moment.
        policy: Guest policy.
        launch_tcb: LAUNCH_TCB, 8 bytes.
        launch_mitigations: LAUNCH_MIT_VECTOR.
        digest: Launch digest so far, 48 bytes.
        imi_digest: Digest of the initial migration image, for guests that have one.
        imi: The guest takes pages of the initial migration image only.
        gosvw: 16 bytes of the hypervisor, shown in the secrets page.
        desired_tsc_khz: Guest TSC frequency; 0 for the hardware's.
        vmpck: The four communication keys, 32 bytes each.
        counts: Messages counted per key.
        vmrk: Root key of derived keys that move with the guest, 32 bytes.
        report_id: Random, 32 bytes.
        report_id_ma: The migration agent's report id.
        agent: The migration agent's context address, 0 without.
        vcek_disabled: VCEK may not be used for this guest.
        auth_key_en: AUTHOR_KEY_EN of reports.
        id_block_en: An ID block was given.
    """

    address: int
    launch_tcb: bytes
    launch_mitigations: int
    state: int = INIT
    asid: int = 0
    on_core: bool = False
    policy: int = 0
    digest: bytes = bytes(48)
    imi_digest: bytes = bytes(48)
    imi: bool = False
    gosvw: bytes = bytes(16)
    desired_tsc_khz: int = 0
    vmpck: tuple[bytes, ...] = field(default=(), repr=False)
    counts: list[int] = field(default_factory=lambda: [0] * VMPCKS)
    vmrk: bytes = field(default=b"", repr=False)
    report_id: bytes = bytes(32)
    report_id_ma: bytes = NO_AGENT
    agent: int = 0
    vcek_disabled: bool = False
    auth_key_en: bool = False
    id_block_en: bool = False
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    guest_svn: int = 0
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    host_data: bytes = bytes(32)

    def status(self) -> bytes:
        """SNP_GUEST_STATUS, 32 bytes: policy u64, ASID u32, state u8, 3 zeros, flags u32 (b0 VCEK off), rest zero."""
        return (
            self.policy.to_bytes(8, "little")
            + self.asid.to_bytes(4, "little")
            + bytes((self.state, 0, 0, 0))
            + int(self.vcek_disabled).to_bytes(4, "little")
            + bytes(12)
        )
