"""SNP_PLATFORM_STATUS as a value. Bits are tested one by one: newer firmware sets ones that have no name yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev.abi import sev_device as abi
from sev.abi.tcb import TcbVersion
from sevd.platform.views import FirmwareVersion, SnpState, SnpStatusView

if TYPE_CHECKING:
    from sev.products import Product

_STATES = {abi.STATE_UNINIT: SnpState.UNINIT, abi.STATE_INIT: SnpState.INIT}


def decode(raw: bytes, product: Product, committed: int | None) -> SnpStatusView:
    """The 32 bytes of SNP_PLATFORM_STATUS.

    Args:
        raw: As the firmware wrote them.
        product: Whose order of TCB bytes applies.
        committed: The committed TCB as a raw integer, where it is known.

    Raises:
        MalformedInput: Not 32 bytes.
    """
    status = abi.SnpStatus.decode(raw)
    bits, flags = status.bits, status.flags
    return SnpStatusView(
        state=_STATES.get(status.state, SnpState.UNSPECIFIED),
        firmware_version=FirmwareVersion(status.api_major, status.api_minor, status.build_id),
        guest_count=status.guest_count,
        current_tcb=TcbVersion.from_int(status.current_tcb, product),
        reported_tcb=TcbVersion.from_int(status.reported_tcb, product),
        committed_tcb=None if committed is None else TcbVersion.from_int(committed, product),
        mask_chip_id=bool(bits & abi.SNP_MASK_CHIP_ID),
        mask_chip_key=bool(bits & abi.SNP_MASK_CHIP_KEY),
        vlek_loaded=bool(bits & abi.SNP_VLEK_EN),
        rmp_initialized=bool(flags & abi.SNP_FLAG_RMP_INITIALIZED),
        alias_check_complete=bool(flags & abi.SNP_FLAG_ALIAS_CHECK_COMPLETE),
        feature_info=bool(bits & abi.SNP_FEATURE_INFO),
        rapl_dis=bool(bits & abi.SNP_RAPL_DIS),
        ciphertext_hiding_cap=bool(bits & abi.SNP_CIPHERTEXT_HIDING_CAP),
        ciphertext_hiding_en=bool(bits & abi.SNP_CIPHERTEXT_HIDING_EN),
        raw=bytes(raw),
    )
