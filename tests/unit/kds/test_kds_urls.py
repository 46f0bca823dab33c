"""Where things are at AMD's key distribution service."""

from __future__ import annotations

import pytest

from sev import products
from sev.abi.tcb import TcbVersion
from sev.errors import UsageError
from sev.kds import urls

CHIP = bytes(range(1, 65))
MILAN = TcbVersion.of(products.MILAN, bootloader=4, tee=0, snp=24, microcode=219)
TURIN = TcbVersion.of(products.TURIN, fmc=1, bootloader=1, tee=1, snp=4, microcode=81)
KDS = "https://kdsintf.amd.com"


def test_addresses() -> None:
    assert urls.vcek(products.MILAN, CHIP, MILAN) == (
        f"{KDS}/vcek/v1/Milan/{CHIP.hex()}?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"
    )
    assert urls.vlek(products.MILAN, MILAN) == (
        f"{KDS}:444/vlek/v1/Milan/cert?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"
    )
    assert urls.hash_sticks(products.TURIN, TURIN) == (
        f"{KDS}:444/vlek/v1/Turin/hash_sticks?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81"
    )
    assert urls.ca(products.GENOA) == f"{KDS}/vcek/v1/Genoa/cert_chain"
    assert urls.ca(products.GENOA, "vlek") == f"{KDS}/vlek/v1/Genoa/cert_chain"
    assert urls.crl(products.TURIN) == f"{KDS}/vcek/v1/Turin/crl"
    assert urls.cek(CHIP) == f"{KDS}/cek/id/{CHIP.hex()}"


@pytest.mark.parametrize("chip", [CHIP[:8], CHIP[:8] + bytes(56)], ids=["8 bytes", "64 bytes"])
def test_turin_has_short_identifiers_and_an_fmc(chip: bytes) -> None:
    assert urls.vcek(products.TURIN, chip, TURIN) == (
        f"{KDS}/vcek/v1/Turin/{CHIP[:8].hex()}?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81"
    )


def test_another_service() -> None:
    assert (
        urls.cek(CHIP, service="https://kds.example:8443/amd/") == f"https://kds.example:8443/amd/cek/id/{CHIP.hex()}"
    )
    assert urls.crl(products.MILAN, service="http://127.0.0.1:80").startswith("http://127.0.0.1:80/vcek/")


def test_a_mirror_talks_to_providers_at_the_same_address() -> None:
    assert urls.provider("https://kdsintf.amd.com/") == f"{KDS}:444"
    assert urls.provider("https://kds.example/amd") == "https://kds.example/amd"
    assert urls.vlek(products.MILAN, MILAN, service="https://kds.example").startswith("https://kds.example/vlek/v1/")


NO_SERVICES = (
    *("", "kdsintf.amd.com", "ftp://kds", "file:///etc/passwd", "https://", "https://a b", "https://a?x=1"),
    *("https://a#b", "https://a:99999", "https://[::1", "https://a\n", "https://ä"),
)


@pytest.mark.parametrize("url", NO_SERVICES)
def test_what_is_no_service(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        urls.base(url)
    assert caught.value.field == "kds"


@pytest.mark.parametrize(
    ("product", "chip", "tcb"),
    [
        (products.MILAN, CHIP[:8], MILAN),
        (products.MILAN, CHIP + b"x", MILAN),
        (products.MILAN, bytes(64), MILAN),
        (products.TURIN, CHIP, TURIN),
        (products.TURIN, bytes(8), TURIN),
        (products.TURIN, CHIP[:8], MILAN),
        (products.ROME, CHIP, MILAN),
    ],
    ids=["short", "long", "masked", "not a Turin's", "masked Turin", "another line's TCB", "no SNP"],
)
def test_what_has_no_vcek(product: products.Product, chip: bytes, tcb: TcbVersion) -> None:
    with pytest.raises(UsageError):
        urls.vcek(product, chip, tcb)


@pytest.mark.parametrize("chip", [CHIP[:8], bytes(64)], ids=["short", "masked"])
def test_what_has_no_cek(chip: bytes) -> None:
    with pytest.raises(UsageError):
        urls.cek(chip)


def test_lines_and_keys_without_authorities() -> None:
    with pytest.raises(UsageError, match="Naples has no SEV-SNP"):
        urls.ca(products.NAPLES)
    with pytest.raises(UsageError, match="unknown kind of key 'cek'"):
        urls.crl(products.MILAN, "cek")
