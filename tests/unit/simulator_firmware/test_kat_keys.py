"""Known answers: KDF, chip id, hash sticks, VCEK and VLEK keys, VLEK wrapping."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sevd.simulator import chip, hash_sticks

SEED = bytes(range(48))
TCB = bytes((3, 0, 0, 0, 0, 0, 8, 115))
VCEK_HASH = bytes.fromhex(
    "98b4e76e54fbe6f158976da9952aba7330342a2a763693858b29b6a3fa1be35df0d3665dc3e2647bca1d767d9e16d893"
)
STICKS = [
    "16763510d908f3b987ab75cdaf581fbc63bbf52259f1460625d2248c6af1a297eef416e49992a0469e81540f9fade693",
    "dda1f674cb6994db15a991d3f159614917bf81dfbbedf4006414568bc5b5a07bd9daa13355021309b5ff14149cbe57bf",
    "54cd625774cd9424fc070cdc6fb252dfedce9d7837ff9fb307645668db4e3b5276cd3b37fb9771beff2c6022127d612c",
    "ab1d5e552eb8c62276083ab755bb3cb248b4903ee7c766f0abea350afe24d7700e804a3e7537fbaa96f4766bbc722e67",
    "d38f92f5cb6f2e6caa95eb4b4787cdb81e24798a22aa2dee3d538580ced2dc4fbf4ee9f10afc33cf450ac2fb50e420f0",
    "0f0f970e2426ef9da8f7bb0196110caf438173d16a3a6a481d66ba55541b76f303edb003b93550370b7c242891acf865",
    "c0663ade83a6b426ea2ba3cc504d3e0d4077fb77015132e28f7c58636b7527360477753bc0e4a0c5e8f649d8ec8726bb",
    "98b4e76e54fbe6f158976da9952aba7330342a2a763693858b29b6a3fa1be35df0d3665dc3e2647bca1d767d9e16d893",
]
CUK = bytes(range(1, 33))


def test_published_kdf_values() -> None:
    master = hash_sticks.kdf(bytes(16), "sev-master-secret", bytes(16), 16)
    assert master.hex() == "ab4d269fcc62bedb4511d56c386ce706"
    assert hash_sticks.kdf(master, "sev-kek", b"", 16).hex() == "b6abfbfb75ea1ea74ed8750b8afdb973"
    assert hash_sticks.kdf(master, "sev-kik", b"", 16).hex() == "53b524bf5669a363f365c864acba8572"


def test_kdf_of_several_blocks() -> None:
    seed = hashlib.sha256(CUK).digest()
    assert hash_sticks.kdf(seed, "sev-chip-endorsement-key", b"", 56).hex() == (
        "95e2cfd97cc0eaf2ca881040f8c87807d1a7e24b576eaa9ae4975a176c9f7909efb4887012182fd7a0fcbc57845c7fe7240414a3af330109"
    )


def test_chip_id_and_cek() -> None:
    assert chip.chip_id(CUK).hex() == (
        "84bf7562262bbd6940085748f3be6afa52ae317155181ece31b66351ccffa4b0"
        "8cc43d63b2859d469fee15f31c9edb5324266e6fd0407e87382d60fc4511acd8"
    )
    assert f"{chip.cek_scalar(CUK):096x}" == (
        "e77f5c8457bcfca0d72f18127088b4ef0b7765bd470006623f032ceb9012de57c972b6471112d725871cee8c2688468e"
    )


def test_every_stick() -> None:
    assert [stick.hex() for stick in hash_sticks.sticks(SEED, TCB)] == STICKS


@pytest.mark.parametrize(
    ("snp", "vcek_hash", "scalar", "x"),
    [
        (
            8,
            VCEK_HASH.hex(),
            "fa40dbc82ec8c9d8507b27ccdfc5d926f37212fe0de3c07f8a10d5bbc4768d77f1338af0ab2ed0dd6067c371c4d27ec3",
            "691f6ff51dfd7ea08935903b1e6cc395b599e96b67e71a385ef834ee2c1e5b6ba91b4b8ec341bb572dc5bbbdd5791cbd",
        ),
        (
            5,
            "4afd396b6f08a7ef4af4891a5825c5c1929b014dc68c582a0f0cc1ea88231b73e593635141caa952ee70edccf17ab1d0",
            "79786414f66ecdd8608edc67391380874508c2ac3a17fa61de6c5d3277113617e5f3791b943cc27cffd2e71cb27068d2",
            "744b634ebf227a01b6447bdeda317fa1b3b377a6df382dd77acc9bf4500b333b73898fa04913229c458b5f2cc553a39b",
        ),
    ],
)
def test_vcek_of_a_tcb(snp: int, vcek_hash: str, scalar: str, x: str) -> None:
    tcb = bytes((3, 0, 0, 0, 0, 0, snp, 115))
    secret = hash_sticks.tcb_hash(SEED, tcb)
    assert secret.hex() == vcek_hash
    assert f"{hash_sticks.scalar(secret, hash_sticks.VCEK_LABEL):096x}" == scalar
    numbers = hash_sticks.private_key(secret, hash_sticks.VCEK_LABEL).public_key().public_numbers()
    assert f"{numbers.x:096x}" == x


def test_vlek_key_of_the_same_stick() -> None:
    assert f"{hash_sticks.scalar(VCEK_HASH, hash_sticks.VLEK_LABEL):096x}" == (
        "52bad0bacf96381be6fd2dec47ebdd59744610ad65ea2c133ab200e41fb7e5438ad7d14a98dbae03b53385bf0d46a14d"
    )


def test_older_versions_follow_from_a_stick_and_newer_ones_do_not() -> None:
    newer, older = (hash_sticks.sticks(SEED, bytes((v, 0, 0, 0, 0, 0, 0, 0)))[0] for v in (5, 3))
    assert hashlib.sha384(hashlib.sha384(newer).digest()).digest() == older
    assert hashlib.sha384(hashlib.sha384(older).digest()).digest() != newer


def test_vlek_wrapping() -> None:
    sticks = tuple(bytes((0x80 + i,)) * 48 for i in range(8))
    assert hash_sticks.kdf(VCEK_HASH, "vlek-wrapping-key", b"", 32).hex() == (
        "545fdc8f6e0ff4241e24bf3d8fe39aa2167dd7c7eb86ed0e5e94734c32f8c81c"
    )
    blob = hash_sticks.wrap_vlek(VCEK_HASH, sticks, TCB, bytes(range(12)))
    assert len(blob) == 432
    assert hashlib.sha256(blob).hexdigest() == "e14a91b3b558610e3458a56353071aa593d12f9f82bdcbf2f526dc3e8e710b85"
    assert hash_sticks.unwrap_vlek(VCEK_HASH, blob) == sticks


@pytest.mark.parametrize("at", [0, 11, 0x10, 0x18F, 0x190, 0x19F, 0x1A0, 0x1AF])
def test_a_changed_wrapped_vlek_does_not_open(at: int) -> None:
    blob = bytearray(hash_sticks.wrap_vlek(VCEK_HASH, tuple(bytes(48) for _ in range(8)), TCB, bytes(12)))
    blob[at] ^= 1
    assert hash_sticks.unwrap_vlek(VCEK_HASH, bytes(blob)) is None


def test_tcb_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 8"):
        hash_sticks.sticks(SEED, TCB[:7])


def test_scalars_are_in_range() -> None:
    for number in range(40):
        assert 1 <= hash_sticks.scalar(bytes((number,)) * 48, hash_sticks.VCEK_LABEL) < hash_sticks.P384_ORDER
    assert ec.SECP384R1().key_size == 384
