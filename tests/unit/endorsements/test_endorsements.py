"""The store and the set: what is taken, what is refused, what is missing, and what damage does."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from sev import products
from sev.abi import cert_table
from sev.abi.tcb import TcbVersion
from sev.certs import Roots
from sev.errors import MalformedInput, SevError, UsageError
from sevd.endorsements import ChipIdentity, EndorsementKind, Endorsements, EndorsementSet
from sevd.events import Event, Events
from tests.support.forge import AT, World, name, pem, rsa_key

K = EndorsementKind
GENOA = World()
ARK, ASK, ASVK = (GENOA.authority(kind) for kind in ("ark", "ask", "asvk"))
VCEK, VLEK, CRL = GENOA.leaf(), GENOA.leaf("vlek"), GENOA.crl()
CHAIN = pem(ASK) + pem(ARK)


def identity(world: World = GENOA, *, vlek: bool = False, **levels: int) -> ChipIdentity:
    tcb = TcbVersion.decode(world.tcb(**levels), world.product)
    return ChipIdentity(world.product, world.hwid, tcb, vlek)


class Kept:
    """Endorsements in a folder, with what was told."""

    def __init__(
        self, folder: Path, *, now: datetime = AT, roots: Roots | None = None, simulated: bool = False
    ) -> None:
        self.folder = folder
        self.told: list[Event] = []
        self.now = now
        events = Events()
        events.listen(self.told.append)
        self.it = Endorsements(
            folder / "state",
            roots or GENOA.roots(),
            events,
            table_path=folder / "certs.bin",
            simulated=simulated,
            now=lambda: self.now,
        )

    async def opened(self, chip: ChipIdentity | None = None) -> Kept:
        await self.it.open(chip or identity())
        return self

    def table(self) -> list[tuple[bytes, bytes]]:
        """What guests would get."""
        return cert_table.parse((self.folder / "certs.bin").read_bytes())

    def files(self) -> list[str]:
        state = self.folder / "state"
        return sorted(str(path.relative_to(state)) for path in state.rglob("*") if path.is_file())


def kinds(found: EndorsementSet) -> list[EndorsementKind]:
    return [each.kind for each in found.endorsements]


async def test_imported_certificates_are_kept_and_handed_to_guests(tmp_path: Path) -> None:
    kept = await Kept(tmp_path).opened()
    assert len(kept.it.current().missing) == 3
    assert kept.table() == []
    version = kept.it.version
    taken = await kept.it.import_([CHAIN, pem(VCEK), CRL])
    assert sorted(each.kind for each in taken) == [K.ARK, K.ASK, K.VCEK, K.CRL]
    assert {each.origin for each in taken} == {"import"}
    now = kept.it.current()
    assert kinds(now) == [K.ARK, K.ASK, K.VCEK, K.CRL]
    assert now.missing == ()
    assert kept.it.version > version
    vcek = next(each for each in now.endorsements if each.kind is K.VCEK)
    assert vcek.tcb == identity().reported_tcb
    assert kept.table() == [(cert_table.VCEK, VCEK), (cert_table.ASK, ASK), (cert_table.ARK, ARK)]
    assert now.certificate_table == (tmp_path / "certs.bin").read_bytes()
    digests = sorted(sha256(each).hexdigest() for each in (ARK, ASK, VCEK, CRL))
    assert kept.files() == ["amd/index", *(f"amd/objects/{digest}" for digest in digests)]
    again = await Kept(tmp_path).opened()
    assert again.it.current() == now
    assert again.told == []


async def test_a_loaded_vlek_takes_the_place_of_the_vcek(tmp_path: Path) -> None:
    kept = await Kept(tmp_path).opened()
    await kept.it.import_([ARK, ASK, ASVK, VCEK, VLEK])
    assert [guid for guid, _ in kept.table()] == [cert_table.VCEK, cert_table.ASK, cert_table.ARK]
    await kept.it.renew(identity(vlek=True))
    assert kept.table() == [(cert_table.VLEK, VLEK), (cert_table.ASK, ASVK), (cert_table.ARK, ARK)]
    assert kinds(kept.it.current()) == [K.ARK, K.ASK, K.ASVK, K.VCEK, K.VLEK]
    assert kept.it.current().missing == ()


async def test_the_set_follows_the_reported_tcb(tmp_path: Path) -> None:
    kept = await Kept(tmp_path).opened()
    older = GENOA.leaf(ext={"levels": {"snp": 3}})
    await kept.it.import_([ARK, ASK, VCEK, older])
    await kept.it.renew(identity(snp=3))
    assert kept.table()[0] == (cert_table.VCEK, older)
    found = await kept.it.renew(identity(snp=2))
    assert [guid for guid, _ in kept.table()] == [cert_table.ASK, cert_table.ARK]
    assert "There is no VCEK for the reported TCB" in found.missing[0]
    assert "snp=2" in found.missing[0]


TURIN = World(products.TURIN)
OTHER = World(label="another authority")

REFUSED: list[tuple[str, list[bytes], str]] = [
    ("nothing", [], "INVALID_ARGUMENT"),
    ("too many", [VCEK] * 33, "INVALID_ARGUMENT"),
    ("too long", [bytes(65537)], "INVALID_ARGUMENT"),
    ("no certificate", [b"hello"], "MALFORMED"),
    ("empty", [b""], "MALFORMED"),
    ("truncated", [VCEK[:-1]], "MALFORMED"),
    ("a private key", [pem(VCEK, "PRIVATE KEY")], "MALFORMED"),
    ("a flipped bit in the signature", [ASK, VCEK[:-9] + bytes([VCEK[-9] ^ 1]) + VCEK[-8:]], "LEAF_SIGNATURE_INVALID"),
    ("another authority's VCEK", [OTHER.authority("ask"), OTHER.leaf()], "INTERMEDIATE_SIGNATURE_INVALID"),
    ("another authority's ARK", [OTHER.authority("ark")], "INTERMEDIATE_SIGNATURE_INVALID"),
    ("another chip's VCEK", [ASK, GENOA.leaf(ext={"hwid": bytes(64)})], "CHIP_ID_MISMATCH"),
    ("a VCEK of no chip", [ASK, GENOA.leaf(ext={"without": ("hwid",)})], "LEAF_INCOMPLETE"),
    ("a VCEK without a patch level", [ASK, GENOA.leaf(ext={"without": ("snp",)})], "LEAF_INCOMPLETE"),
    ("another product's VCEK", [TURIN.authority("ask"), TURIN.leaf()], "PRODUCT_MISMATCH"),
    ("a VCEK that names another product", [ASK, GENOA.leaf(ext={"product_name": "Milan-B0"})], "PRODUCT_MISMATCH"),
    ("a VCEK without its issuer", [VCEK], "INTERMEDIATE_MISSING"),
    ("a VCEK that ran out", [ASK, GENOA.leaf(not_after=AT - timedelta(days=1))], "CERTIFICATE_EXPIRED"),
    ("a VCEK of tomorrow", [ASK, GENOA.leaf(not_before=AT + timedelta(days=1))], "CERTIFICATE_NOT_YET_VALID"),
    ("a VLEK under the ASK", [ASK, GENOA.leaf("vlek", signer=rsa_key("genoa ask"))], "INTERMEDIATE_MISSING"),
    ("a list of another root", [TURIN.crl()], "CRL_OF_ANOTHER_ISSUER"),
    ("a list signed by somebody", [GENOA.crl(signer=rsa_key("somebody"))], "CRL_SIGNATURE_INVALID"),
    ("a list that ran out", [GENOA.crl(next_update=AT - timedelta(seconds=1))], "CRL_STALE"),
    ("a list of tomorrow", [GENOA.crl(this_update=AT + timedelta(days=1))], "CRL_NOT_YET_VALID"),
    ("something else's certificate", [GENOA.leaf(subject=name("Somebody"))], "INVALID_ARGUMENT"),
]


@pytest.mark.parametrize(("contents", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
@pytest.mark.parametrize("validate_only", [False, True], ids=["kept", "validate_only"])
async def test_what_is_not_genuine_is_not_kept(
    tmp_path: Path, contents: list[bytes], reason: str, validate_only: bool
) -> None:
    kept = await Kept(tmp_path).opened()
    with pytest.raises(SevError) as refused:
        await kept.it.import_(contents and [CRL, *contents], validate_only=validate_only)
    assert refused.value.reason == reason
    assert kept.files() == []  # not even the good one that came along
    assert kept.it.current().endorsements == ()


async def test_a_malformed_content_is_named(tmp_path: Path) -> None:
    kept = await Kept(tmp_path).opened()
    with pytest.raises(MalformedInput) as refused:
        await kept.it.import_([ARK, b"hello"])
    assert refused.value.field == "contents[1]"


async def test_an_older_list_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    kept = await Kept(tmp_path).opened()
    await kept.it.import_([CRL])
    with pytest.raises(UsageError, match="older than the one at hand"):
        await kept.it.import_([GENOA.crl(this_update=datetime(2026, 8, 1, tzinfo=UTC))])
    newer = GENOA.crl(this_update=datetime(2026, 8, 24, tzinfo=UTC))
    await kept.it.import_([newer])
    assert kept.it.current().endorsements[-1].der == newer


async def test_validate_only_keeps_nothing(tmp_path: Path) -> None:
    kept = await Kept(tmp_path).opened()
    taken = await kept.it.import_([CHAIN, VCEK], validate_only=True)
    assert len(taken) == 3
    assert kept.files() == []
    assert kept.told == []
    assert kept.it.current().endorsements == ()


DAMAGES = ["truncated", "empty", "a flipped bit", "random", "huge", "another place's", "PEM"]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_files_are_set_aside_and_said(tmp_path: Path, damage: str) -> None:
    await (kept := await Kept(tmp_path).opened()).it.import_([CHAIN, VCEK])
    path = tmp_path / "state" / "amd" / "objects" / sha256(VCEK).hexdigest()
    good = path.read_bytes()
    bad = {
        "truncated": good[:-1],
        "empty": b"",
        "a flipped bit": good[:-20] + bytes([good[-20] ^ 4]) + good[-19:],
        "random": os.urandom(1000),
        "huge": bytes(1 << 20),
        "another place's": ASK,
        "PEM": pem(good),
    }[damage]
    path.write_bytes(bad)
    kept = await Kept(tmp_path).opened()
    assert kinds(kept.it.current()) == [K.ARK, K.ASK]
    aside = next(path.parent.glob("*.damaged-*"))
    assert aside.read_bytes() == bad
    assert not path.exists()
    sentence = next(each for each in kept.it.current().missing if "damaged" in each)
    assert path.name in sentence
    assert "import it again" in sentence
    assert [event.kind for event in kept.told] == ["endorsements.set_aside"]
    await kept.it.import_([VCEK])
    assert K.VCEK in kinds(kept.it.current())
    assert (await Kept(tmp_path).opened()).told == []


async def test_other_tcbs_are_forgotten_and_the_own_one_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sevd.endorsements.store.LEAVES_MAX", 2)
    kept = await Kept(tmp_path).opened()
    await kept.it.import_([CHAIN, VCEK])
    for level in (1, 2, 3):
        kept.now += timedelta(minutes=1)
        await kept.it.import_([GENOA.leaf(ext={"levels": {"snp": level}})])
    assert K.VCEK in kinds(kept.it.current())
    await kept.it.renew(identity(snp=3))
    assert K.VCEK in kinds(kept.it.current())
    await kept.it.renew(identity(snp=1))
    assert K.VCEK not in kinds(kept.it.current())
    assert len(kept.files()) == 5


async def test_what_was_taken_and_until_when_is_told(tmp_path: Path) -> None:
    kept = await Kept(tmp_path).opened()
    await kept.it.import_([CHAIN, VCEK, CRL])
    for each in kept.it.current().endorsements:
        assert (each.origin, each.fetched) == ("import", AT)
        assert each.ends is not None
        assert each.ends > AT


async def test_who_listens_hears_of_another_tcb_and_another_set(tmp_path: Path) -> None:
    kept = await Kept(tmp_path).opened()
    heard: list[tuple[bool, ChipIdentity | None]] = []
    kept.it.changed = lambda moved: heard.append((moved, kept.it.identity))
    await kept.it.renew(identity())
    assert heard == []
    await kept.it.renew(identity(snp=2))
    assert heard[-1] == (True, identity(snp=2))
    heard.clear()
    await kept.it.import_([CHAIN])
    assert heard == [(False, identity(snp=2))]


async def test_certificates_that_run_out_go(tmp_path: Path) -> None:
    kept = await Kept(tmp_path).opened()
    await kept.it.import_([CHAIN, VCEK, CRL])
    version = kept.it.version
    kept.now = datetime(2026, 11, 1, tzinfo=UTC)
    assert kinds(kept.it.current()) == [K.ARK, K.ASK, K.VCEK]
    assert any("The CRL at hand cannot be used" in each for each in kept.it.current().missing)
    assert kept.it.version == version + 1
    kept.now = datetime(2033, 1, 1, tzinfo=UTC)
    assert kinds(kept.it.current()) == [K.ARK, K.ASK]
    assert len(kept.files()) == 5  # what ran out is not damaged


async def test_without_a_chip_nothing_is_claimed(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    await kept.it.open(None)
    assert kept.it.current().endorsements == ()
    assert "device is missing" in kept.it.current().missing[0]
    with pytest.raises(SevError) as refused:
        await kept.it.import_([ASK, VCEK])
    assert refused.value.reason == "DEVICE_MISSING"
    await kept.it.import_([CHAIN])
    assert (await kept.it.renew(identity())).missing == (kept.it.current().missing[0],)
    assert kinds(kept.it.current()) == [K.ARK, K.ASK]


async def test_simulated_imports_never_mix_with_real_ones(tmp_path: Path) -> None:
    await (simulated := await Kept(tmp_path, simulated=True).opened()).it.import_([CHAIN, VCEK])
    assert simulated.it.current().simulated
    real = await Kept(tmp_path, roots=Roots.amd()).opened()
    assert real.it.current().endorsements == ()
    assert real.told == []
    with pytest.raises(SevError):
        await real.it.import_([CHAIN, VCEK])


async def test_a_vlek_reads_back_with_the_authority_that_was_imported(tmp_path: Path) -> None:
    await (await Kept(tmp_path).opened()).it.import_([ASVK, VLEK, ARK])
    again = await Kept(tmp_path).opened(identity(vlek=True))
    assert again.told == []
    assert again.it.current().missing == ()


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"in the way")
    kept = await Kept(tmp_path).opened()
    with pytest.raises(SevError) as refused:
        await kept.it.import_([CHAIN])
    assert refused.value.reason == "KERNEL_ERRNO"
    assert kept.it.current().endorsements == ()


async def test_a_table_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "certs.bin").mkdir()
    kept = await Kept(tmp_path).opened()
    assert [event.kind for event in kept.told] == ["endorsements.stale"]
    assert kept.it.current().missing
