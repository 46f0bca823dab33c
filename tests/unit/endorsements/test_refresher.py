"""Certificates that keep themselves current: what is asked for and what is not, and what a service may do to us."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from sev.abi import cert_table
from sev.errors import SevError
from sevd.endorsements.table_file import TableFile
from sevd.simulator.kds import KdsFault
from tests.support.refreshing import Kept, Rig, eventually, kept, results, rig


@pytest.fixture(scope="module", params=["genoa", "turin"])
def chip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("chip"), request.param) as found:
        yield found


@pytest.fixture(scope="module")
def genoa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("genoa")) as found:
        yield found


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in ("chip", "genoa"):
        if name in request.fixturenames:
            found: Rig = request.getfixturevalue(name)
            found.server.clear_faults()
            found.server.requests.clear()
            found.later = timedelta()


async def test_everything_is_fetched_once(chip: Rig, tmp_path: Path) -> None:
    async with kept(chip, tmp_path, ceks=True) as it:
        assert len(it.it.current().missing) == 3
        assert chip.server.url in it.it.current().missing[0]
        state = await it.refresher.refresh()
        assert results(state) == dict.fromkeys(("ca", "vcek", "crl", "cek"), "FETCHED")
        assert it.kinds() == ["ARK", "ASK", "VCEK", "CRL"]
        assert it.it.current().missing == ()
        assert {each.origin for each in it.it.current().endorsements} == {"kds"}
        table = cert_table.parse((tmp_path / "certs.bin").read_bytes())
        assert [guid for guid, _ in table] == [cert_table.VCEK, cert_table.ASK, cert_table.ARK]
        assert it.it.ceks() == [chip.ca.cek_certificate()]
        assert [event.details["fetched"] for event in it.events("endorsements.refreshed")] == ["ca, vcek, crl, cek"]
        assert state.next is not None
        assert timedelta(hours=23) < state.next - chip.now() <= timedelta(days=1)
        name = chip.product.kds_name
        hwid = chip.ca.chip_id[: chip.product.chip_id_bytes].hex()
        assert chip.paths() == [
            f"/vcek/v1/{name}/cert_chain", f"/vcek/v1/{name}/{hwid}", f"/vcek/v1/{name}/crl",
            f"/cek/id/{chip.ca.chip_id.hex()}",
        ]  # fmt: skip
    # Another daemon finds it all at hand.
    chip.server.requests.clear()
    async with kept(chip, tmp_path, start=True, ceks=True) as it:
        await eventually(lambda: it.refresher.state.last is not None, "it has looked")
        assert results(it.refresher.state) == dict.fromkeys(("ca", "vcek", "crl", "cek"), "AT_HAND")
        assert chip.paths() == []


async def test_what_is_asked_for_again_is_asked_whether_it_changed(genoa: Rig, tmp_path: Path) -> None:
    async with kept(genoa, tmp_path) as it:
        await it.refresher.refresh()
        before = it.it.current()
        genoa.server.requests.clear()
        state = await it.refresher.refresh()
        assert results(state) == {"ca": "UNCHANGED", "vcek": "AT_HAND", "crl": "UNCHANGED"}
        assert genoa.paths() == ["/vcek/v1/Genoa/cert_chain", "/vcek/v1/Genoa/crl"]
        assert [each.der for each in it.it.current().endorsements] == [each.der for each in before.endorsements]
        assert len(it.events("endorsements.refreshed")) == 1
        assert it.fetcher._child is None, "the process that fetches ends with its work"


async def test_a_list_is_looked_at_daily_and_kept_fresh(genoa: Rig, tmp_path: Path) -> None:
    async with kept(genoa, tmp_path, start=True) as it:
        await eventually(lambda: len(it.kinds()) == 4, "all is there")
        genoa.server.requests.clear()
        genoa.later = timedelta(hours=25)
        await it.refresher.refresh()
        assert "/vcek/v1/Genoa/crl" in genoa.paths()
        crl = it.it.current().endorsements[-1]
        assert crl.fetched is not None
        assert genoa.now() - crl.fetched < timedelta(minutes=1)


async def test_a_service_that_has_nothing_newer_is_let_be(genoa: Rig, tmp_path: Path) -> None:
    genoa.later = timedelta(days=42 - 5)
    async with kept(genoa, tmp_path, start=True) as it:
        await eventually(lambda: len(it.kinds()) == 4 and it.refresher.state.next is not None, "all is there")
        state = await it.refresher.refresh()
        assert results(state)["crl"] == "UNCHANGED"
        assert state.next is not None
        assert state.next - genoa.now() > timedelta(hours=1), "the list is due, and was asked for"
        genoa.server.requests.clear()
        await asyncio.sleep(0.5)
        assert genoa.paths() == []


async def test_another_tcb_is_fetched_by_itself(genoa: Rig, tmp_path: Path) -> None:
    async with kept(genoa, tmp_path, start=True) as it:
        await eventually(lambda: "VCEK" in it.kinds(), "the first VCEK")
        genoa.server.requests.clear()
        lower = genoa.identity(snp=3)
        await it.moved(lower)
        assert cert_table.parse((tmp_path / "certs.bin").read_bytes())[0][0] == cert_table.ASK, "what fits, at once"
        await eventually(lambda: "VCEK" in it.kinds(), "the VCEK of the other TCB")
        leaf = cert_table.parse((tmp_path / "certs.bin").read_bytes())[0]
        assert leaf == (cert_table.VCEK, genoa.ca.vcek_der(lower.reported_tcb.raw))
        assert [path for path in genoa.paths() if not path.endswith("crl")] == [
            f"/vcek/v1/Genoa/{genoa.ca.chip_id.hex()}"
        ], "nothing that is at hand"
        genoa.server.requests.clear()
        await it.moved(genoa.identity())
        await asyncio.sleep(0.2)
        assert "VCEK" in it.kinds()
        assert genoa.paths() == []


async def test_a_vlek_needs_the_providers_certificate(genoa: Rig, tmp_path: Path) -> None:
    async with kept(genoa, tmp_path / "stranger") as it:
        await it.moved(genoa.identity(vlek=True))
        state = await it.refresher.refresh()
        assert results(state)["vlek-ca"] == "FETCHED"
        assert results(state)["vlek"] == "FAILED"
        assert "HTTP 403" in next(item.message for item in state.items if item.what == "vlek")
    async with kept(genoa, tmp_path / "provider", client=True) as it:
        await it.moved(genoa.identity(vlek=True))
        assert results(await it.refresher.refresh())["vlek"] == "FETCHED"
        table = cert_table.parse((tmp_path / "provider" / "certs.bin").read_bytes())
        assert [guid for guid, _ in table] == [cert_table.VLEK, cert_table.ASK, cert_table.ARK]


FAULTS = {
    "throttle=30": "too many requests",
    "fail": "HTTP 500",
    "garbage": "answers something else",
    "cut": "cut off",
    "wrong": "another TCB",
    "stranger": "another chip",
}


@pytest.mark.parametrize("spec", FAULTS)
async def test_faults_are_told_and_nothing_wrong_is_kept(genoa: Rig, tmp_path: Path, spec: str) -> None:
    says = FAULTS[spec]
    async with kept(genoa, tmp_path) as it:
        genoa.server.fault(KdsFault.parse(f"{spec}:times=1:path=/vcek/v1/Genoa/{genoa.ca.chip_id.hex()}"))
        state = await it.refresher.refresh()
        vcek = next(item for item in state.items if item.what == "vcek")
        assert (vcek.result.name, says in vcek.message) == ("FAILED", True), vcek.message
        assert "VCEK" not in it.kinds()
        assert [guid for guid, _ in cert_table.parse((tmp_path / "certs.bin").read_bytes())] == [
            cert_table.ASK, cert_table.ARK,
        ]  # fmt: skip
        assert vcek.next is not None
        wait = vcek.next - genoa.now()
        assert timedelta(seconds=25) < wait < timedelta(seconds=61), wait
        # A service that throttles is not asked again before it said so, by nobody; otherwise asking helps.
        again = results(await it.refresher.refresh())["vcek"]
        assert again == ("WAITING" if spec.startswith("throttle") else "FETCHED")


async def test_authorities_that_do_not_speak_are_not_taken(genoa: Rig, tmp_path: Path) -> None:
    genoa.later = timedelta(days=366 * 25)
    async with kept(genoa, tmp_path) as it:
        state = await it.refresher.refresh()
        assert results(state)["ca"] == "FAILED"
        assert "ran out" in state.items[0].message
        assert state.next is not None
        assert state.next - genoa.now() > timedelta(seconds=20), "it is asked for later"
        assert it.it.kept("genoa/ark") is None


async def test_a_service_that_throttles_is_asked_nothing_else(genoa: Rig, tmp_path: Path) -> None:
    async with kept(genoa, tmp_path, start=True) as it:
        genoa.server.fault(KdsFault.parse("throttle=1:times=1"))
        it.refresher.wake()
        await eventually(lambda: it.refresher.state.last is not None, "a first round")
        await eventually(lambda: len(it.kinds()) == 4, "all is there in the end")
        assert len(genoa.paths()) == 4, "one that was refused, three that were answered"


@pytest.mark.parametrize("what", ["stale", "garbage"])
async def test_a_list_that_is_none_does_not_take_the_place_of_one(genoa: Rig, tmp_path: Path, what: str) -> None:
    async with kept(genoa, tmp_path) as it:
        await it.refresher.refresh()
        before = it.it.current().endorsements[-1]
        # Its validator would spare the service the answer: only a fresh store asks for the whole of it.
        async with kept(genoa, tmp_path / "other") as other:
            genoa.server.fault(KdsFault.parse(f"{what}:path=/vcek/v1/Genoa/crl"))
            state = await other.refresher.refresh()
            assert results(state)["crl"] == "FAILED"
            assert "CRL" not in other.kinds()
        assert it.it.current().endorsements[-1].der == before.der


async def test_nobody_there_is_asked_later_and_later(genoa: Rig, tmp_path: Path) -> None:
    async with kept(genoa, tmp_path, url="https://127.0.0.1:1", start=True, retry=0.05) as it:
        await eventually(lambda: len(it.refresher.state.items) == 3, "a first round")
        ca = it.refresher.state.items[0]
        assert "no connection" in ca.message
        assert {item.result.name for item in it.refresher.state.items[1:]} == {"WAITING"}
        await asyncio.sleep(1.0)
        waits = it.refresher._pauses._pauses[""]
        assert 2 <= waits.failures <= 7, "doubling pauses, not a storm"


async def test_a_slow_service_holds_nothing_up(genoa: Rig, tmp_path: Path) -> None:
    genoa.server.fault(KdsFault.parse("slow=30"))
    async with kept(genoa, tmp_path, start=True) as it:
        await eventually(lambda: bool(genoa.server.requests), "it is asked")
        lower = genoa.identity(snp=2)
        async with asyncio.timeout(2):
            await it.moved(lower)
            chain = [genoa.ca.ask_der(), genoa.ca.ark_der(), genoa.ca.vcek_der(lower.reported_tcb.raw)]
            await it.it.import_(chain)
        assert "VCEK" in it.kinds()
        begin = time.monotonic()
    assert time.monotonic() - begin < 5, "nor the end"


async def test_a_table_that_is_being_read_is_written_later(
    genoa: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sevd.endorsements.refresher.TABLE_SECONDS", 0.1)
    async with kept(genoa, tmp_path, start=False) as it:
        reader = TableFile(tmp_path / "certs.bin")
        async with reader.shared():
            it.refresher.start()
            await eventually(lambda: it.it.kept("genoa/crl") is not None, "all is fetched")
            await asyncio.sleep(0.3)
            assert cert_table.parse((tmp_path / "certs.bin").read_bytes()) == []
        await eventually(lambda: len(_table(it)) == 3, "the table follows")


def _table(it: Kept) -> list[tuple[bytes, bytes]]:
    with suppress(SevError):
        return cert_table.parse((it.folder / "certs.bin").read_bytes())
    return []


async def test_what_runs_out_soon_is_warned_of_once_a_day(genoa: Rig, tmp_path: Path) -> None:
    async with kept(genoa, tmp_path) as it:
        await it.refresher.refresh()
        assert it.events("endorsements.expiring") == []
        genoa.server.fault(KdsFault("fail"))
        genoa.later = timedelta(days=42 - 2)
        for _ in range(2):
            await it.refresher.refresh()
        assert [event.details["kind"] for event in it.events("endorsements.expiring")] == ["crl"]
        genoa.later += timedelta(days=1)
        await it.refresher.refresh()
        assert len(it.events("endorsements.expiring")) == 2
        genoa.later = timedelta(days=365 * 7 - 10)
        await it.refresher.refresh()
        assert it.events("endorsements.expiring")[-1].details["kind"] == "vcek"


async def test_a_certificate_is_renewed_before_it_runs_out(genoa: Rig, tmp_path: Path) -> None:
    async with kept(genoa, tmp_path) as it:
        await it.refresher.refresh()
        genoa.server.requests.clear()
        genoa.later = timedelta(days=365 * 7 - 20)
        await it.refresher.refresh()
        assert f"/vcek/v1/Genoa/{genoa.ca.chip_id.hex()}" in genoa.paths()


async def test_without_a_service_it_is_said_what_is_missing(genoa: Rig, tmp_path: Path) -> None:
    async with kept(genoa, tmp_path, service=False) as it:
        state = await it.refresher.refresh()
        assert results(state) == dict.fromkeys(("ca", "vcek", "crl"), "MISSING")
        assert state.next is None
        assert "no service is asked" in it.it.current().missing[0]
        assert genoa.paths() == []
