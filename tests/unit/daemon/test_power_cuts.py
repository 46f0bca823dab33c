"""A power cut at every write: what was kept is the old or the new, and whoever reads it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sev import products
from sev.certs import Certificate, Crl, Roots
from sev.records import replace
from sevd import durable
from sevd import journal as journals
from sevd.endorsements import store as stores
from sevd.endorsements.check import check_genuine, check_list
from sevd.endorsements.entries import Stored, entry
from sevd.endorsements.store import Store
from sevd.journal import Journal, Outcome
from sevd.simulator.firmware import Firmware
from tests.support.forge import World
from tests.support.power import Cut, Recorder, recording, tree
from tests.support.simulated import template

WORLD = World()
ARK, ASK, VCEK, CRL = WORLD.authority("ark"), WORLD.authority("ask"), WORLD.leaf(), WORLD.crl()
NEWER = WORLD.crl(this_update=datetime(2026, 8, 24, tzinfo=UTC))
OLDER = Path(__file__).resolve().parents[2] / "goldens" / "endorsements-0.1"
Contents = dict[str, bytes]


def stored(der: bytes) -> Stored:
    item = Crl.parse(der) if der in (CRL, NEWER) else Certificate.parse(der)
    return replace(entry(item, products.GENOA), fetched=datetime(2026, 8, 25, tzinfo=UTC))


class Opened:
    """A store that was opened: what it holds, and what it had to say."""

    def __init__(self, folder: Path, roots: Roots) -> None:
        self.told: list[str] = []
        self.it = Store(folder, self.told.append)
        self.found = self.it.load(lambda one, authorities: _check(one, authorities, roots))

    @property
    def contents(self) -> Contents:
        return {name: one.der for name, one in self.found.items()}


def _check(one: Stored, authorities: Sequence[Certificate], roots: Roots) -> None:
    if one.crl is not None:
        check_list(one.crl, roots, None)
    elif one.certificate is not None:
        check_genuine(one.certificate, roots, authorities)


def laid_out(cuts: Iterator[Cut], folder: Path) -> Iterator[tuple[Cut, Path]]:
    """The states one after the other, each in a folder of its own."""
    for number, cut in enumerate(cuts):
        place = folder / f"cut-{number}"
        cut.lay_out(place)
        yield cut, place
        shutil.rmtree(place)


KEEPS: dict[str, tuple[list[list[bytes]], list[bytes]]] = {
    "the first": ([], [ARK]),
    "several at once": ([], [ARK, ASK, VCEK, CRL]),
    "one more": ([[ARK, ASK]], [VCEK]),
    "in place of one": ([[ARK, CRL]], [NEWER]),
    "the same again": ([[ARK, CRL]], [CRL]),
}


@pytest.mark.parametrize("case", KEEPS)
def test_a_store_holds_the_old_or_the_new(tmp_path: Path, case: str) -> None:
    before, kept = KEEPS[case]
    roots = WORLD.roots()
    (tmp_path / "work").mkdir()
    folder = tmp_path / "work" / "amd"
    for contents in before:
        Opened(folder, roots).it.keep(*map(stored, contents))
    old = Opened(folder, roots).contents
    opened = Opened(folder, roots)
    with recording(tmp_path / "work") as disk:
        opened.it.keep(*map(stored, kept))
    new = Opened(folder, roots).contents
    assert len(new) == len({**old, **{stored(der).name: der for der in kept}})
    ends = set()
    for cut, place in laid_out(disk.cuts(), tmp_path):
        after = Opened(place / "amd", roots)
        assert after.contents in (old, new), cut.what
        assert after.told == [], (cut.what, after.told)
        ends.add(tuple(sorted(after.contents)))
        # and it goes on: the same is kept, and there is no litter.
        after.it.keep(*map(stored, kept))
        again = Opened(place / "amd", roots)
        assert again.contents == new, cut.what
        assert len(tree(place)) == len(new) + 1, (cut.what, sorted(tree(place)))
    if old != new:
        assert ends == {tuple(sorted(old)), tuple(sorted(new))} or len(old) == len(new), "both were seen"


def test_room_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LEAVES_MAX", 2)
    roots, folder = WORLD.roots(), tmp_path / "work" / "amd"
    folder.parent.mkdir()
    leaves = [WORLD.leaf(ext={"levels": {"snp": level}}) for level in range(1, 4)]
    Opened(folder, roots).it.keep(*map(stored, [ARK, ASK, *leaves[:2]]))
    old, opened = Opened(folder, roots).contents, Opened(folder, roots)
    with recording(tmp_path / "work") as disk:
        opened.it.keep(stored(leaves[2]))
    new = Opened(folder, roots).contents
    assert len(new) == len(old) == 4
    for cut, place in laid_out(disk.cuts(), tmp_path):
        after = Opened(place / "amd", roots)
        assert after.contents in (old, new), cut.what
        assert after.told == [], cut.what


def test_the_older_layout_is_taken_over_or_still_there(tmp_path: Path) -> None:
    roots = Roots.from_pem((OLDER / "root.pem").read_bytes())
    shutil.copytree(OLDER / "state", tmp_path / "work")
    with recording(tmp_path / "work") as disk:
        whole = Opened(tmp_path / "work" / "amd", roots).contents
    assert len(whole) == 7
    for cut, place in laid_out(disk.cuts(), tmp_path):
        after = Opened(place / "amd", roots)
        assert after.contents == whole, cut.what
        assert after.told == [], cut.what


def test_a_damaged_index_can_be_repaired_with_interruptions(tmp_path: Path) -> None:
    roots, folder = WORLD.roots(), tmp_path / "work" / "amd"
    folder.parent.mkdir()
    Opened(folder, roots).it.keep(*map(stored, [ARK, ASK, VCEK, CRL]))
    whole = Opened(folder, roots).contents
    (folder / "index").write_bytes(b"damage")
    with recording(tmp_path / "work") as disk:
        Opened(folder, roots)
    for cut, place in laid_out(disk.cuts(), tmp_path):
        assert Opened(place / "amd", roots).contents == whole, cut.what
        assert [content for path, content in tree(place).items() if "damaged" in path] in ([b"damage"], []), cut.what


@contextmanager
def journalled(base: Path) -> Iterator[tuple[Journal, Recorder, Callable[[str], None], list[tuple[str, int]]]]:
    """A journal whose disk is remembered; what begins is noted with how many operations it was on disk after."""
    begun: list[tuple[str, int]] = []
    with recording(base) as disk:
        journal = Journal(base / "journal.jsonl")

        def begin(request_id: str) -> None:
            journal.begin("uid:1", request_id, "/m", "d")
            begun.append((request_id, disk.done))

        yield journal, disk, begin, begun
        journal.close()


def check_journal(disk: Recorder, begun: list[tuple[str, int]], folder: Path) -> int:
    """Whatever was begun is known after every cut; answers how many cuts there were."""
    cuts = 0
    for cut, place in laid_out(disk.cuts(), folder):
        cuts += 1
        after = Journal(place / "journal.jsonl")
        for request_id, since in begun:
            if since <= cut.at:
                found = after.find("uid:1", request_id, "/m", "d")
                assert found is not None, f"{request_id} is forgotten: {cut.what}"
                assert found.outcome in (None, Outcome(0, request_id.encode())), cut.what
        after.begin("uid:1", "later", "/m", "d")
        after.close()
        again = Journal(place / "journal.jsonl")
        assert again.find("uid:1", "later", "/m", "d") is not None, cut.what
        again.close()
        assert not list(place.glob("*.damaged-*")) or "zeros" in cut.what, cut.what
    return cuts


def test_a_journal_never_forgets_what_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    with journalled(tmp_path / "work") as (journal, disk, begin, begun):
        for request_id in ("a", "b", "c"):
            begin(request_id)
            journal.finish("uid:1", request_id, Outcome(0, request_id.encode()))
        begin("d")
        monkeypatch.setattr(journals, "REWRITE_BYTES", 10)
        journal.finish("uid:1", "d", Outcome(0, b"d"))
        begin("e")
    assert check_journal(disk, begun, tmp_path) > 20


def test_a_damaged_journal_can_be_repaired_with_interruptions(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / "journal.jsonl"
    with opened_journal(path) as journal:
        for request_id in ("a", "b"):
            journal.begin("uid:1", request_id, "/m", "d")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"damage\n" + lines[1])
    with recording(tmp_path / "work") as disk, opened_journal(path):
        pass
    for cut, place in laid_out(disk.cuts(), tmp_path):
        with opened_journal(place / "journal.jsonl") as after:
            for request_id in ("a", "b"):
                assert after.find("uid:1", request_id, "/m", "d") is not None, cut.what
        assert any(b"damage\n" in content for content in tree(place).values()), f"the damage is kept: {cut.what}"


@contextmanager
def opened_journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def test_a_simulated_chip_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    home = tmp_path / "work" / "simulator"
    with recording(tmp_path / "work") as disk:
        made = Firmware.open(home, product=products.NAPLES, seed=1)
    opened = 0
    for cut, place in laid_out(disk.cuts(), tmp_path):
        if not (place / "simulator" / "naples").exists():
            continue  # then one is made
        opened += 1
        after = Firmware.open(place / "simulator", product=products.NAPLES, seed=1)
        assert after.ca.chip_id == made.ca.chip_id, cut.what
        assert after.ca.ark_der() == made.ca.ark_der(), cut.what
    assert opened


CHANGES: dict[str, Callable[[Firmware], object]] = {
    "a certificate": lambda firmware: firmware.ca.vcek_der(firmware.reported_tcb - 1),
    "a list": lambda firmware: firmware.ca.crl_der(),
    "a commit": lambda firmware: firmware.snp_commit(),
}


@pytest.mark.parametrize(
    "change", [one if one != "a certificate" else pytest.param(one, marks=pytest.mark.long) for one in CHANGES]
)
def test_a_simulated_chip_is_the_old_or_the_new(tmp_path: Path, change: str) -> None:
    home = tmp_path / "work" / "simulator"
    shutil.copytree(template("genoa"), home)
    firmware = Firmware.open(home, product=products.GENOA, seed=1)
    old = tree(home)
    with recording(tmp_path / "work") as disk:
        CHANGES[change](firmware)
    new = tree(home)
    seen = set()
    for cut, place in laid_out(disk.cuts(), tmp_path):
        after = Firmware.open(place / "simulator", product=products.GENOA, seed=1)
        document = [(path, tree(place / "simulator")[path]) for path in old if path.endswith(".json")]
        seen.add(tuple(document))
        assert all(content in (old[path], new[path]) for path, content in document), cut.what
        after.ca.vcek_der(after.reported_tcb)
        after.ca.crl_der()
    assert len(seen) <= 2


def test_every_write_is_one_operation_that_is_tried(tmp_path: Path) -> None:
    with recording(tmp_path) as disk:
        durable.write(tmp_path / "key", b"new content", 0o600)
    assert disk.done == 5, "create, write, sync, rename, sync of the folder"
    states = [cut.files for cut in disk.cuts()]
    assert {} in states
    assert {"key": b"new content"} in states
    torn = [name for files in states for name, content in files.items() if content == b"new c"]
    assert torn
    assert all(name.startswith(".key.") for name in torn), "never under its own name"


def test_a_write_that_does_not_sync_is_caught(tmp_path: Path) -> None:
    """The disk of the tests finds what it is there to find."""

    class Careless(Recorder):
        def sync(self, descriptor: int) -> None:
            """Does nothing."""

    with pytest.MonkeyPatch.context() as patch:
        disk = Careless(tmp_path)
        patch.setattr(durable, "disk", disk)
        durable.write(tmp_path / "key", b"new content", 0o600)
    assert any(cut.files.get("key") == b"" for cut in disk.cuts())
