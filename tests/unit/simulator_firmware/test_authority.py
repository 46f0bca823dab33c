"""The simulator's certificates: shaped like AMD's byte for byte where values allow, stored, renewed, never lost silently."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from sev import products
from sev.certs.crl import Crl
from sev.certs.x509 import Certificate
from sev.errors import UsageError
from sevd.simulator import ca, der, x509
from sevd.simulator.firmware import Firmware
from sevd.simulator.store import CorruptState
from tests.support.simulated_firmware import Open


def skeleton(data: bytes) -> Iterator[str]:
    """Tags and object identifiers of DER, in order; contents of other primitive values left out."""
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            width = size & 0x7F
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        content = data[at : at + size]
        at += size
        if tag & 0x20:
            yield f"{tag:02x}("
            yield from skeleton(content)
            yield ")"
        else:
            yield f"{tag:02x}:{content.hex()}" if tag in (0x06, 0x01) else f"{tag:02x}"


def real(name: str) -> bytes:
    from tests.support.data import DATA

    return (DATA / name).read_bytes()


def without_trailer(shape: list[str]) -> list[str]:
    """Older certificates spell out the default trailerField: [3] { INTEGER }."""
    out = "|".join(shape).replace("|a3(|02|)", "")
    return out.split("|")


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
@pytest.mark.parametrize("kind", ["ark", "ask", "asvk"])
def test_authorities_have_the_shape_of_amds(open_firmware: Open, product: str, kind: str) -> None:
    issuer = open_firmware(product).ca
    ours = {"ark": issuer.ark_der, "ask": issuer.ask_der, "asvk": issuer.asvk_der}[kind]()
    theirs = real(f"roots/{product}-{kind}.der")
    # Certificates that last beyond 2049 have another type of time.
    assert [each.replace("18", "17") for each in skeleton(ours)] == without_trailer(list(skeleton(theirs)))
    mine, amd = Certificate.parse(ours), Certificate.parse(theirs)
    assert (mine.subject_cn, mine.issuer_cn, mine.is_ca) == (amd.subject_cn, amd.issuer_cn, amd.is_ca)
    assert (mine.subject == amd.subject) == (kind != "ark"), "only the root has another name"
    expected = {"milan": 0x10000, "genoa": 0x20000, "turin": 0x30000}[product] + {"ark": 0, "ask": 1, "asvk": 0x101}[
        kind
    ]
    assert mine.serial == expected
    assert mine.not_after.year - mine.not_before.year == 25


@pytest.mark.parametrize(
    ("product", "file"),
    [
        ("milan", "snp/milan-v5-gcp.vcek.der"),
        ("genoa", "snp/genoa-v5-generic.vcek.der"),
        ("turin", "snp/turin-v5-generic.vcek.der"),
    ],
)
def test_vceks_have_the_shape_of_amds(open_firmware: Open, product: str, file: str) -> None:
    firmware = open_firmware(product)
    ours, theirs = firmware.ca.vcek_der(firmware.reported_tcb), real(file)
    assert list(skeleton(ours)) == without_trailer(list(skeleton(theirs)))
    mine, amd = Certificate.parse(ours), Certificate.parse(theirs)
    assert (mine.subject, mine.issuer, mine.serial) == (amd.subject, amd.issuer, 0)
    assert mine.product_name == amd.product_name
    assert mine.hwid == firmware.get_id()[: firmware.product.chip_id_bytes]
    assert mine.not_after.year - mine.not_before.year == 7


def test_vleks_have_the_shape_of_amds(open_firmware: Open) -> None:
    firmware = open_firmware("milan")
    ours, theirs = firmware.ca.vlek_der(firmware.reported_tcb), real("snp/milan-v3-aws-vlek.vlek.der")
    assert list(skeleton(ours)) == without_trailer(list(skeleton(theirs)))
    mine, amd = Certificate.parse(ours), Certificate.parse(theirs)
    assert (mine.subject, mine.issuer, mine.serial) == (amd.subject, amd.issuer, 0)
    assert (mine.csp_id, mine.hwid, mine.product_name) == (ca.CSP_ID, None, "Milan")
    assert mine.not_after.year - mine.not_before.year == 1


def test_revocation_lists_have_the_shape_of_amds(open_firmware: Open) -> None:
    ours, theirs = open_firmware("milan").ca.crl_der(), real("crl/milan-2026-06-22.crl")
    assert list(skeleton(ours)) == without_trailer(list(skeleton(theirs)))
    Crl.parse(ours)


def test_patch_levels_follow_the_tcb(open_firmware: Open) -> None:
    firmware = open_firmware("turin")
    certificate = Certificate.parse(firmware.ca.vcek_der(0x51000000_04FF017F))
    assert certificate.tcb == {"fmc": 0x7F, "bootloader": 1, "tee": 0xFF, "snp": 4, "microcode": 0x51}


def test_no_simulated_certificate_names_the_simulator_but_the_root(open_firmware: Open) -> None:
    firmware = open_firmware()
    others = (firmware.ca.ask_der(), firmware.ca.asvk_der(), firmware.ca.vcek_der(1), firmware.ca.vlek_der(1))
    named = [Certificate.parse(each).subject_text for each in others]
    assert not any("simulator" in text for text in named)
    assert "sevd simulator" in Certificate.parse(firmware.ca.ark_der()).subject_text


# Storage and renewal


def test_a_certificate_once_issued_stays_the_same(open_firmware: Open) -> None:
    first = open_firmware()
    issued = [
        first.ca.vcek_der(first.reported_tcb),
        first.ca.vlek_der(first.reported_tcb),
        first.ca.crl_der(),
        first.ca.asvk_der(),
    ]
    second = open_firmware()
    assert [
        second.ca.vcek_der(second.reported_tcb),
        second.ca.vlek_der(second.reported_tcb),
        second.ca.crl_der(),
        second.ca.asvk_der(),
    ] == issued
    assert second.ca.roots_pem() == first.ca.roots_pem()


def test_renewal_before_the_end(open_firmware: Open) -> None:
    moment = time.time()
    firmware = open_firmware(clock=lambda: moment)
    vcek, vlek, crl = firmware.ca.vcek_der(5), firmware.ca.vlek_der(5), firmware.ca.crl_der()
    moment += 27 * 86400
    assert firmware.ca.crl_der() == crl
    moment += 2 * 86400
    renewed = firmware.ca.crl_der()
    assert renewed != crl
    assert Crl.parse(renewed).this_update == datetime.fromtimestamp(int(moment), UTC)
    assert firmware.ca.vlek_der(5) == vlek
    moment += 330 * 86400
    assert firmware.ca.vlek_der(5) != vlek
    assert (
        Certificate.parse(firmware.ca.vlek_der(5)).public_key().public_numbers()
        == Certificate.parse(vlek).public_key().public_numbers()
    )
    assert firmware.ca.vcek_der(5) == vcek


def test_a_clock_set_back_makes_new_certificates_rather_than_future_ones(open_firmware: Open) -> None:
    moment = time.time()
    firmware = open_firmware(clock=lambda: moment)
    crl = firmware.ca.crl_der()
    moment -= timedelta(days=2).total_seconds()
    assert Crl.parse(firmware.ca.crl_der()).this_update < Crl.parse(crl).this_update


def test_leaf_files_are_bounded(open_firmware: Open, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca, "LEAVES_MAX", 4)
    firmware = open_firmware()
    first = firmware.ca.vcek_der(0)
    for tcb in range(1, 7):
        firmware.ca.vcek_der(tcb)
    assert len(list((state / "genoa").glob("vcek-*.der"))) == 4
    again = open_firmware().ca.vcek_der(0)
    assert again != first
    assert (
        Certificate.parse(again).public_key().public_numbers() == Certificate.parse(first).public_key().public_numbers()
    )


def test_secrets_are_for_their_owner_only(open_firmware: Open, state: Path) -> None:
    open_firmware()
    secret = [path for path in (state / "genoa").iterdir() if path.suffix == ".key" or path.name == "chip.json"]
    assert len(secret) == 4
    for path in secret:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_first_start_tells_and_makes_full_keys(tmp_path: Path) -> None:
    told: list[str] = []
    firmware = Firmware.open(tmp_path / "deep" / "state", product=products.GENOA, seed=1, progress=told.append)
    assert len(told) == 2
    for certificate in (firmware.ca.ark_der(), firmware.ca.ask_der()):
        key = Certificate.parse(certificate).public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        assert key.key_size == 4096
    home = tmp_path / "deep" / "state" / "genoa"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {path.name for path in home.iterdir()} == {
        "chip.json", "platform.json", "authority.json", "ark.key", "ark.der", "ask.key", "ask.der",
    }  # fmt: skip
    told.clear()
    Firmware.open(tmp_path / "deep" / "state", product=products.GENOA, progress=told.append)
    assert not told
    assert not (home / "asvk.key").exists(), "not made before a VLEK is used"


def test_an_interrupted_first_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_bits: int) -> rsa.RSAPrivateKey:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ca, "_new_key", fail)
        with pytest.raises(KeyboardInterrupt):
            Firmware.open(tmp_path, product=products.MILAN)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".milan.new-0123").mkdir()
    monkeypatch.setattr(ca, "KEY_BITS", 2048)
    Firmware.open(tmp_path, product=products.MILAN)
    assert [path.name for path in tmp_path.iterdir()] == ["milan"]


# Damage

FILES = [
    "chip.json",
    "platform.json",
    "authority.json",
    "ark.key",
    "ark.der",
    "ask.key",
    "ask.der",
    "asvk.key",
    "asvk.der",
]


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "changed", "huge"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_state_is_reported_and_left_alone(open_firmware: Open, state: Path, name: str, damage: str) -> None:
    path = state / "genoa" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(data) // 2
        path.write_bytes({
            "empty": b"",
            "truncated": data[:middle],
            "changed": data[:middle] + bytes((data[middle] ^ 1,)) + data[middle + 1 :],
            "huge": data + b" " * (1 << 20),
        }[damage])  # fmt: skip
    before = {each.name: each.read_bytes() for each in (state / "genoa").iterdir()}
    with pytest.raises(CorruptState) as caught:
        open_firmware()
    assert caught.value.field == name
    assert str(path) in caught.value.message
    assert caught.value.remedy
    assert {each.name: each.read_bytes() for each in (state / "genoa").iterdir()} == before


def test_set_aside_on_explicit_wish(open_firmware: Open, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_firmware()
    (state / "genoa" / "chip.json").write_text("{}")
    aside = Firmware.set_aside(state, products.GENOA)
    assert (aside / "ark.key").exists()
    monkeypatch.setattr(ca, "KEY_BITS", 2048)
    second = open_firmware(seed=2)
    assert second.get_id() != first.get_id()


@pytest.mark.parametrize(
    "text", ["[]", "1", '{"format": "x"}', '{"format": 1}', '{"format": 1, "checksum": 3}', "[" * 100000]
)
def test_documents_that_are_none(open_firmware: Open, state: Path, text: str) -> None:
    (state / "genoa" / "platform.json").write_text(text)
    with pytest.raises(CorruptState):
        open_firmware()


def test_state_of_a_newer_version(open_firmware: Open, state: Path) -> None:
    path = state / "genoa" / "chip.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UsageError, match="newer version"):
        open_firmware()


def test_chip_of_another_line(open_firmware: Open, state: Path) -> None:
    (state / "genoa" / "chip.json").write_bytes((state / "milan" / "chip.json").read_bytes())
    with pytest.raises(CorruptState, match="expected genoa"):
        open_firmware()


def test_unusable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        Firmware.open(tmp_path / "file", product=products.GENOA)


# DER


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (der.integer(0), "020100"),
        (der.integer(127), "02017f"),
        (der.integer(128), "02020080"),
        (der.integer(0xDB), "020200db"),
        (der.integer(0x10000), "0203010000"),
        (der.oid("1.3.6.1.4.1.3704.1.3.8"), "060a2b060104019c78010308"),
        (der.oid("2.5.29.15"), "0603551d0f"),
        (der.octets(bytes(128))[:4], "04818000"),
        (der.octets(bytes(256))[:5], "0482010000"),
        (der.bits(b"\x06", 1), "03020106"),
        (der.time(datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)), "170d" + b"491231235959Z".hex()),
        (der.time(datetime(2050, 1, 1, tzinfo=UTC)), "180f" + b"20500101000000Z".hex()),
    ],
)
def test_der(encoded: bytes, expected: str) -> None:
    assert encoded.hex() == expected


def test_der_has_no_negative_numbers() -> None:
    with pytest.raises(ValueError, match="negative"):
        der.integer(-1)


def test_a_revoked_serial_is_listed(open_firmware: Open) -> None:
    key = rsa.generate_private_key(65537, 2048)
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    data = x509.revocation_list(
        issuer=x509.ark_name(products.GENOA), authority=key.public_key(), number=3, this_update=moment,
        next_update=moment + timedelta(days=1), revoked=[(0x20001, moment)], signer=key,
    )  # fmt: skip
    assert 0x20001 in Crl.parse(data).revoked
