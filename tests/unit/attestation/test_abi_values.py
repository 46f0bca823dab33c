"""TCB versions, guest policies and the certificate table: print, compare, parse, refuse."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.abi import cert_table
from sev.abi.policy import BITS, DEFAULT, SnpPolicy
from sev.abi.tcb import TcbVersion
from sev.errors import MalformedInput, UsageError
from sev.products import GENOA, MILAN, NAPLES, TURIN, Product

U64 = st.integers(0, (1 << 64) - 1)
LINES = st.sampled_from([MILAN, GENOA, TURIN])


def test_real_versions_by_line() -> None:
    milan = TcbVersion.parse("db18000000000004", MILAN)
    assert (milan.fmc, milan.bootloader, milan.tee, milan.snp, milan.microcode) == (None, 4, 0, 24, 219)
    assert str(milan) == "bootloader=4,tee=0,snp=24,microcode=219"
    assert milan.document() == {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219, "raw": "db18000000000004"}
    turin = TcbVersion.decode(bytes.fromhex("0101010400000051"), TURIN)
    assert (turin.fmc, turin.bootloader, turin.tee, turin.snp, turin.microcode) == (1, 1, 1, 4, 0x51)
    assert turin == TcbVersion.of(TURIN, fmc=1, bootloader=1, tee=1, snp=4, microcode=0x51)
    assert list(turin.components()) == ["fmc", "bootloader", "tee", "snp", "microcode"]


def test_comparison_is_per_component() -> None:
    low = TcbVersion.of(GENOA, bootloader=4, snp=24, microcode=219)
    mixed = low.replace(bootloader=5, microcode=200)
    assert mixed.exceeding(low) == ("bootloader",)
    assert low.exceeding(mixed) == ("microcode",)
    assert not mixed.at_most(low)
    assert not low.at_most(mixed)
    assert low.at_most(low.replace(snp=25))
    assert low == TcbVersion.parse(str(low), MILAN)
    assert low != low.replace(snp=25)
    assert low != 5
    with pytest.raises(UsageError, match="cannot be compared"):
        low.at_most(TcbVersion.of(TURIN))


@given(U64, LINES)
def test_every_form_reads_back(raw: int, product: Product) -> None:
    version = TcbVersion.from_int(raw, product)
    assert TcbVersion.decode(version.encode(), product) == version
    assert TcbVersion.parse(f"{raw:#x}", product) == version
    assert TcbVersion.parse(f"{raw:016x}", product) == version
    assert TcbVersion.parse(json.dumps(version.document()), product) == version
    assert pickle.loads(pickle.dumps(version)) == version
    assert hash(TcbVersion.from_int(raw, product)) == hash(version)
    named = TcbVersion.parse(str(version), product)
    assert named.raw | version.unknown == raw
    assert named.unknown == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "4", "12345678", "0x", "0xg", "0x1ffffffffffffffff", "db1800000000000g", "bootloader", "bootloader=",
        "bootloader=x", "bootloader=256", "bootloader=-1", "fmc=1", "spl=1", "snp=1,snp=2", "{", "[]", "{\"snp\": true}",
        "{\"snp\": \"1\"}", "{\"raw\": 5}", "{\"raw\": \"snp=1\"}", "{\"raw\": \"db18000000000004\", \"snp\": 25}",
        "{\"ucode\": 1}", "snp=" + "9" * 5000, "{" * 100000,
    ],
)  # fmt: skip
def test_other_texts_are_no_tcb(text: str) -> None:
    with pytest.raises(UsageError):
        TcbVersion.parse(text, MILAN)


def test_tcb_refuses_wrong_sizes_lines_and_changes() -> None:
    for size in (0, 7, 9):
        with pytest.raises(MalformedInput, match=f"{size} bytes, expected 8"):
            TcbVersion.decode(bytes(size), GENOA)
    with pytest.raises(UsageError, match="no SNP"):
        TcbVersion.from_int(0, NAPLES)
    with pytest.raises(UsageError, match="64-bit"):
        TcbVersion.from_int(1 << 64, GENOA)
    with pytest.raises(UsageError, match="fmc"):
        TcbVersion.of(GENOA, fmc=0)
    version = TcbVersion.of(GENOA)
    with pytest.raises(AttributeError, match="immutable"):
        version.raw = 1
    with pytest.raises(AttributeError, match="immutable"):
        del version.raw


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    for parse in (lambda: TcbVersion.parse(text, TURIN), lambda: SnpPolicy.parse(text)):
        try:
            value: Any = parse()
        except UsageError:
            continue
        assert 0 <= value.raw < 1 << 64


def test_policy_bits_by_name() -> None:
    policy = SnpPolicy(0x3001F)
    assert (policy.abi_major, policy.abi_minor, policy.smt, policy.reserved_mbo) == (0, 31, True, True)
    assert not policy.debug
    assert policy.unknown == 0
    for name, bit in BITS.items():
        assert getattr(SnpPolicy(1 << bit), name) is True
        assert sum(getattr(SnpPolicy(1 << bit), other) for other in BITS) == 1
    assert SnpPolicy(1 << 26 | 1 << 63).unknown == 1 << 26 | 1 << 63
    assert "unknown 0x4000000" in str(SnpPolicy(1 << 26))
    assert "bit 17 is zero" in str(SnpPolicy(0))
    assert "smt, debug" in str(SnpPolicy(0xB0000))
    assert DEFAULT == 0x30000


@given(U64)
def test_every_policy_reads_back(raw: int) -> None:
    policy = SnpPolicy(raw)
    assert SnpPolicy.parse(str(raw)) == policy
    assert SnpPolicy.parse(hex(raw)) == policy
    assert SnpPolicy.parse(json.dumps(policy.document())) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(SnpPolicy(raw)) == hash(policy)


def test_policy_from_names() -> None:
    assert SnpPolicy.parse("smt").raw == 0x30000
    assert SnpPolicy.parse("smt, debug, abi=1.55").raw == 0xB0137
    assert SnpPolicy.parse('{"smt": true, "abi_minor": 31}').raw == 0x3001F
    assert SnpPolicy.parse('{"smt": false, "reserved_mbo": false}').raw == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "nothing", "smt,,debug", "-1", "0x10000000000000000", "abi=1", "abi=1.256", "abi=1.5555", "abi=a.b",
        "{", "[]", "{\"smt\": 1}", "{\"dbg\": true}", "{\"raw\": 5}", "{\"raw\": \"zz\"}",
        "{\"raw\": \"0000000000030000\", \"debug\": true}", "{" * 100000,
    ],
)  # fmt: skip
def test_other_texts_are_no_policy(text: str) -> None:
    with pytest.raises(UsageError):
        SnpPolicy.parse(text)


def test_policy_is_immutable() -> None:
    policy = SnpPolicy(0)
    assert policy != 0
    with pytest.raises(AttributeError, match="immutable"):
        policy.raw = 1
    with pytest.raises(AttributeError, match="immutable"):
        del policy.raw
    with pytest.raises(UsageError):
        SnpPolicy(-1)
    with pytest.raises(UsageError, match="unknown bit"):
        SnpPolicy.of(dbg=True)


ENTRIES = st.dictionaries(
    st.binary(min_size=16, max_size=16).filter(any), st.binary(min_size=1, max_size=80), max_size=6
)


@given(ENTRIES, st.integers(0, 64))
def test_tables_read_back(entries: dict[bytes, bytes], padding: int) -> None:
    table = cert_table.build(entries.items())
    assert cert_table.parse(table + bytes(padding)) == list(entries.items())


def _entry(guid: bytes, offset: int, length: int) -> bytes:
    return guid + offset.to_bytes(4, "little") + length.to_bytes(4, "little")


A, B = b"a" * 16, b"b" * 16


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"", "no end entry"),
        (bytes(23), "no end entry"),
        (_entry(A, 24, 1) + b"x", "no end entry"),
        (_entry(bytes(16), 1, 0), "end entry"),
        (_entry(A, 48, 10) + bytes(24) + b"x" * 9, "at 48, length 10"),
        (_entry(A, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(24), "at 4294967295"),
        (_entry(A, 0, 10) + bytes(24) + b"x" * 10, "at 0"),
        (_entry(A, 48, 0) + bytes(24) + b"x", "length 0"),
        (_entry(A, 72, 5) + _entry(B, 74, 5) + bytes(24) + b"x" * 7, "apart from the others"),
        (_entry(A, 72, 1) + _entry(A, 73, 1) + bytes(24) + b"xx", "twice"),
        (_entry(A, 48, 1) + bytes(24) + b"xy", "behind the last content"),
        (b"".join(_entry(bytes([n]) * 16, 24 * 66, 1) for n in range(1, 66)) + bytes(24) + b"x", "more than 64"),
        (bytes((1 << 20) + 1), "at most"),
    ],
)
def test_hostile_tables(table: bytes, message: str) -> None:
    with pytest.raises(MalformedInput, match=message):
        cert_table.parse(table)


@given(st.binary(max_size=200))
def test_random_tables_are_entries_or_malformed(table: bytes) -> None:
    try:
        entries = cert_table.parse(table)
    except MalformedInput:
        return
    assert sum(len(content) for _, content in entries) <= len(table)


@pytest.mark.parametrize(
    "entries",
    [
        [(b"short", b"x")], [(bytes(16), b"x")], [(A, b"")], [(A, b"x"), (A, b"y")], [(A, bytes(1 << 20))],
        [(bytes([n]) * 16, b"x") for n in range(1, 66)],
    ],
)  # fmt: skip
def test_tables_that_cannot_be_built(entries: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(UsageError):
        cert_table.build(entries)
