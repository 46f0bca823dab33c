"""The legacy platform below the kernel: states, keys, ownership."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sev import status
from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate, Signature
from sevd.simulator import firmware_legacy, versions
from sevd.simulator.chip import cek_scalar
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_status import FirmwareStatus
from tests.support.legacy import Boot, Owner, check_chain
from tests.support.legacy_machine import some_guest
from tests.support.simulated_firmware import refused

UNINIT, INIT, WORKING = 0, 1, 2
STATE = status.INVALID_PLATFORM_STATE
CHAIN = (abi.SIZE, abi.CHAIN_SIZE)

Command = Callable[[Firmware], object]


def owned(firmware: Firmware) -> None:
    owner = Owner()
    firmware.pek_cert_import(owner.sign(firmware.pek_csr(abi.SIZE)), owner.oca)


def test_a_state_that_changes(firmware: Firmware) -> None:
    platform = firmware._platform.legacy
    handle = platform.admit(some_guest())
    other = platform.admit(some_guest())
    assert (handle, other) == (1, 2)
    assert firmware.platform_status()[2] == WORKING
    assert int.from_bytes(firmware.platform_status()[8:12], "little") == 2
    del platform.guests[handle]
    assert platform.admit(some_guest()) == handle
    platform.guests.clear()
    assert firmware.platform_status()[2] == INIT
    for _ in range(firmware_legacy.GUESTS_MAX):
        platform.admit(some_guest())
    with refused(status.RESOURCE_LIMIT):
        platform.admit(some_guest())
    firmware.shutdown()
    assert firmware.platform_status()[2:] == bytes((UNINIT, 0, 0, 0, 0, firmware.version[2])) + bytes(4)


@pytest.mark.parametrize(
    ("flags", "code"), [(0, None), (1, None), (2, status.INVALID_CONFIG), (0x8001, status.INVALID_CONFIG)]
)
def test_flags_of_init(firmware: Firmware, flags: int, code: int | None) -> None:
    firmware.shutdown()
    if code is not None:
        with refused(code):
            firmware.init(flags)
        assert firmware.platform_status()[2] == UNINIT
        return
    firmware.init(flags)
    assert firmware.platform_status()[4] == flags


def test_the_chain_is_whole(firmware: Firmware) -> None:
    pdh, pek, oca, cek = check_chain(*firmware.pdh_cert_export(*CHAIN), firmware.ca)
    assert {(each.api_major, each.api_minor) for each in (pdh, pek, oca, cek)} == {(1, 55)}
    assert SevCertificate.read(firmware.ca.cek_certificate()).api_minor == 14
    assert [each.algorithm for each in (pdh, pek, oca, cek)] == [3, 2, 2, 2]


@pytest.mark.parametrize(
    "lengths", [(0, 0), (abi.SIZE - 1, abi.CHAIN_SIZE), (abi.SIZE, abi.CHAIN_SIZE - 1), (0, abi.CHAIN_SIZE)]
)
def test_short_buffers_of_an_export(firmware: Firmware, lengths: tuple[int, int]) -> None:
    with pytest.raises(FirmwareStatus) as short:
        firmware.pdh_cert_export(*lengths)
    assert (short.value.code, short.value.lengths) == (status.INVALID_LENGTH, CHAIN)


def test_other_short_buffers(firmware: Firmware) -> None:
    for command, size in ((firmware.pek_csr, abi.SIZE), (firmware.get_id, 64)):
        with pytest.raises(FirmwareStatus) as short:
            command(size - 1)
        assert (short.value.code, short.value.lengths) == (status.INVALID_LENGTH, (size,))
        assert len(command(size)) == len(command(size + 1)) == size


def test_the_request_is_the_pek_without_signatures(firmware: Firmware) -> None:
    csr = SevCertificate.read(firmware.pek_csr(abi.SIZE))
    pek = abi.split(firmware.pdh_cert_export(*CHAIN)[1])[0]
    assert csr.body == pek.body
    assert [each.encode() for each in csr.signatures] == [Signature().encode()] * 2


def test_becoming_owned_and_free_again(firmware: Firmware) -> None:
    first = check_chain(*firmware.pdh_cert_export(*CHAIN), firmware.ca)
    owner = Owner()
    owned(firmware)
    assert firmware.platform_status()[3] == 1
    second = check_chain(*firmware.pdh_cert_export(*CHAIN), firmware.ca)
    assert second[2].encode() == owner.oca
    assert second[1].body == first[1].body
    assert second[0].key != first[0].key, "a new PDH"
    with refused(status.ALREADY_OWNED):
        owned(firmware)
    with refused(status.ALREADY_OWNED):
        firmware.pek_cert_import(b"", b"")
    firmware.pdh_gen()
    third = check_chain(*firmware.pdh_cert_export(*CHAIN), firmware.ca)
    assert third[1:] == second[1:]
    assert third[0].key != second[0].key
    firmware.pek_gen()
    fourth = check_chain(*firmware.pdh_cert_export(*CHAIN), firmware.ca)
    assert firmware.platform_status()[3] == 0
    assert not {each.key for each in fourth[:3]} & {each.key for each in third[:3]}
    assert fourth[3] == first[3], "the CEK is the chip's"


def judged(firmware: Firmware, change: str) -> int:
    """The status of an import that has one thing wrong."""
    owner, other = Owner(), Owner(0xBAD)
    csr = firmware.pek_csr(abi.SIZE)
    pek, oca = bytearray(owner.sign(csr)), bytearray(owner.oca)
    if change == "short PEK":
        del pek[-1:]
    elif change == "long OCA":
        oca += b"\0"
    elif change == "OCA of another version":
        oca[0] = 2
    elif change == "PEK of another version":
        pek[0] = 2
    elif change == "OCA that is a PEK":
        oca[8] = 2
    elif change == "algorithm of the OCA":
        oca[0x0C:0x0E] = b"\x02\x01"
    elif change == "curve of the OCA":
        oca[0x10] = 1
    elif change == "OCA off the curve":
        oca[0x14] ^= 1
    elif change == "OCA not signed":
        oca[0x414:] = Signature().encode() * 2
    elif change == "signature of the OCA":
        oca[0x420] ^= 1
    elif change == "another OCA":
        oca = bytearray(other.oca)
    elif change == "PEK not signed":
        pek = bytearray(csr)
    elif change == "signature of the PEK":
        pek[0x420] ^= 1
    elif change == "half free slot":
        pek[0x620] = 2
    elif change == "half free slot of the OCA":
        oca[0x61C:0x620] = (abi.OCA).to_bytes(4, "little")
    elif change == "no free slot":
        signed = SevCertificate.read(bytes(pek))
        pek = bytearray(signed.signed(2, signed.signature1).encode())
    elif change == "another platform's PEK":
        firmware.pek_gen()
    try:
        firmware.pek_cert_import(bytes(pek), bytes(oca))
    except FirmwareStatus as refused_:
        return refused_.code
    return status.SUCCESS


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("short PEK", status.INVALID_LENGTH),
        ("long OCA", status.INVALID_LENGTH),
        ("OCA of another version", status.INVALID_CERTIFICATE),
        ("PEK of another version", status.INVALID_CERTIFICATE),
        ("OCA that is a PEK", status.INVALID_CERTIFICATE),
        ("algorithm of the OCA", status.INVALID_CERTIFICATE),
        ("curve of the OCA", status.INVALID_CERTIFICATE),
        ("OCA off the curve", status.INVALID_CERTIFICATE),
        ("OCA not signed", status.INVALID_CERTIFICATE),
        ("signature of the OCA", status.BAD_SIGNATURE),
        ("another OCA", status.BAD_SIGNATURE),
        ("PEK not signed", status.INVALID_CERTIFICATE),
        ("signature of the PEK", status.BAD_SIGNATURE),
        ("half free slot", status.BAD_SIGNATURE),
        ("half free slot of the OCA", status.BAD_SIGNATURE),
        ("no free slot", status.INVALID_CERTIFICATE),
        ("another platform's PEK", status.INVALID_CERTIFICATE),
        ("nothing", status.SUCCESS),
    ],
)
def test_imports(firmware: Firmware, change: str, code: int) -> None:
    before = firmware.pdh_cert_export(*CHAIN)
    assert status.name(judged(firmware, change)) == status.name(code)
    assert firmware.platform_status()[3] == int(code == status.SUCCESS)
    if change != "another platform's PEK":
        assert (firmware.pdh_cert_export(*CHAIN) == before) == (code != status.SUCCESS)


def test_the_owners_signature_may_stand_in_the_second_slot(firmware: Firmware) -> None:
    owner = Owner()
    signed = SevCertificate.read(owner.sign(firmware.pek_csr(abi.SIZE)))
    turned = signed.signed(1, Signature()).signed(2, signed.signature1)
    firmware.pek_cert_import(turned.encode(), owner.oca)
    pek = abi.split(firmware.pdh_cert_export(*CHAIN)[1])[0]
    assert [each.usage for each in pek.signatures] == [abi.CEK, abi.OCA]


def test_keys_outlive_power_but_not_a_reset(boot: Boot) -> None:
    firmware = boot().firmware
    owned(firmware)
    before = firmware.pdh_cert_export(*CHAIN)
    firmware = boot().firmware
    assert firmware.pdh_cert_export(*CHAIN) == before
    assert firmware.platform_status()[3] == 1
    firmware.shutdown()
    assert firmware.platform_status()[3] == 1, "the owner that was known last"
    firmware.factory_reset()
    assert firmware.platform_status()[3] == 0
    firmware.init()
    after = check_chain(*firmware.pdh_cert_export(*CHAIN), firmware.ca)
    assert not {each.key for each in after[:3]} & {
        each.key for each in (SevCertificate.read(before[0]), *abi.split(before[1])[:2])
    }


def test_a_seed_repeats_the_first_keys_and_none_twice(boot: Boot, state_dir: Path) -> None:
    firmware = boot().firmware
    first = firmware.pdh_cert_export(*CHAIN)
    flash = next(state_dir.rglob("flash.json"))
    firmware.pek_gen()
    second = firmware.pdh_cert_export(*CHAIN)
    firmware = boot().firmware
    firmware.pek_gen()
    third = firmware.pdh_cert_export(*CHAIN)
    assert len({first, second, third}) == 3, "a restart does not begin again"
    flash.unlink()
    assert boot().firmware.pdh_cert_export(*CHAIN) == first


def test_the_flash_is_secret_and_nobody_elses(boot: Boot, state_dir: Path) -> None:
    firmware = boot().firmware
    assert not list(state_dir.rglob("flash.json")), "keys are made when they are first needed"
    firmware.pek_csr(abi.SIZE)
    (flash,) = state_dir.rglob("flash.json")
    assert flash.stat().st_mode & 0o777 == 0o600
    contents = json.loads(flash.read_text())["nv"]
    pek_key = firmware._platform.legacy.identity().pek_key.private_numbers().private_value
    assert f"{pek_key:096x}" not in contents
    assert firmware.pek_csr(abi.SIZE)[:100].hex() not in contents
    assert f"{pek_key:x}" not in repr(firmware._platform.legacy.identity())


def test_a_damaged_flash_is_said_at_the_start(boot: Boot, state_dir: Path) -> None:
    from sev.errors import MalformedInput

    boot().firmware.pek_csr(abi.SIZE)
    (flash,) = state_dir.rglob("flash.json")
    good = flash.read_text()
    for bad in (good.replace('"keys_made": 3', '"keys_made": 4'), good[:-10], "{}"):
        flash.write_text(bad)
        with pytest.raises(MalformedInput, match=r"flash\.json"):
            boot()
    flash.write_text(good)
    boot()


@pytest.mark.parametrize("size", [0, (32 << 10) - 1, (32 << 10) + 1])
def test_a_host_store_has_one_size(firmware: Firmware, size: int) -> None:
    firmware.shutdown()
    with refused(status.INVALID_LENGTH):
        firmware.init_ex(bytearray(b"\xff" * size))


def test_a_store_in_the_hosts_memory(firmware: Firmware) -> None:
    in_flash = firmware.pdh_cert_export(*CHAIN)
    firmware.shutdown()
    memory = bytearray(b"\xff" * (32 << 10))
    firmware.init_ex(memory)
    assert memory[:4] != b"\xff" * 4
    assert len(memory) == 32 << 10
    owned(firmware)
    chain = firmware.pdh_cert_export(*CHAIN)
    saved = bytearray(memory)
    firmware.shutdown()
    firmware.init()
    assert firmware.pdh_cert_export(*CHAIN) == in_flash
    firmware.shutdown()
    firmware.init_ex(saved)
    assert firmware.pdh_cert_export(*CHAIN) == chain
    assert firmware.platform_status()[3] == 1
    firmware.shutdown()
    firmware.factory_reset()
    assert set(saved) == {0xFF}, "the store in use is erased"
    firmware.init()
    assert firmware.pdh_cert_export(*CHAIN) == in_flash


@pytest.mark.parametrize("at", [0, 4, 0x14, 0x18, 5000, 0x18 + 148 + 3 * 2084 + 31], ids=hex)
def test_a_store_that_was_changed_is_erased(firmware: Firmware, at: int) -> None:
    firmware.shutdown()
    memory = bytearray(b"\xff" * (32 << 10))
    firmware.init_ex(memory)
    before = firmware.pdh_cert_export(*CHAIN)
    firmware.shutdown()
    memory[at] ^= 1
    with refused(status.SECURE_DATA_INVALID):
        firmware.init_ex(memory)
    assert set(memory) == {0xFF}
    assert firmware.platform_status()[2] == UNINIT
    firmware.init_ex(memory)
    after = check_chain(*firmware.pdh_cert_export(*CHAIN), firmware.ca)
    assert after[0].encode() != before[0]


def test_a_key_that_cannot_be_stored_is_not_taken_on(firmware: Firmware, monkeypatch: pytest.MonkeyPatch) -> None:
    from sevd.simulator import store

    before = firmware.pdh_cert_export(*CHAIN)

    def full(*_: object, **__: object) -> None:
        raise store.NotStored("no space")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_document", full)
        for command in (firmware.pek_gen, firmware.pdh_gen, lambda: owned(firmware)):
            with refused(status.HWERROR_PLATFORM):
                command()
    assert firmware.pdh_cert_export(*CHAIN) == before
    assert firmware.platform_status()[3] == 0


def test_asids_are_dirty_after_init(firmware: Firmware) -> None:
    firmware.shutdown()
    firmware.init()
    gctx = firmware.snp_gctx_create()
    firmware.snp_launch_start(gctx, 0x30000, bytes(16))
    with refused(status.DF_FLUSH_REQUIRED):
        firmware.snp_activate(gctx, 1)
    with refused(status.WBINVD_REQUIRED):
        firmware.df_flush(wbinvd=False)
    firmware.df_flush()
    firmware.snp_activate(gctx, 1)
    firmware.df_flush(wbinvd=False)  # none is dirty
    firmware.shutdown()
    firmware.init()
    with refused(status.ACTIVE):
        firmware.snp_activate(gctx, 1)  # SNP guests keep theirs
    firmware.snp_decommission(gctx)


def test_a_known_chip_endorsement_key() -> None:
    cuk = bytes(range(1, 33))
    scalar = "e77f5c8457bcfca0d72f18127088b4ef0b7765bd470006623f032ceb9012de57c972b6471112d725871cee8c2688468e"
    assert f"{cek_scalar(cuk):096x}" == scalar


@pytest.mark.parametrize(
    ("image", "address", "code"),
    [
        (b"$PS1", 0, status.BAD_SIGNATURE),
        (b"", 0, status.BAD_SIGNATURE),
        (versions.image((1, 55, 49)) + b"\xff", 0, status.BAD_SIGNATURE),
        (versions.image((1, 55, 49)), 16, status.INVALID_ADDRESS),
        (versions.image((1, 51, 1)), 0, status.BAD_VERSION),
        (versions.image((1, 55, 40)), 0, status.BAD_SVN),
        (versions.image((1, 55, 52)), 0, None),
    ],
    ids=["AMD's", "empty", "damaged", "not aligned", "unknown", "older", "newer"],
)
def test_firmware_downloads(firmware: Firmware, image: bytes, address: int, code: int | None) -> None:
    firmware.shutdown()
    firmware.df_flush()
    firmware.snp_shutdown()
    before = firmware.version
    if code is not None:
        with refused(code):
            firmware.download_firmware(image, address)
        assert firmware.version == before
    else:
        firmware.download_firmware(image, address)
        assert (firmware.version, firmware.committed_version) == ((1, 55, 52), (1, 55, 52))
