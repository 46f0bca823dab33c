"""The simulator's KDS without sockets: what is answered to which request, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev import products
from sev.abi.sev_certificate import SevCertificate
from sev.abi.tcb import TcbVersion
from sev.certs import load
from sev.certs.crl import Crl
from sev.certs.x509 import Certificate
from sevd.simulator import Simulator, kds_answers
from sevd.simulator.kds_answers import WRONG, KdsAnswers
from tests.support.simulated import simulated_host


@pytest.fixture(scope="module")
def genoa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulated_host(tmp_path_factory.mktemp("genoa")) as host:
        yield host


@pytest.fixture(scope="module")
def turin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulated_host(tmp_path_factory.mktemp("turin"), "turin") as host:
        yield host


@pytest.fixture(scope="module")
def kds(genoa: Simulator) -> KdsAnswers:
    return KdsAnswers(genoa.firmware)


def chip(host: Simulator) -> str:
    return host.firmware.ca.chip_id[: host.firmware.product.chip_id_bytes].hex()


SPLS = "blSPL=03&teeSPL=00&snpSPL=23&ucodeSPL=213"


def test_a_vcek_is_of_exactly_the_tcb_asked_for(kds: KdsAnswers, genoa: Simulator) -> None:
    for spelled in (chip(genoa), chip(genoa).upper()):
        answer = kds.answer("GET", f"/vcek/v1/Genoa/{spelled}?{SPLS}")
        assert answer.status == 200
        certificate = Certificate.parse(answer.body)
        assert certificate.kind == "vcek"
        assert certificate.hwid == genoa.firmware.ca.chip_id
        assert {"bootloader": 3, "tee": 0, "snp": 23, "microcode": 213}.items() <= certificate.tcb.items()
        assert answer.body == genoa.firmware.ca.vcek_der(
            TcbVersion.of(products.GENOA, bootloader=3, tee=0, snp=23, microcode=213).raw
        )


def test_parameters_stand_in_any_order_and_may_be_padded(kds: KdsAnswers, genoa: Simulator) -> None:
    one = kds.answer("GET", f"/vcek/v1/Genoa/{chip(genoa)}?ucodeSPL=1&snpSPL=02&teeSPL=003&blSPL=4")
    other = kds.answer("GET", f"/vcek/v1/Genoa/{chip(genoa)}?blSPL=04&teeSPL=3&snpSPL=2&ucodeSPL=001")
    assert one == other
    assert one.status == 200


def test_turin_has_a_short_identifier_and_an_fmc(turin: Simulator) -> None:
    kds = KdsAnswers(turin.firmware)
    assert len(chip(turin)) == 16
    path = f"/vcek/v1/Turin/{chip(turin)}"
    answer = kds.answer("GET", f"{path}?fmcSPL=01&{SPLS}")
    assert Certificate.parse(answer.body).tcb["fmc"] == 1
    assert kds.answer("GET", f"{path}?{SPLS}").status == 400
    long = turin.firmware.ca.chip_id.hex()
    assert kds.answer("GET", f"/vcek/v1/Turin/{long}?fmcSPL=01&{SPLS}").status == 404
    for identifier in (chip(turin), long):
        assert kds.answer("GET", f"/cek/id/{identifier}").status == 200


def test_chains_and_lists(kds: KdsAnswers, genoa: Simulator) -> None:
    for key, names in (("vcek", ["ask", "ark"]), ("vlek", ["asvk", "ark"])):
        chain = kds.answer("GET", f"/{key}/v1/Genoa/cert_chain")
        assert [one.kind for one in load(chain.body)] == names
        assert chain.body.startswith(b"-----BEGIN CERTIFICATE-----")
        listed = kds.answer("GET", f"/{key}/v1/Genoa/crl")
        assert listed.body == genoa.firmware.ca.crl_der()
        Crl.parse(listed.body)


def test_the_signed_cek(kds: KdsAnswers, genoa: Simulator) -> None:
    answer = kds.answer("GET", f"/cek/id/{genoa.firmware.get_id().hex()}")
    assert (answer.status, len(answer.body)) == (200, 2084)
    SevCertificate.decode(answer.body)
    assert answer.body == genoa.firmware.ca.cek_certificate()


def test_providers_get_vleks_and_hash_sticks(genoa: Simulator, kds: KdsAnswers) -> None:
    path = f"/vlek/v1/Genoa/cert?{SPLS}"
    assert kds.answer("GET", path).status == 403
    certificate = Certificate.parse(kds.answer("GET", path, provider=True).body)
    assert certificate.kind == "vlek"
    assert certificate.tcb["snp"] == 23
    body = json.dumps({"hwids": [chip(genoa), "00" * 64]}).encode()
    path = f"/vlek/v1/Genoa/hash_sticks?{SPLS}"
    assert kds.answer("POST", path, body).status == 403
    answer = kds.answer("POST", path, body, provider=True)
    mine, other = json.loads(answer.body)["results"]
    assert len(bytes.fromhex(mine[chip(genoa)])) == 432
    assert other == {"00" * 64: "not found"}


def test_a_hash_stick_loads_into_the_chip(tmp_path: Path) -> None:
    with simulated_host(tmp_path) as host:
        firmware = host.firmware
        components = TcbVersion.from_int(firmware.reported_tcb, products.GENOA).components()
        spls = "&".join(f"{kds_answers.SPL_NAMES[name]}={value}" for name, value in components.items())
        body = json.dumps({"hwids": [chip(host)]}).encode()
        answer = KdsAnswers(firmware).answer("POST", f"/vlek/v1/Genoa/hash_sticks?{spls}", body, provider=True)
        (result,) = json.loads(answer.body)["results"]
        firmware.snp_vlek_load(bytes.fromhex(result[chip(host)]))
        assert firmware.vlek_tcb == firmware.reported_tcb


REFUSED = {
    "no-path": ("GET", "/", 404),
    "no-slash": ("GET", "vcek/v1/Genoa/crl", 404),
    "too-deep": ("GET", "/vcek/v1/Genoa/crl/x", 404),
    "dots": ("GET", "/vcek/v1/../Genoa/crl", 404),
    "version-2": ("GET", "/vcek/v2/Genoa/crl", 404),
    "another-line": ("GET", "/vcek/v1/Milan/cert_chain", 404),
    "lower-case-line": ("GET", "/vcek/v1/genoa/cert_chain", 404),
    "another-kind": ("GET", "/cek/v1/Genoa/cert_chain", 404),
    "unknown-chip": ("GET", f"/vcek/v1/Genoa/{'00' * 64}?{SPLS}", 404),
    "short-chip": ("GET", f"/vcek/v1/Genoa/{'00' * 8}?{SPLS}", 404),
    "no-hex": ("GET", f"/vcek/v1/Genoa/CHIP?{SPLS}", 400),
    "odd-hex": ("GET", f"/vcek/v1/Genoa/abc?{SPLS}", 400),
    "unknown-vlek-path": ("GET", "/vlek/v1/Genoa/abcd", 404),
    "unknown-cek": ("GET", f"/cek/id/{'ab' * 64}", 404),
    "no-hex-cek": ("GET", "/cek/id/xyz", 400),
    "post-for-a-list": ("POST", "/vcek/v1/Genoa/crl", 405),
    "delete": ("DELETE", "/vcek/v1/Genoa/crl", 405),
    "not-ascii": ("GET", "/vcek/v1/Genoa/é", 400),
    "too-long": ("GET", "/" + "a" * 5000, 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(kds: KdsAnswers, name: str) -> None:
    method, target, status = REFUSED[name]
    answer = kds.answer(method, target)
    assert answer.status == status
    assert answer.body.endswith(b"\n")


QUERIES = {
    "none": "",
    "one-missing": "blSPL=03&teeSPL=00&snpSPL=23",
    "twice": f"{SPLS}&blSPL=03",
    "unknown": f"{SPLS}&xSPL=1",
    "fmc-on-genoa": f"fmcSPL=0&{SPLS}",
    "hexadecimal": SPLS.replace("213", "d5"),
    "too-large": SPLS.replace("213", "256"),
    "negative": SPLS.replace("213", "-1"),
    "empty": SPLS.replace("213", ""),
    "long": SPLS.replace("213", "0213"),
    "space": SPLS.replace("213", "21+"),
    "semicolons": SPLS.replace("&", ";"),
    "other-case": SPLS.replace("blSPL", "blspl"),
}


@pytest.mark.parametrize("name", QUERIES)
def test_parameters_that_make_no_sense(kds: KdsAnswers, genoa: Simulator, name: str) -> None:
    assert kds.answer("GET", f"/vcek/v1/Genoa/{chip(genoa)}?{QUERIES[name]}").status == 400


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"hwids": 1}', b'{"hwids": [1]}', b"[" * 5000, b'{"hwids": ' + b'["00",' * 99 + b"]"],
)
def test_bodies_that_make_no_sense(kds: KdsAnswers, body: bytes) -> None:
    assert kds.answer("POST", f"/vlek/v1/Genoa/hash_sticks?{SPLS}", body, provider=True).status == 400


def test_the_fault_of_a_wrong_certificate(kds: KdsAnswers, genoa: Simulator) -> None:
    answer = kds.answer("GET", f"/vcek/v1/Genoa/{chip(genoa)}?{SPLS}", twist=WRONG)
    assert Certificate.parse(answer.body).tcb["snp"] == 22


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT"]),
    parts=st.lists(
        st.one_of(
            st.sampled_from(["", "vcek", "vlek", "v1", "Genoa", "cert_chain", "crl", "cek", "id", "cert", "..", "%2e"]),
            st.text(max_size=20),
        ),
        max_size=7,
    ),
    query=st.text(max_size=60),
    body=st.binary(max_size=60),
)
def test_nothing_makes_it_fail(kds: KdsAnswers, method: str, parts: list[str], query: str, body: bytes) -> None:
    answer = kds.answer(method, f"/{'/'.join(parts)}?{query}", body)
    assert answer.status in (200, 400, 403, 404, 405)
