"""SNP_PLATFORM_STATUS as a plain value; JSON form as in `sev.model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.records import record
from sev.wire import tcb, word

if TYPE_CHECKING:
    from sev.abi.tcb import TcbVersion
    from sev.v1 import snp_platform_pb2


@record
class SnpStatus:
    """SNP_PLATFORM_STATUS, decoded. `committed_tcb` is None where no report tells it; `raw` has 32 bytes."""

    state: str
    firmware: str
    api_version: str
    guest_count: int
    current_tcb: TcbVersion
    reported_tcb: TcbVersion
    committed_tcb: TcbVersion | None
    mask_chip_id: bool
    mask_chip_key: bool
    vlek_loaded: bool
    rmp_initialized: bool
    alias_check_complete: bool
    feature_info: bool
    rapl_dis: bool
    ciphertext_hiding_cap: bool
    ciphertext_hiding_en: bool
    raw: bytes

    @classmethod
    def from_message(cls, message: snp_platform_pb2.SnpStatus) -> SnpStatus:
        """The status that a message describes."""
        from sev.v1 import snp_platform_pb2

        version = message.firmware_version
        return cls(
            state=word(snp_platform_pb2.SnpState, "SNP_STATE_", message.state),
            firmware=f"{version.major}.{version.minor}.{version.build}",
            api_version=f"{version.major}.{version.minor}",
            guest_count=message.guest_count,
            current_tcb=tcb(message.current_tcb),
            reported_tcb=tcb(message.reported_tcb),
            committed_tcb=tcb(message.committed_tcb) if message.HasField("committed_tcb") else None,
            mask_chip_id=message.mask_chip_id,
            mask_chip_key=message.mask_chip_key,
            vlek_loaded=message.vlek_loaded,
            rmp_initialized=message.rmp_initialized,
            alias_check_complete=message.alias_check_complete,
            feature_info=message.feature_info,
            rapl_dis=message.rapl_dis,
            ciphertext_hiding_cap=message.ciphertext_hiding_cap,
            ciphertext_hiding_en=message.ciphertext_hiding_en,
            raw=message.raw,
        )

    def document(self) -> dict[str, object]:
        """The JSON form, as `sev snp status --json` prints it."""
        return {
            "state": self.state,
            "firmware": self.firmware,
            "api_version": self.api_version,
            "guest_count": self.guest_count,
            "current_tcb": self.current_tcb.document(),
            "reported_tcb": self.reported_tcb.document(),
            "committed_tcb": self.committed_tcb.document() if self.committed_tcb else None,
            "mask_chip_id": self.mask_chip_id,
            "mask_chip_key": self.mask_chip_key,
            "vlek_loaded": self.vlek_loaded,
            "rmp_initialized": self.rmp_initialized,
            "alias_check_complete": self.alias_check_complete,
            "feature_info": self.feature_info,
            "rapl_dis": self.rapl_dis,
            "ciphertext_hiding_cap": self.ciphertext_hiding_cap,
            "ciphertext_hiding_en": self.ciphertext_hiding_en,
            "raw": self.raw.hex(),
        }
