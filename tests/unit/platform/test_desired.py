"""What the configuration wants of the platform: read, compared, told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sev import products
from sev.abi.tcb import TcbVersion
from sev.errors import UsageError
from sev.records import replace
from sevd import config
from sevd.platform.desired import Desired, HashStick, WantedTcb, drift_of, parse_tcb
from sevd.platform.status import decode
from sevd.platform.views import SnpStatusView, VlekView
from sevd.platform.vlek import digest_of

TCB = TcbVersion.of(products.GENOA, bootloader=10, tee=0, snp=23, microcode=72)
STICK = bytes(0x190) + TCB.encode() + bytes(432 - 0x198)


def status(reported: TcbVersion = TCB, *, bits: int = 0, vlek: VlekView | None = None) -> SnpStatusView:
    bits |= 4 if vlek is not None else 0
    raw = bytes([1, 55, 1, 1]) + bytes(4) + bits.to_bytes(4, "little") + bytes(4) + TCB.encode() + reported.encode()
    return replace(decode(raw, products.GENOA, None), vlek=vlek)


TCBS: list[tuple[str, WantedTcb]] = [
    ("committed", WantedTcb(committed=True)),
    (" Committed ", WantedTcb(committed=True)),
    ("snp=23", WantedTcb(components={"snp": 23})),
    ("bootloader=10, snp=23", WantedTcb(components={"bootloader": 10, "snp": 23})),
    ("10 0 23 72", WantedTcb(components={"bootloader": 10, "tee": 0, "snp": 23, "microcode": 72})),
    ("1 1 4 81 1", WantedTcb(components={"bootloader": 1, "tee": 1, "snp": 4, "microcode": 81, "fmc": 1})),
    ("481700000000000A", WantedTcb(raw=TCB.raw)),
    ("0x481700000000000a", WantedTcb(raw=TCB.raw)),
]


@pytest.mark.parametrize(("text", "expected"), TCBS, ids=[one[0].strip() for one in TCBS])
def test_a_wanted_tcb(text: str, expected: WantedTcb) -> None:
    assert parse_tcb(text) == expected


WRONG = [
    "current",
    "snp",
    "snp=",
    "snp=256",
    "snp=-1",
    "speed=1",
    "snp=1,,",
    "1 2 3",
    "1 2 3 4 5 6",
    "0" * 16,
    "1f",
    "²",
]


@pytest.mark.parametrize("text", WRONG)
def test_a_wanted_tcb_that_is_none_keeps_the_daemon_from_starting(text: str) -> None:
    for parse in (parse_tcb, lambda text: config.parse(f'platform.reported_tcb = "{text}"'.encode(), "sevd.toml")):
        with pytest.raises(UsageError, match="is no reported TCB") as refused:
            parse(text)
        assert "reported_tcb" in refused.value.field


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_tcb_or_refused(text: str) -> None:
    try:
        found = parse_tcb(text)
    except UsageError:
        return
    assert sum((found.committed, found.components is not None, found.raw is not None)) == 1


def test_the_file_says_what_is_wanted() -> None:
    text = b'[platform]\nreported_tcb = "snp=23"\nmask_chip_id = false\nvlek = "/etc/sevd/vlek.bin"\n'
    wanted = Desired.of(config.parse(text, "sevd.toml"))
    assert wanted == Desired("snp=23", False, None, Path("/etc/sevd/vlek.bin"))
    assert wanted.anything
    assert not Desired.of(config.parse(b"", "sevd.toml")).anything
    for wrong in (
        b"[platform]\nmask_chip_id = 1\n",
        b'[platform]\nvlek = "vlek.bin"\n',
        b"[platform]\nreported_tcb = 7\n",
    ):
        with pytest.raises(UsageError):
            config.parse(wrong, "sevd.toml")


def drift(desired: Desired, found: SnpStatusView, committed: TcbVersion | None = None) -> list[str]:
    return drift_of(desired, found, committed, HashStick.read(desired.vlek) if desired.vlek else None)


def test_nothing_wanted_is_no_drift() -> None:
    assert drift(Desired(), status(bits=3)) == []


def test_tcbs_that_deviate() -> None:
    newer = TCB.replace(snp=24)
    assert drift(Desired("snp=23"), status()) == []
    assert drift(Desired("snp=23"), status(newer)) == [
        "The reported TCB is not the wanted one: snp is 24, wanted is 23."
    ]
    assert drift(Desired(f"{TCB.raw:016x}"), status()) == []
    assert "wanted is 481700000000000a" in drift(Desired(f"{TCB.raw:016x}"), status(newer))[0]
    assert drift(Desired("committed"), status()) == []  # not known
    assert drift(Desired("committed"), status(), TCB) == []
    assert "committed is" in drift(Desired("committed"), status(), newer)[0]
    assert drift(Desired("fmc=1"), status()) == [
        "The reported TCB that is wanted cannot be: Genoa has no component fmc."
    ]


def test_masks_that_deviate() -> None:
    assert drift(Desired(mask_chip_id=True, mask_chip_key=False), status(bits=1)) == []
    found = drift(Desired(mask_chip_id=True, mask_chip_key=False), status(bits=2))
    assert found == ["The chip id is not masked, as it is wanted.", "The chip key is masked, which is not wanted."]


def test_a_vlek_that_deviates(tmp_path: Path) -> None:
    path = tmp_path / "stick.bin"
    wanted = Desired(vlek=path)
    assert "cannot be read: No such file" in drift(wanted, status())[0]
    for size in (0, 431, 433, 100_000):
        path.write_bytes(bytes(size))
        assert "is no hash stick" in drift(wanted, status())[0]
    path.write_bytes(STICK)
    assert drift(wanted, status()) == [f"No VLEK is loaded; wanted is that of {path}."]
    assert drift(wanted, status(vlek=VlekView(TCB, digest_of(STICK)))) == []
    assert "not known to be that of" in drift(wanted, status(vlek=VlekView(TCB)))[0]
    assert "not known to be that of" in drift(wanted, status(vlek=VlekView(TCB, "00" * 32)))[0]
    other = TCB.replace(snp=24)
    (sentence,) = drift(wanted, status(other, vlek=VlekView(TCB, digest_of(STICK))))
    assert str(TCB) in sentence
    assert str(other) in sentence
