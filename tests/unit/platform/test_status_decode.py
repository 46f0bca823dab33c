"""SNP_PLATFORM_STATUS: bits one by one, whatever else is set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev import products
from sev.errors import MalformedInput
from sevd.platform import SnpState
from sevd.platform.status import decode

BITS = {
    "mask_chip_id": (8, 0),
    "mask_chip_key": (8, 1),
    "vlek_loaded": (8, 2),
    "feature_info": (8, 3),
    "rapl_dis": (8, 4),
    "ciphertext_hiding_cap": (8, 5),
    "ciphertext_hiding_en": (8, 6),
    "rmp_initialized": (3, 0),
    "alias_check_complete": (3, 1),
}


@given(st.binary(min_size=32, max_size=32), st.sampled_from([products.MILAN, products.GENOA, products.TURIN]))
def test_any_status_decodes(raw: bytes, product: products.Product) -> None:
    found = decode(raw, product, None)
    assert found.raw == raw
    assert found.committed_tcb is None
    assert found.current_tcb.encode() == raw[16:24]
    assert found.reported_tcb.encode() == raw[24:32]
    assert found.firmware_version == (raw[0], raw[1], int.from_bytes(raw[4:8], "little"))
    assert found.guest_count == int.from_bytes(raw[12:16], "little")
    assert found.state == {0: SnpState.UNINIT, 1: SnpState.INIT}.get(raw[2], SnpState.UNSPECIFIED)
    for name, (offset, bit) in BITS.items():
        assert getattr(found, name) == bool(raw[offset] >> bit & 1), name


@pytest.mark.parametrize("size", [0, 12, 31, 33, 64])
def test_another_length(size: int) -> None:
    with pytest.raises(MalformedInput):
        decode(bytes(size), products.GENOA, 0)
