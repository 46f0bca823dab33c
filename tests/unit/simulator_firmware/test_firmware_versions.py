"""Firmware releases: features, report versions and TCBs by processor line and build."""

from __future__ import annotations

import itertools
import struct

import pytest

from sev import products, status
from sev.errors import UsageError
from sevd.simulator import versions
from sevd.simulator.firmware import Firmware
from tests.support.simulated_firmware import Open, refused


def field(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")


def test_feature_info(firmware: Firmware, open_firmware: Open) -> None:
    assert struct.unpack("<IIII", firmware.snp_feature_info(0)) == (1, 1, 0x37, 0)
    assert struct.unpack("<IIII", firmware.snp_feature_info(1)) == (0x107, 0, 0, 0)
    with refused(status.INVALID_PARAM):
        firmware.snp_feature_info(2)
    turin = open_firmware("turin")
    assert struct.unpack("<IIII", turin.snp_feature_info(0))[2] & 8
    assert field(turin.snp_platform_status(), 8, 4) & 0x28 == 0x28
    old = open_firmware("milan", (1, 52, 4))
    with refused(status.INVALID_COMMAND):
        old.snp_feature_info(0)
    assert not field(old.snp_platform_status(), 8, 4) & 8


@pytest.mark.parametrize(
    ("product", "version", "report", "tcb"),
    [
        ("milan", (1, 51, 3), 2, "0200000000000673"),
        ("milan", (1, 52, 4), 2, "0300000000000873"),
        ("milan", (1, 55, 20), 2, "03000000000016d1"),
        ("milan", (1, 55, 28), 2, "03000000000016d1"),
        ("milan", (1, 55, 29), 3, "04000000000018db"),
        ("milan", (1, 55, 35), 5, "0400000000001bde"),
        ("genoa", (1, 55, 21), 2, "0700000000000e4b"),
        ("genoa", (1, 55, 40), 3, "0a00000000001754"),
        ("genoa", (1, 55, 49), 5, "0a00000000001b58"),
        ("genoa", (1, 58, 3), 5, "0a00000000001b58"),
        ("turin", (1, 55, 61), 5, "0001000200000047"),
        ("turin", (1, 55, 65), 5, "0101010400000051"),
    ],
)
def test_releases(product: str, version: versions.Version, report: int, tcb: str) -> None:
    row = versions.release(products.by_name(product), version)
    assert (row.report_version, row.tcb.hex()) == (report, tcb)


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_defaults_give_version_5_reports(product: str) -> None:
    line = products.by_name(product)
    assert versions.release(line, versions.default(line)).report_version == 5


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_tcbs_never_fall_from_release_to_release(product: str) -> None:
    rows = versions.RELEASES[product]
    for before, after in itertools.pairwise(rows):
        assert before.version < after.version
        assert before.report_version <= after.report_version
        assert all(a <= b for a, b in zip(before.tcb, after.tcb, strict=True))


@pytest.mark.parametrize(
    ("product", "version"), [("milan", (1, 50, 0)), ("turin", (1, 55, 40)), ("genoa", (1, 55, 300))]
)
def test_unknown_versions(product: str, version: versions.Version) -> None:
    with pytest.raises(UsageError, match="no firmware"):
        versions.release(products.by_name(product), version)


def test_a_line_that_cannot_be_simulated() -> None:
    with pytest.raises(UsageError, match="cannot be simulated"):
        versions.default(products.VENICE)


@pytest.mark.parametrize("product", ["naples", "rome"])
def test_lines_before_snp(product: str) -> None:
    line = products.by_name(product)
    row = versions.release(line, versions.default(line))
    assert (row.version, row.tcb, row.features) == (versions.BEFORE_SNP[product][-1].version, bytes(8), None)


@pytest.mark.parametrize("written", ["", "1.55", "1.55.49.1", "1.55.x", "1.55.256", "-1.55.49", "1.55.٤٩"])
def test_what_is_no_version(written: str) -> None:
    with pytest.raises(UsageError, match="no firmware version"):
        versions.parse(written)


def test_versions_as_text() -> None:
    assert versions.parse(" 1.55.49 ") == (1, 55, 49)
    assert versions.text((1, 55, 49)) == "1.55.49"
