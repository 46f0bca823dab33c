"""SNP_PLATFORM_STATUS as a plain value; JSON form as in `sev.model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.records import record
from sev.wire import rfc3339, tcb, time, word

if TYPE_CHECKING:
    from datetime import datetime

    from sev.abi.tcb import TcbVersion
    from sev.v1 import snp_platform_pb2


@record
class LoadedVlek:
    """A VLEK that is loaded, and the TCB that it is for.

    If it was not loaded through the daemon, `hashstick_sha256` is empty, `load_time` None, and `tcb` the one that was
    reported when the daemon first saw it.
    """

    tcb: TcbVersion
    hashstick_sha256: str
    load_time: datetime | None

    @classmethod
    def from_message(cls, message: snp_platform_pb2.LoadedVlek) -> LoadedVlek:
        """The VLEK that a message describes."""
        at = time(message.load_time) if message.HasField("load_time") else None
        return cls(tcb(message.tcb), message.hashstick_sha256, at)

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "tcb": self.tcb.document(),
            "hashstick_sha256": self.hashstick_sha256 or None,
            "load_time": rfc3339(self.load_time),
        }


@record
class DesiredPlatform:
    """What the daemon's configuration wants of the platform (empty text or None: nothing), and how it deviates.

    The `actual_` ones are None as long as the platform did not tell. `drift` has a sentence for each deviation.
    """

    reported_tcb: str
    mask_chip_id: bool | None
    mask_chip_key: bool | None
    vlek: str
    actual_reported_tcb: TcbVersion | None
    actual_mask_chip_id: bool | None
    actual_mask_chip_key: bool | None
    actual_vlek: LoadedVlek | None
    drift: tuple[str, ...]
    apply_time: datetime | None

    @classmethod
    def from_message(cls, message: snp_platform_pb2.DesiredPlatform) -> DesiredPlatform:
        """What a message describes."""
        masks = ("mask_chip_id", "mask_chip_key", "actual_mask_chip_id", "actual_mask_chip_key")
        shown = {
            name: getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type]  # it is one
            for name in masks
        }
        return cls(
            reported_tcb=message.reported_tcb,
            vlek=message.vlek,
            actual_reported_tcb=tcb(message.actual_reported_tcb) if message.HasField("actual_reported_tcb") else None,
            actual_vlek=LoadedVlek.from_message(message.actual_vlek) if message.HasField("actual_vlek") else None,
            drift=tuple(message.drift),
            apply_time=time(message.apply_time) if message.HasField("apply_time") else None,
            **shown,
        )

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {
            "reported_tcb": self.reported_tcb or None,
            "mask_chip_id": self.mask_chip_id,
            "mask_chip_key": self.mask_chip_key,
            "vlek": self.vlek or None,
            "actual_reported_tcb": self.actual_reported_tcb.document() if self.actual_reported_tcb else None,
            "actual_mask_chip_id": self.actual_mask_chip_id,
            "actual_mask_chip_key": self.actual_mask_chip_key,
            "actual_vlek": self.actual_vlek.document() if self.actual_vlek else None,
            "drift": list(self.drift),
            "apply_time": rfc3339(self.apply_time),
        }


@record
class SnpStatus:
    """SNP_PLATFORM_STATUS, decoded. `committed_tcb` is None where no report tells it; `raw` has 32 bytes; `vlek` is the
    loaded VLEK."""

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
    vlek: LoadedVlek | None = None

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
            vlek=LoadedVlek.from_message(message.vlek) if message.HasField("vlek") else None,
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
            "vlek": self.vlek.document() if self.vlek else None,
            "rmp_initialized": self.rmp_initialized,
            "alias_check_complete": self.alias_check_complete,
            "feature_info": self.feature_info,
            "rapl_dis": self.rapl_dis,
            "ciphertext_hiding_cap": self.ciphertext_hiding_cap,
            "ciphertext_hiding_en": self.ciphertext_hiding_en,
            "raw": self.raw.hex(),
        }
