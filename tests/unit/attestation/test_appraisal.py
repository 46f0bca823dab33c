"""Policies: every field, floors, ceilings, lists, bits; what is not known is an error; all checks are listed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.abi.policy import SnpPolicy
from sev.abi.tcb import TcbVersion
from sev.attestation import Appraisal, Policy, VerifiedReport, appraise, verify
from sev.attestation.policy import fields
from sev.errors import AppraisalError, UsageError
from sev.products import GENOA, TURIN
from tests.support import forge
from tests.support.forge import World

WORLD = World()


def genuine(world: World = WORLD, **changes: Any) -> VerifiedReport:
    return verify(world.report(**changes), world.collateral(), at=forge.AT, roots=world.roots())


VERIFIED = genuine(
    guest_svn=7,
    vmpl=1,
    policy=0x3001F | 1 << 20,
    key_info=1,
    family_id=b"f" * 16,
    image_id=b"i" * 16,
    host_data=b"h" * 32,
    id_key_digest=b"k" * 48,
    author_key_digest=b"a" * 48,
    report_id=b"r" * 32,
    current_tcb=WORLD.tcb(microcode=0xDC),
    current_version=bytes((60, 55, 1)),
)
VLEK = verify(
    WORLD.report(key_info=4, chip_id=bytes(64)), WORLD.collateral(WORLD.leaf("vlek")), at=forge.AT, roots=WORLD.roots()
)


def result(verified: VerifiedReport, **rules: Any) -> Appraisal:
    return appraise(verified, Policy(**rules))


MATRIX: dict[str, list[tuple[Any, bool]]] = {
    "version": [(5, True), (4, False), ([3, 5], True), ({"min": 3}, True), ({"max": 4}, False)],
    "guest_svn": [(7, True), ({"min": 7}, True), ({"min": 8}, False), ({"min": 1, "max": 9}, True), ("0x7", True)],
    "vmpl": [(1, True), (0, False), ({"max": 1}, True), ({"max": 0}, False)],
    "signature_algo": [(1, True), (2, False)],
    "family_id": [("66" * 16, True), ("00" * 16, False), (b"f" * 16, True)],
    "image_id": [("69" * 16, True), ("00" * 16, False)],
    "report_data": [(bytes(range(64)).hex(), True), ("00" * 64, False)],
    "measurement": [(bytes(range(48)).hex().upper(), True), (["00" * 48, bytes(range(48)).hex()], True), (["00" * 48], False)],
    "host_data": [("68" * 32, True), ("00" * 32, False)],
    "id_key_digest": [("6b" * 48, True), ("00" * 48, False)],
    "author_key_digest": [("61" * 48, True), ("00" * 48, False)],
    "report_id": [("72" * 32, True), ("00" * 32, False)],
    "report_id_ma": [("ff" * 32, True), ("00" * 32, False)],
    "chip_id": [(WORLD.hwid.hex(), True), ("00" * 64, False)],
    "author_key_en": [(True, True), (False, False)],
    "mask_chip_key": [(False, True), (True, False)],
    "signing_key": [("vcek", True), ("vlek", False), (["vlek", "vcek"], True)],
    "product": [("genoa", True), ("Siena", True), ("milan", False), (["milan", "turin"], False)],
    "csp_id": [("CN=cc-test.example.com", False)],
    "cpuid_fam_id": [(0x19, True), (0x1A, False)],
    "cpuid_mod_id": [(0x11, True), ({"min": 0x12}, False)],
    "cpuid_step": [(1, True), (2, False)],
    "reported_tcb": [
        ({"min": {"bootloader": 4, "snp": 4}}, True),
        ({"min": {"bootloader": 4, "snp": 5}}, False),
        ({"min": {"bootloader": 3, "microcode": 0xDC}}, False),
        ({"min": {"fmc": 0}}, False),
        ({"max": {"snp": 4}}, True),
        ({"max": {"snp": 3}}, False),
        ({"snp": 4, "tee": 4}, True),
        ({"snp": 3}, False),
        ({"snp": {"min": 4, "max": 9}, "tee": 4}, True),
        ({"snp": {"min": 5}, "tee": 4}, False),
        ("db04000000000404", True),
        ("db04000000000403", False),
        ({"min": "da04000000000404"}, True),
        ({"min": "dc00000000000000"}, False),
        ({"max": "ffffffffffffffff"}, True),
        ({"max": "00ffffffffffffff"}, False),
        ({"min": "bootloader=4,snp=4"}, True),
        ([{"snp": 3}, {"snp": 4}], True),
        ([{"min": {"snp": 5}}, {"min": {"snp": 6}}], False),
        (TcbVersion.of(GENOA, bootloader=4, tee=4, snp=4, microcode=0xDB), True),
        (TcbVersion.of(GENOA, bootloader=4, tee=4, snp=4, microcode=0xDB).document(), True),
    ],
    "current_tcb": [({"microcode": 0xDC}, True), ({"microcode": 0xDB}, False)],
    "committed_tcb": [({"microcode": 0xDB}, True), ({"min": {"microcode": 0xDC}}, False)],
    "launch_tcb": [({"min": {"tee": 4}}, True), ({"min": {"tee": 5}}, False)],
    "current_version": [
        ("1.55.60", True), ({"min": "1.55.29"}, True), ({"min": "1.56.0"}, False), ({"max": "1.55.60"}, True),
        ({"min": "1.9.0"}, True), ({"max": "1.54.99"}, False), (["1.55.49", "1.55.60"], True),
    ],
    "committed_version": [("1.55.49", True), ({"min": "1.55.50"}, False)],
    "current_build": [({"min": 60}, True), ({"min": 61}, False)],
    "current_major": [(1, True), (2, False)],
    "current_minor": [(55, True), (54, False)],
    "committed_build": [(49, True), (60, False)],
    "committed_major": [(1, True), (0, False)],
    "committed_minor": [(55, True), (0, False)],
    "provisional": [(True, True), (False, False)],
    "launch_mit_vector": [(0xB, True), ({"min": 0x3}, True), ({"min": 0x4}, False), ({"max": 0xF}, True), ({"max": 0x3}, False)],
    "current_mit_vector": [("0xb", True), ({"min": "0x8"}, True), ({"min": "0x10"}, False)],
    "key_info": [(1, True), (0, False)],
    "policy": [(0x13001F, True), ("0x13001f", True), ("000000000013001f", True), (0x30000, False), (SnpPolicy(0x13001F), True)],
    "platform_info": [(0x25, True), ([0x24, 0x25], True), (0x27, False)],
}  # fmt: skip

BITS: dict[str, dict[str, bool]] = {
    "policy": {
        "smt": True, "migrate_ma": False, "debug": False, "single_socket": True, "cxl_allow": False,
        "mem_aes_256_xts": False, "rapl_dis": False, "ciphertext_hiding_dram": False, "page_swap_disable": False,
        "reserved_mbo": True, "unknown": False,
    },
    "platform_info": {
        "smt_en": True, "tsme_en": False, "ecc_en": True, "rapl_dis": False, "ciphertext_hiding_dram_en": False,
        "alias_check_complete": True, "iommu_write_safe": False, "tio_en": False, "unknown": False,
    },
}  # fmt: skip
"""The bits that a policy names, and whether they are set in VERIFIED."""


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [(field, value, accepted) for field, cases in MATRIX.items() for value, accepted in cases],
)
def test_field(field: str, value: Any, accepted: bool) -> None:
    appraisal = result(VERIFIED, **{field: value})
    assert appraisal.accepted is accepted
    check = next(one for one in appraisal.checks if one.field == field)
    assert check.result == ("passed" if accepted else "failed")
    assert check.expected is not None
    assert {one.result for one in appraisal.checks if one is not check} == {"not_asked"}
    json.dumps(appraisal.document())


@pytest.mark.parametrize(("word", "bit"), [(word, bit) for word, bits in BITS.items() for bit in bits])
def test_bit(word: str, bit: str) -> None:
    for wanted in ("required", "forbidden", "any"):
        appraisal = result(VERIFIED, **{word: {bit: wanted}})
        check = next(one for one in appraisal.checks if one.field == f"{word}.{bit}")
        expected = wanted == "any" or (wanted == "required") is BITS[word][bit]
        assert check.result == ("passed" if expected else "failed")
        assert check.expected == wanted
        assert bool(check.actual) is BITS[word][bit]


def test_every_bit_and_field_is_covered_here() -> None:
    named = {*MATRIX, *(f"{word}.{bit}" for word, bits in BITS.items() for bit in bits)}
    assert set(fields()) - named == {"policy.abi", "policy.abi_major", "policy.abi_minor"}
    assert result(VERIFIED, policy={"abi": {"min": "0.31"}, "abi_minor": 31, "abi_major": {"max": 0}}).accepted
    assert not result(VERIFIED, policy={"abi": {"min": "1.0"}}).accepted


def test_unknown_bits_are_found_when_set() -> None:
    odd = genuine(policy=0x30000 | 1 << 30, platform_info=0x25 | 1 << 40)
    appraisal = result(odd, policy={"unknown": "forbidden"}, platform_info={"unknown": "forbidden"})
    assert [(one.field, one.actual) for one in appraisal.failed] == [
        ("policy.unknown", 1 << 30),
        ("platform_info.unknown", 1 << 40),
    ]
    assert result(odd, policy={"unknown": "any"}, platform_info={"unknown": "required"}).accepted


def test_absent_fields_fail_when_asked_for() -> None:
    old = genuine(version=2)
    for rules in ({"launch_mit_vector": {"min": 0}}, {"cpuid_fam_id": 0x19}, {"csp_id": "x"}):
        appraisal = result(old, **rules)
        assert not appraisal.accepted
        assert appraisal.failed[0].actual is None
    assert result(old, product="genoa", reported_tcb={"min": {"snp": 4}}).accepted


def test_vlek_and_turin() -> None:
    assert result(VLEK, signing_key="vlek", csp_id="CN=cc-test.example.com", chip_id="00" * 64).accepted
    assert not result(VLEK, csp_id=["CN=other"]).accepted
    turin = genuine(World(TURIN))
    assert result(turin, reported_tcb={"min": {"fmc": 4}}, product="turin").accepted
    assert not result(turin, reported_tcb={"min": {"fmc": 5}}).accepted


def test_every_violation_is_listed_and_require_names_them() -> None:
    appraisal = result(VERIFIED, vmpl=0, measurement="00" * 48, policy={"single_socket": "forbidden"}, version=5)
    assert [one.field for one in appraisal.failed] == ["policy.single_socket", "vmpl", "measurement"]
    with pytest.raises(AppraisalError, match=r"policy\.single_socket, vmpl, measurement"):
        appraisal.require()
    result(VERIFIED, vmpl=1).require()
    assert [one.field for one in appraisal.checks] == list(fields())
    assert result(VERIFIED).accepted


TOML = f"""
[report]
measurement = ["{bytes(range(48)).hex()}"]
vmpl = 1
reported_tcb = {{ min = {{ bootloader = 4, snp = 4 }} }}
current_version = {{ min = "1.55.29" }}
provisional = true
launch_mit_vector = {{ min = 0x3 }}

[report.policy]
debug = "forbidden"
abi_minor = {{ min = 31 }}

[report.platform_info]
alias_check_complete = "required"
"""


def test_toml_json_and_objects_say_the_same() -> None:
    from tomllib import loads

    document = loads(TOML)
    policies = [
        Policy.load(TOML, "toml"),
        Policy.load(json.dumps(document), "json"),
        Policy.from_mapping(document),
        Policy(**document["report"]),
    ]
    appraisals = [appraise(VERIFIED, policy).document() for policy in policies]
    assert appraisals[0]["accepted"] is True
    assert all(one == appraisals[0] for one in appraisals)
    assert len(policies[0]) == 9
    assert "policy.debug" in set(policies[0])


BAD: list[tuple[Any, str]] = [
    ({}, "no table"),
    ({"report": []}, "no table"),
    ({"report": {}, "Report": {}}, "unknown table"),
    ({"vmpl": 0}, "unknown table or key 'vmpl'"),
    ({"report": {"measurment": "00"}}, "unknown field 'measurment'"),
    ({"report": {"policy.debug": "forbidden", "policy": {"debug": "any"}}}, "twice"),
    ({"report": {"policy": {"dbg": "forbidden"}}}, "no bit 'dbg'"),
    ({"report": {"policy": {"min": 1}}}, "no bit 'min'"),
    ({"report": {"policy": {}}}, "empty table"),
    ({"report": {"policy": {"debug": True}}}, "required"),
    ({"report": {"policy": {"debug": "no"}}}, "required"),
    ({"report": {"policy": {"debug": {"min": "any"}}}}, "no order"),
    ({"report": {"policy": "smt"}}, "64-bit"),
    ({"report": {"platform_info": {"smt": "required"}}}, "no bit 'smt'"),
    ({"report": {"measurement": "00"}}, "96 hexadecimal digits"),
    ({"report": {"measurement": "zz" * 48}}, "96 hexadecimal digits"),
    ({"report": {"measurement": 5}}, "96 hexadecimal digits"),
    ({"report": {"measurement": []}}, "list of 0"),
    ({"report": {"measurement": ["00"]}}, "96 hexadecimal digits"),
    ({"report": {"measurement": {"min": "00" * 48}}}, "no order"),
    ({"report": {"measurement": {"any": 1}}}, "is a table"),
    ({"report": {"report_data": "00" * 32}}, "128 hexadecimal digits"),
    ({"report": {"vmpl": True}}, "integer"),
    ({"report": {"vmpl": 1.0}}, "integer"),
    ({"report": {"vmpl": -1}}, "integer"),
    ({"report": {"vmpl": 1 << 32}}, "integer"),
    ({"report": {"vmpl": "0xg"}}, "integer"),
    ({"report": {"vmpl": "1"}}, "integer"),
    ({"report": {"vmpl": None}}, "integer"),
    ({"report": {"vmpl": {}}}, "is a table"),
    ({"report": {"vmpl": {"min": 0, "maximum": 1}}}, "'maximum', which is unknown"),
    ({"report": {"vmpl": [[1]]}}, "integer"),
    ({"report": {"vmpl": list(range(5000))}}, "list of 5000"),
    ({"report": {"reported_tcb": 5}}, "components"),
    ({"report": {"reported_tcb": {}}}, "components"),
    ({"report": {"reported_tcb": "4"}}, "components"),
    ({"report": {"reported_tcb": "snp=x"}}, "components"),
    ({"report": {"reported_tcb": {"ucode": 1}}}, "no component 'ucode'"),
    ({"report": {"reported_tcb": {"snp": 256}}}, "0 to 255"),
    ({"report": {"reported_tcb": {"snp": True}}}, "0 to 255"),
    ({"report": {"reported_tcb": {"snp": {}}}}, "min and max"),
    ({"report": {"reported_tcb": {"snp": {"least": 1}}}}, "min and max"),
    ({"report": {"reported_tcb": {"min": {"ucode": 1}}}}, "no component 'ucode'"),
    ({"report": {"reported_tcb": {"min": {}}}}, "components"),
    ({"report": {"reported_tcb": {"min": 1}}}, "components"),
    ({"report": {"current_version": "1.55"}}, "a version"),
    ({"report": {"current_version": 1.55}}, "a version"),
    ({"report": {"current_version": {"min": "1.55.x"}}}, "a version"),
    ({"report": {"signing_key": "VCEK"}}, "one of vcek, vlek"),
    ({"report": {"csp_id": ""}}, "a text"),
    ({"report": {"product": "zen"}}, "unknown product"),
    ({"report": {"product": 5}}, "processor line"),
    ({"report": {"provisional": "no"}}, "true or false"),
    ({"report": {"author_key_en": 1}}, "true or false"),
]


@pytest.mark.parametrize(("document", "message"), BAD)
def test_what_is_not_a_policy_is_a_usage_error(document: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Policy.from_mapping(document)


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("[report", "toml", "not TOML"),
        ("{", "json", "not JSON"),
        ("[]", "json", "expected an object"),
        ('{"report": {"vmpl": 0, "vmpl": 1}}', "json", "stands twice"),
        ("[report]\nvmpl = 0\nvmpl = 1", "toml", "not TOML"),
        ("[" * 100000, "json", "not JSON"),
        ("", "yaml", "policy form"),
        (" " * ((1 << 20) + 1), "toml", "at most"),
    ],
)
def test_texts_that_are_no_policy(text: str, form: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Policy.load(text, form)


def test_asking_twice_is_an_error_and_changes_nothing() -> None:
    first = Policy(vmpl=0)
    with pytest.raises(UsageError, match="vmpl is asked for twice"):
        first.and_also(vmpl=1)
    assert set(first.and_also(version=5)) == {"vmpl", "version"}
    assert set(first) == {"vmpl"}
    assert "vmpl" in repr(first)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["min", "max", "snp", "raw", "debug", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from([*MATRIX, "nothing"]), VALUES)
def test_any_value_is_a_policy_or_a_usage_error(field: str, value: Any) -> None:
    try:
        policy = Policy(**{field: value})
    except UsageError:
        return
    json.dumps(appraise(VERIFIED, policy).document())


@given(st.text(max_size=80), st.sampled_from(["toml", "json"]))
def test_any_text_is_a_policy_or_a_usage_error(text: str, form: str) -> None:
    with pytest.raises(UsageError):
        Policy.load(text, form)
