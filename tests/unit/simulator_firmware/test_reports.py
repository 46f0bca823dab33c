"""Reports of the simulator: contents by version, choice of key, signatures by bare primitives and by the verifier."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography.exceptions import InvalidSignature

from sev import products, status
from sev.abi.tcb import TcbVersion
from sev.attestation import Collateral, Report, Roots, verify
from sev.certs.x509 import Certificate
from sev.errors import CollateralError, VerificationError
from sevd.simulator.ca import CSP_ID
from sevd.simulator.firmware import Firmware
from sevd.simulator.versions import Version
from tests.support.simulated_firmware import Open, config, initialised, refused, report_is_signed_by, running, started

DATA = bytes(range(64))

EVERY_VERSION: list[tuple[str, Version, int]] = [
    ("milan", (1, 55, 20), 2),
    ("milan", (1, 55, 29), 3),
    ("milan", (1, 55, 35), 5),
    ("genoa", (1, 55, 21), 2),
    ("genoa", (1, 55, 40), 3),
    ("genoa", (1, 55, 49), 5),
    ("turin", (1, 55, 61), 5),
    ("turin", (1, 55, 65), 5),
]


def leaf_key(certificate: bytes) -> object:
    return Certificate.parse(certificate).public_key()


def now() -> datetime:
    return datetime.now(UTC)


@pytest.mark.parametrize(("product", "version", "report_version"), EVERY_VERSION)
def test_report_of_every_version(open_firmware: Open, product: str, version: Version, report_version: int) -> None:
    firmware = initialised(open_firmware(product, version))
    firmware.snp_commit()
    raw = firmware.guest_report(running(firmware, host_data=b"\x5a" * 32), DATA)
    assert int.from_bytes(raw[:4], "little") == report_version
    assert raw[0x50:0x90] == DATA
    assert raw[0xC0:0xE0] == b"\x5a" * 32
    family, model, stepping = products.by_name(product).sample_cpuid
    assert raw[0x188:0x18B] == (bytes((family, model, stepping)) if report_version >= 3 else bytes(3))
    assert raw[0x1A0:0x1E0] == firmware.get_id()
    for at in (0x38, 0x180, 0x1E0, 0x1F0):
        assert raw[at : at + 8] == firmware.current_tcb.to_bytes(8, "little")
    assert raw[0x1E8:0x1F0] == bytes((version[2], version[1], version[0], 0)) * 2
    vectors = raw[0x1F8:0x208]
    assert vectors == vectors[:8] * 2
    assert any(vectors) == (report_version == 5 and version != (1, 55, 61))
    assert not any(raw[0x208:0x2A0])
    assert not any(raw[0x18B:0x1A0])
    assert raw[0x48:0x50] == bytes(8)

    vcek = firmware.ca.vcek_der(firmware.reported_tcb)
    report_is_signed_by(raw, leaf_key(vcek))  # type: ignore[arg-type]

    collateral = Collateral(vcek, [firmware.ca.ask_der()], [firmware.ca.crl_der()])
    verified = verify(Report.parse(raw), collateral, at=now(), roots=Roots.from_pem(firmware.ca.roots_pem()))
    assert verified.product is products.by_name(product)
    assert verified.leaf.kind == "vcek"
    with pytest.raises((VerificationError, CollateralError)):
        verify(Report.parse(raw), collateral, at=now())
    with pytest.raises((VerificationError, CollateralError)):
        verify(Report.parse(raw), Collateral(vcek), at=now(), roots=Roots.amd())


def test_the_roots_of_one_simulated_chip_do_not_vouch_for_another(open_firmware: Open) -> None:
    milan, genoa = initialised(open_firmware("milan")), initialised(open_firmware("genoa"))
    raw = genoa.guest_report(running(genoa), DATA)
    vcek = genoa.ca.vcek_der(genoa.reported_tcb)
    with pytest.raises((VerificationError, CollateralError)):
        verify(
            Report.parse(raw),
            Collateral(vcek, [genoa.ca.ask_der()]),
            at=now(),
            roots=Roots.from_pem(milan.ca.roots_pem()),
        )


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_report_signed_by_a_vlek(open_firmware: Open, product: str) -> None:
    firmware = initialised(open_firmware(product))
    firmware.snp_vlek_load(firmware.vlek_hashstick())
    firmware.snp_config(config(0, 1))
    raw = firmware.guest_report(running(firmware), DATA)
    assert raw[0x48] >> 2 == 1
    assert raw[0x1A0:0x1E0] == bytes(64)
    vlek = firmware.ca.vlek_der(firmware.reported_tcb)
    report_is_signed_by(raw, leaf_key(vlek))  # type: ignore[arg-type]
    verified = verify(
        Report.parse(raw),
        Collateral(vlek, [firmware.ca.asvk_der()], [firmware.ca.crl_der()]),
        at=now(),
        roots=Roots.from_pem(firmware.ca.roots_pem()),
    )
    assert verified.leaf.kind == "vlek"
    assert verified.leaf.csp_id == CSP_ID


@pytest.mark.parametrize("at", [0x0, 0x8, 0x50, 0x90, 0x180, 0x1A0, 0x29F])
def test_one_flipped_bit_breaks_the_signature(firmware: Firmware, at: int) -> None:
    raw = bytearray(firmware.guest_report(running(firmware), DATA))
    key = leaf_key(firmware.ca.vcek_der(firmware.reported_tcb))
    raw[at] ^= 1
    with pytest.raises(InvalidSignature):
        report_is_signed_by(bytes(raw), key)  # type: ignore[arg-type]


def test_reports_follow_the_reported_tcb(firmware: Firmware) -> None:
    gctx = running(firmware)
    older = TcbVersion.from_int(firmware.committed_tcb, products.GENOA).replace(snp=3).raw
    newest = firmware.ca.vcek_der(firmware.committed_tcb)
    firmware.snp_config(config(older))
    raw = firmware.guest_report(gctx, DATA)
    assert raw[0x180:0x188] == older.to_bytes(8, "little")
    report_is_signed_by(raw, leaf_key(firmware.ca.vcek_der(older)))  # type: ignore[arg-type]
    with pytest.raises(InvalidSignature):
        report_is_signed_by(raw, leaf_key(newest))  # type: ignore[arg-type]
    firmware.snp_commit()
    report_is_signed_by(firmware.guest_report(gctx, DATA), leaf_key(newest))  # type: ignore[arg-type]


VCEK, VLEK, NONE, INVALID_KEY = 0, 1, 7, None


@pytest.mark.parametrize("vcek_disabled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("selection", [0, 1, 2, 3])
def test_choice_of_the_signing_key(
    firmware: Firmware, selection: int, loaded: bool, masked: bool, vcek_disabled: bool
) -> None:
    vcek: int | None = INVALID_KEY if vcek_disabled else NONE if masked else VCEK
    vlek: int | None = VLEK if loaded else INVALID_KEY
    expected = {0: VLEK if loaded else vcek, 1: vcek, 2: vlek, 3: INVALID_KEY}[selection]
    if loaded:
        firmware.snp_vlek_load(firmware.vlek_hashstick())
    firmware.snp_config(config(0, 2 if masked else 0))
    gctx = started(firmware)
    firmware.snp_launch_finish(gctx, None, None, vcek_dis=vcek_disabled)
    if expected is None:
        with refused(status.INVALID_KEY, in_response=True):
            firmware.guest_report(gctx, DATA, 0, selection)
        return
    raw = firmware.guest_report(gctx, DATA, 0, selection)
    assert raw[0x48] == expected << 2 | (2 if masked else 0)
    if expected == NONE:
        assert raw[0x2A0:] == bytes(512)
        return
    issue: Callable[[int], bytes] = firmware.ca.vlek_der if expected == VLEK else firmware.ca.vcek_der
    report_is_signed_by(raw, leaf_key(issue(firmware.reported_tcb)))  # type: ignore[arg-type]


@pytest.mark.parametrize("vmpl", [0, 1, 2, 3])
def test_levels(firmware: Firmware, vmpl: int) -> None:
    raw = firmware.guest_report(running(firmware), DATA, vmpl)
    assert int.from_bytes(raw[0x30:0x34], "little") == vmpl


@pytest.mark.parametrize("vmpl", [4, 0xFFFFFFFF])
def test_levels_that_no_guest_has(firmware: Firmware, vmpl: int) -> None:
    with refused(status.INVALID_PARAM, in_response=True):
        firmware.guest_report(running(firmware), DATA, vmpl)


def test_report_that_the_host_asks_for(firmware: Firmware) -> None:
    gctx = running(firmware)
    raw = firmware.snp_hv_report(gctx)
    assert raw[0x30:0x34] == b"\xff" * 4
    assert raw[0x50:0x90] == bytes(64)
    report_is_signed_by(raw, leaf_key(firmware.ca.vcek_der(firmware.reported_tcb)))  # type: ignore[arg-type]
    with refused(status.INVALID_GUEST_STATE):
        firmware.snp_hv_report(started(firmware, asid=2))
    with refused(status.INVALID_KEY):
        firmware.snp_hv_report(gctx, 2)


def test_a_guest_that_does_not_run_yet_has_no_report(firmware: Firmware) -> None:
    with refused(status.INVALID_GUEST_STATE):
        firmware.guest_report(started(firmware), DATA)


def test_signatures_repeat_only_with_a_seed(open_firmware: Open) -> None:
    seeded = initialised(open_firmware())
    gctx = running(seeded)
    assert seeded.guest_report(gctx, DATA) == seeded.guest_report(gctx, DATA)
    free = initialised(open_firmware(seed=None))
    gctx = running(free)
    first, second = free.guest_report(gctx, DATA), free.guest_report(gctx, DATA)
    assert first[:0x2A0] == second[:0x2A0]
    assert first[0x2A0:] != second[0x2A0:]
