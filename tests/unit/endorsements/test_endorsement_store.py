"""The store: one content once, names for it, what damage does, what the layout before this one leaves, and bounds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sev import products
from sev.certs import Certificate, Crl, Roots
from sev.errors import KernelError, MalformedInput
from sev.records import replace
from sevd.endorsements import index, store
from sevd.endorsements.check import check_genuine, check_list
from sevd.endorsements.entries import Stored, cek_entry, entry
from sevd.endorsements.store import Store
from tests.support.forge import World
from tests.support.simulated import simulated_host

GENOA, TURIN = World(), World(products.TURIN)
ARK, ASK, VCEK, CRL = GENOA.authority("ark"), GENOA.authority("ask"), GENOA.leaf(), GENOA.crl()
OLDER = Path(__file__).resolve().parents[2] / "goldens" / "endorsements-0.1"


def kept(der: bytes, product: products.Product = products.GENOA, *, crl: bool = False, **facts: Any) -> Stored:
    item = Crl.parse(der) if der == CRL or crl else Certificate.parse(der)
    return replace(entry(item, product), **facts)


class Folder:
    """A store in a folder, with what it reported."""

    def __init__(self, path: Path, roots: Roots | None = None) -> None:
        self.path = path
        self.told: list[str] = []
        self.roots = roots or GENOA.roots()
        self.it = Store(path, self.told.append)

    def load(self, products: Sequence[str] | None = None) -> dict[str, Stored]:
        def check(stored: Stored, authorities: Sequence[Certificate]) -> None:
            if stored.crl is not None:
                check_list(stored.crl, self.roots, None)
            elif stored.certificate is not None:
                check_genuine(stored.certificate, self.roots, authorities)

        return self.it.load(check, products)

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())


def opened(path: Path) -> tuple[Folder, dict[str, Stored]]:
    folder = Folder(path)
    return folder, folder.load()


def test_one_content_lies_there_once_with_what_is_known_of_it(tmp_path: Path) -> None:
    moment = datetime(2026, 8, 25, 12, 0, 5, tzinfo=UTC)
    folder = Folder(tmp_path / "s")
    facts: dict[str, Any] = {
        "origin": "kds",
        "fetched": moment,
        "etag": '"x"',
        "modified": "Tue, 25 Aug 2026 12:00:00 GMT",
    }
    folder.it.keep(kept(ARK, **facts), kept(ASK, **facts))
    folder.it.keep(kept(ARK, **facts))
    folder.it.keep(kept(VCEK, **facts), kept(CRL, **facts))
    assert len([name for name in folder.files() if name.startswith("objects/")]) == 4
    again, found = opened(tmp_path / "s")
    assert again.told == []
    assert sorted(found) == sorted(kept(der).name for der in (ARK, ASK, VCEK, CRL))
    for stored in found.values():
        assert {name: getattr(stored, name) for name in facts} == facts


def test_what_is_replaced_goes(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.it.keep(kept(CRL))
    newer = GENOA.crl(this_update=datetime(2026, 8, 24, tzinfo=UTC))
    folder.it.keep(kept(newer, crl=True))
    assert [name for name in folder.files() if name.startswith("objects/")] == [f"objects/{sha256(newer).hexdigest()}"]
    assert opened(tmp_path)[1]["genoa/crl"].der == newer


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "empty", "missing", "another format", "a bad name"])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = Folder(tmp_path)
    folder.it.keep(*(kept(der) for der in (ARK, ASK, VCEK, CRL)))
    folder.it.keep(*(kept(TURIN.authority(kind), products.TURIN) for kind in ("ark", "ask")))
    path = tmp_path / "index"
    good = path.read_bytes()

    def signed(body: bytes) -> bytes:
        return sha256(body).hexdigest().encode() + b"\n" + body

    body = good.partition(b"\n")[2]
    bad = {
        "truncated": good[:-9],
        "a flipped bit": good[:200] + bytes([good[200] ^ 1]) + good[201:],
        "empty": b"",
        "missing": b"",
        "another format": signed(body.replace(b'"format": 1', b'"format": 2')),
        "a bad name": signed(body.replace(b"genoa/ark", b"../../ark")),
    }[damage]
    path.write_bytes(bad)
    if damage == "missing":
        path.unlink()
    again, found = opened(tmp_path)
    names = [kept(der).name for der in (ARK, ASK, VCEK, CRL)]
    assert all(name in found for name in names)
    assert {found[name].origin for name in names} == {"kept"}
    if damage != "missing":
        assert any("is damaged" in each and "it is made again" in each for each in again.told)
        assert next(tmp_path.glob("index.damaged-*")).read_bytes() == bad
    later, found = opened(tmp_path)
    assert later.told == []
    assert all(name in found for name in names)


def test_of_two_lists_without_an_index_the_newer_counts(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    newer = GENOA.crl(this_update=datetime(2026, 8, 24, tzinfo=UTC))
    folder.it.keep(kept(CRL))
    (tmp_path / "objects" / sha256(newer).hexdigest()).write_bytes(newer)
    (tmp_path / "index").unlink()
    assert opened(tmp_path)[1]["genoa/crl"].der == newer


def test_what_the_older_layout_left_is_taken_over(tmp_path: Path) -> None:
    shutil.copytree(OLDER / "state", tmp_path / "state")
    before = {path.read_bytes() for path in OLDER.rglob("*.der")}
    folder = Folder(tmp_path / "state" / "amd", Roots.from_pem((OLDER / "root.pem").read_bytes()))
    found = folder.load()
    assert folder.told == []
    assert {stored.der for stored in found.values()} == before
    assert {stored.origin for stored in found.values()} == {"import"}
    assert all(name == "index" or name.startswith("objects/") for name in folder.files())
    assert sorted(path.name for path in folder.path.iterdir()) == ["index", "objects"]
    again = Folder(folder.path, folder.roots)
    assert {name: one.der for name, one in again.load().items()} == {name: one.der for name, one in found.items()}


def test_the_older_layout_of_another_line_is_left_alone(tmp_path: Path) -> None:
    shutil.copytree(OLDER / "state", tmp_path / "state")
    folder = Folder(tmp_path / "state" / "amd", Roots.from_pem((OLDER / "root.pem").read_bytes()))
    assert folder.load(["milan"]) == {}
    assert {path.read_bytes() for path in folder.path.rglob("*.der")} == {
        path.read_bytes() for path in OLDER.rglob("*.der")
    }


def test_damage_in_the_older_layout_is_set_aside(tmp_path: Path) -> None:
    shutil.copytree(OLDER / "state", tmp_path / "state")
    folder = Folder(tmp_path / "state" / "amd", Roots.from_pem((OLDER / "root.pem").read_bytes()))
    path = folder.path / "genoa" / "crl.der"
    path.write_bytes(b"damage")
    found = folder.load()
    assert "genoa/crl" not in found
    assert len(found) == 6
    assert any("crl.der is damaged" in each for each in folder.told)
    assert next((folder.path / "genoa").iterdir()).read_bytes() == b"damage"


def test_other_leaves_are_kept_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LEAVES_MAX", 3)
    folder = Folder(tmp_path)
    leaves = [GENOA.leaf(ext={"levels": {"snp": level}}) for level in range(1, 6)]
    folder.it.keep(kept(ARK), kept(ASK), kept(CRL))
    mine = kept(leaves[0])
    folder.it.keep(replace(mine, fetched=datetime(2020, 1, 1, tzinfo=UTC)))
    folder.it.spared = frozenset([mine.name])
    for at, der in enumerate(leaves[1:]):
        folder.it.keep(kept(der, fetched=datetime(2026, 1, 1 + at, tzinfo=UTC)))
    found = opened(tmp_path)[1]
    assert {one.der for one in found.values() if one.kind.name == "VCEK"} == {leaves[0], leaves[3], leaves[4]}
    assert {"genoa/ark", "genoa/ask", "genoa/crl"} <= set(found)
    assert len(list((tmp_path / "objects").iterdir())) == 6


def test_a_cek_is_kept_for_its_chip(tmp_path: Path) -> None:
    with simulated_host(tmp_path / "host", "genoa") as simulator:
        content, chip = simulator.firmware.ca.cek_certificate(), bytes(range(64))
    folder = Folder(tmp_path / "state")
    folder.it.keep(cek_entry(content, products.ROME, chip))
    assert opened(tmp_path / "state")[1][f"rome/{chip.hex()}/cek"].der == content
    with pytest.raises(MalformedInput):
        cek_entry(content[:-1], products.ROME, chip)


def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    folder.it.keep(kept(ARK))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(index, "write", full)
        with pytest.raises(KernelError):
            folder.it.keep(kept(ASK))
    assert set(opened(tmp_path)[1]) == {"genoa/ark"}
    assert len(list((tmp_path / "objects").iterdir())) == 1, "what no index names is swept"
    folder.it.keep(kept(ASK))
    assert set(opened(tmp_path)[1]) == {"genoa/ark", "genoa/ask"}
