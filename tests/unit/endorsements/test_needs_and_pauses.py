"""What is needed and when it is due; how long is waited after failures; what an offline directory may hold."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev import products
from sev.abi.tcb import TcbVersion
from sev.certs import Certificate, Crl
from sev.errors import MalformedInput
from sev.kds.errors import KdsUnavailable, NotAtKds
from sev.records import replace
from sevd.endorsements import ChipIdentity, needs
from sevd.endorsements.entries import Stored, entry
from sevd.endorsements.offline import FILES_MAX, Offline
from sevd.endorsements.pauses import LONGEST, Pauses
from tests.support.clock import Clock
from tests.support.forge import AT, World, pem

GENOA, TURIN = World(), World(products.TURIN)


def identity(world: World = GENOA, **facts: Any) -> ChipIdentity:
    tcb = TcbVersion.decode(world.tcb(), world.product)
    chip = world.hwid[: world.product.chip_id_bytes]
    return ChipIdentity(world.product, chip, tcb, facts.pop("vlek", False), **facts)


def shelf(*ders: bytes, crls: tuple[bytes, ...] = (), world: World = GENOA, **facts: Any) -> dict[str, Stored]:
    """What is at hand."""
    items: list[Certificate | Crl] = [*map(Certificate.parse, ders), *map(Crl.parse, crls)]
    found = [replace(entry(item, world.product), **facts) for item in items]
    return {stored.name: stored for stored in found}


def nothing(name: str) -> Stored | None:
    return None


def wanted(
    held: dict[str, Stored], chip: ChipIdentity | None = None, now: datetime = AT, ceks: tuple[bytes, ...] = ()
) -> list[needs.Need]:
    chip = chip or identity()
    return needs.needs(chip, chip.product, ceks, held.get, now)


@pytest.mark.parametrize("world", [GENOA, TURIN], ids=["genoa", "turin"])
def test_names_are_those_under_which_things_are_kept(world: World) -> None:
    ders = [world.authority(kind) for kind in ("ark", "ask", "asvk")]
    held = shelf(*ders, world.leaf(), world.leaf("vlek"), crls=(world.crl(),), world=world)
    found = needs.needs(identity(world, vlek=True), world.product, (), held.get, AT)
    assert [need.what for need in found] == ["ca", "vcek", "vlek-ca", "vlek", "crl"]
    assert all(need.at_hand for need in found), [need.what for need in found if not need.at_hand]
    assert {name for need in found for name in need.names} == set(held)


def test_what_is_missing_is_due_now() -> None:
    found = wanted({}, ceks=(bytes(range(64)),))
    assert [need.what for need in found] == ["ca", "vcek", "crl", "cek"]
    assert all(need.due is None and not need.at_hand for need in found)
    assert len({need.key for need in found}) == 4


def test_a_masked_or_absent_chip_needs_less() -> None:
    assert needs.needs(None, None, (), nothing, AT) == []
    assert [need.what for need in needs.needs(None, products.ROME, (bytes(64),), nothing, AT)] == ["cek"]
    zeros = identity()._replace(chip_id=bytes(64))
    assert [need.what for need in wanted({}, zeros)] == ["ca", "crl"]
    other = identity(vlek=True, vlek_tcb=TcbVersion.from_int(5, products.GENOA))
    assert "vlek" not in [need.what for need in wanted({}, other)], "none fits"


def test_each_tcb_is_a_need_of_its_own() -> None:
    lower = identity()._replace(reported_tcb=identity().reported_tcb.replace(snp=1))
    keys = {need.key for need in (*wanted({}), *wanted({}, lower))}
    assert len(keys) == 4, "ca and crl are the same"


def test_certificates_are_renewed_a_month_before_their_end() -> None:
    held = shelf(GENOA.leaf())
    vcek = next(need for need in wanted(held) if need.what == "vcek")
    stored = next(iter(held.values()))
    assert stored.certificate is not None
    assert vcek.due == stored.certificate.not_after - timedelta(days=30)
    late = next(need for need in wanted(held, now=stored.certificate.not_after + timedelta(days=1)))
    assert (late.due, late.at_hand) == (None, False)
    short = shelf(GENOA.leaf(not_before=AT, not_after=AT + timedelta(days=8)))
    assert next(need for need in wanted(short) if need.what == "vcek").due == AT + timedelta(days=6)


def test_lists_are_looked_at_daily_and_before_their_end() -> None:
    crl = Crl.parse(GENOA.crl())
    for fetched, due in (
        (AT, AT + timedelta(days=1)),
        (crl.next_update - timedelta(hours=1), crl.next_update - (crl.next_update - crl.this_update) / 4),
        (None, crl.this_update + timedelta(days=1)),
    ):
        need = wanted(shelf(crls=(crl.der,), fetched=fetched))[-1]
        assert (need.what, need.due, need.at_hand) == ("crl", due, True)


def test_what_came_from_the_service_is_not_asked_for_again_at_once() -> None:
    crl, leaf = Crl.parse(GENOA.crl()), Certificate.parse(GENOA.leaf())
    margin = (crl.next_update - crl.this_update) / 4
    pause = min(timedelta(days=1), margin / 4)
    now = crl.next_update - margin / 2
    need = wanted(shelf(crls=(crl.der,), fetched=now, origin="kds"), now=now)[-1]
    assert (need.what, need.due, need.at_hand) == ("crl", now + pause, True)
    ahead = wanted(shelf(crls=(crl.der,), fetched=now + margin / 4, origin="kds"), now=now)[-1]
    assert ahead.due == crl.next_update - margin, "the clock was wrong then"
    now = leaf.not_after - timedelta(days=20)
    for origin, due in (("kds", now + timedelta(days=1)), ("import", leaf.not_after - timedelta(days=30))):
        held = shelf(leaf.der, fetched=now, origin=origin)
        assert next(need for need in wanted(held, now=now) if need.what == "vcek").due == due


def failure(*, passes: bool = True, retry_after: float | None = None) -> KdsUnavailable:
    error = KdsUnavailable("no")
    error.passes, error.retry_after = passes, retry_after
    return error


def test_pauses_double_up_to_their_longest_and_end_with_success() -> None:
    clock = Clock()
    pauses = Pauses(60, clock, lambda: 1.0)
    lengths = []
    for _ in range(12):
        pauses.failed("a", failure())
        lengths.append(pauses.left("b"))
        clock.now += lengths[-1]
        assert pauses.left("a") == 0
    assert lengths[:4] == [60, 120, 240, 480]
    assert lengths[-1] == LONGEST
    pauses.worked("a")
    pauses.failed("a", failure())
    assert pauses.left("b") == 60


def test_what_one_answer_was_holds_up_that_alone() -> None:
    pauses = Pauses(60, Clock(), lambda: 0.0)
    pauses.failed("a", NotAtKds("no such chip"))
    assert (pauses.left("a"), pauses.left("b")) == (30, 0)
    pauses.failed("b", MalformedInput("nonsense"))
    assert pauses.left("b") == 30
    pauses.forget_all_but({"b"})
    assert pauses.left("a") == 0
    assert pauses.left("b") == 30


def test_the_word_of_the_service_counts_and_is_not_overridden() -> None:
    clock = Clock()
    pauses = Pauses(60, clock, lambda: 0.0)
    pauses.failed("a", failure(retry_after=5))
    assert pauses.left("b") == 5
    pauses.failed("c", MalformedInput("nonsense"))
    pauses.hasten()
    assert (pauses.left("b"), pauses.left("c")) == (5, 5), "the other pause ended, its own did not"
    clock.now += 5
    pauses.failed("a", failure(retry_after=5))
    assert pauses.left("b") == 10, "one that keeps saying so gets more"
    pauses.failed("a", failure(retry_after=86400))
    assert pauses.left("b") == 86400


@given(
    st.lists(st.tuples(st.booleans(), st.none() | st.floats(0, 1e6), st.floats(0, 1e5)), max_size=40),
    st.floats(0, 1),
)
def test_no_pause_is_without_end(failures: list[tuple[bool, float | None, float]], jitter: float) -> None:
    clock = Clock()
    pauses = Pauses(60, clock, lambda: jitter)
    for passes, retry, later in failures:
        pauses.failed("a", failure(passes=passes, retry_after=retry))
        clock.now += later
        assert 0 <= pauses.left("a") <= max(LONGEST, 1.1 * 1e6) * 1.1


def test_files_of_a_directory(tmp_path: Path) -> None:
    offline = Offline(tmp_path / "there")
    assert offline.fingerprint() == ()
    assert offline.read() == ([], [], [])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "chain.pem").write_bytes(pem(GENOA.authority("ask")) + pem(GENOA.authority("ark")))
    (tmp_path / "there" / "crl.der").write_bytes(GENOA.crl())
    before = offline.fingerprint()
    (tmp_path / "there" / ".hidden").write_bytes(b"junk")
    (tmp_path / "there" / "junk").write_bytes(b"junk")
    (tmp_path / "there" / "large").write_bytes(bytes((64 << 10) + 1))
    (tmp_path / "there" / "folder").mkdir()
    os.mkfifo(tmp_path / "there" / "pipe")
    (tmp_path / "there" / "gone").symlink_to("nowhere")
    assert offline.fingerprint() != before
    certificates, lists, problems = offline.read()
    assert [one.kind for one in certificates] == ["ask", "ark"]
    assert len(lists) == 1
    told = " ".join(problems)
    for says in ("junk holds no certificates", "large holds no certificates: more than", "pipe holds no certificates"):
        assert says in told
    assert "hidden" not in told


def test_a_directory_of_thousands_is_cut_off(tmp_path: Path) -> None:
    for number in range(FILES_MAX + 10):
        (tmp_path / str(number)).touch()
    assert len(Offline(tmp_path).fingerprint()) == FILES_MAX
