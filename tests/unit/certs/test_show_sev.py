"""`sev certs show` of SEV's own certificates: everything in them, and nothing that stops it."""

from __future__ import annotations

from base64 import encodebytes
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.abi import id_block
from sev.abi import sev_certificate as abi
from sev.abi.amd_certificate import AmdCertificate
from sev.abi.sev_certificate import SevCertificate, Signature
from sev.certs import show, show_sev
from sev.errors import MalformedInput
from tests.support.cli import sev
from tests.support.data import DATA

NAPLES = DATA / "legacy" / "naples"
CHAIN = (DATA / "legacy" / "pdh-blob-naples.bin").read_bytes()
USAGES = {name: number for number, name in abi.USAGE_NAMES.items()}
ALGORITHMS = {name: number for number, name in abi.ALGORITHM_NAMES.items()}
AUTHORITIES = sorted((DATA / "roots" / "legacy").glob("*.cert"))


def rebuilt(document: dict[str, Any]) -> bytes:
    """A certificate of nothing but what is shown."""
    slots = [Signature(), Signature()]
    for each in document["signatures"]:
        if "value" in each:
            data = int(each["value"], 16).to_bytes(512, "little")
        else:
            data = id_block.encode_signature(int(each["r"], 16), int(each["s"], 16))
        slots[each["slot"] - 1] = Signature(USAGES[each["usage"]], ALGORITHMS[each["algorithm"]], data)
    major, minor = (int(part) for part in document["api"].split("."))
    key = id_block.encode_key(int(document["key"]["x"], 16), int(document["key"]["y"], 16))
    usage, algorithm = USAGES[document["kind"].upper()], ALGORITHMS[document["algorithm"]]
    return SevCertificate(document["version"], major, minor, 0, usage, algorithm, key, *slots).encode()


def test_a_real_chain() -> None:
    documents = show.describe(CHAIN)
    assert [document["kind"] for document in documents] == ["pdh", "pek", "oca", "cek"]
    assert b"".join(rebuilt(document) for document in documents) == CHAIN
    text = show.text(documents)
    assert [block.split("\n")[0] for block in text.split("\n\n")] == ["PDH", "PEK", "OCA", "CEK"]
    assert max(len(line) for line in text.splitlines()) <= 160


@pytest.mark.parametrize("path", AUTHORITIES, ids=lambda path: path.stem)
def test_real_authorities(path: Path) -> None:
    (document,) = show.describe(path.read_bytes())
    product, kind = path.stem.split("-")[:2]
    assert (document["kind"], document["product"]) == (kind, product)
    found = AmdCertificate.decode(path.read_bytes())
    numbers: Any = document["key"]
    assert int(numbers["modulus"], 16) == found.modulus
    shown: Any = document["signature"]
    assert (bytes.fromhex(shown)[::-1] if shown else b"") == found.signature
    assert (shown is None) == path.stem.endswith("bad")


def test_the_command(tmp_path: Path) -> None:
    whole, text = tmp_path / "whole", tmp_path / "vm_godh.b64"
    whole.write_bytes(CHAIN + AUTHORITIES[0].read_bytes())
    document = sev("certs", "show", whole, "--json").json()["certificates"]
    assert [one["kind"] for one in document] == ["pdh", "pek", "oca", "cek", AUTHORITIES[0].stem.split("-")[1]]
    text.write_bytes(encodebytes((NAPLES / "pdh.cert").read_bytes()))
    (shown,) = sev("certs", "show", text, "--json").json()["certificates"]
    assert rebuilt(shown) == (NAPLES / "pdh.cert").read_bytes()
    assert sev("certs", "generate", tmp_path / "oca.cert", tmp_path / "oca.key").code == 0
    (made,) = sev("certs", "show", tmp_path / "oca.cert", "--json").json()["certificates"]
    assert [(each["slot"], each["usage"]) for each in made["signatures"]] == [(1, "OCA")]
    assert sev("certs", "show", tmp_path / "oca.key").code == 9


@pytest.mark.parametrize(
    ("offset", "where"),
    [(0x10, "key"), (0x14, "key"), (0x0C, "key"), (0x414, "usage"), (0x418, "algorithm")],
    ids=["curve", "no point", "algorithm of the key", "signer", "algorithm of the signature"],
)
def test_what_is_wrong_is_shown(offset: int, where: str) -> None:
    raw = bytearray((NAPLES / "pdh.cert").read_bytes())
    raw[offset] ^= 0x40
    (document,) = show.describe(bytes(raw))
    found: Any = document
    if where == "key":
        assert "error" in found["key"]
    else:
        assert found["signatures"][0][where].startswith("0x")
    assert show.text([document])


def test_rows_that_end_in_something_else() -> None:
    with pytest.raises(MalformedInput, match="neither an SEV certificate"):
        show.describe(CHAIN + b"more")
    with pytest.raises(MalformedInput):
        show.describe(CHAIN[:-1])


@given(st.binary(max_size=3000), st.integers(0, 2084))
def test_any_bytes(noise: bytes, at: int) -> None:
    raw = bytearray(CHAIN[:2084])
    raw[at : at + len(noise)] = noise
    for data in (bytes(raw), noise, b"\1\0\0\0" + noise):
        row = show.sev_row(data)
        if row is not None:
            try:
                show.text(show_sev.describe(row))
            except MalformedInput:
                continue
