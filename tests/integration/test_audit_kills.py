"""A daemon that is killed again and again under load: every change that was asked of it is in the trail, which is whole."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import sev
from sev.audit_trail import open_files, records, verify
from sev.errors import OutcomeUnknown
from tests.support.daemon import chip, running

CALLERS = 6


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_no_change_is_missing_from_the_trail(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kills: int
) -> None:
    folder, asked, done = tmp_path / "host", list[str](), threading.Event()

    def call(number: int) -> None:
        with sev.connect(str(folder / "s"), timeout=60) as host:
            count = 0
            while not done.is_set():
                count += 1
                request_id = f"caller{number}-{count}"
                with suppress(OutcomeUnknown):  # cut off: whether it acted is not known, and asked for it was
                    host.snp_reset_config(request_id=request_id)
                asked.append(request_id)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    chip_of = chip("genoa", tmp_path_factory)
    for life in range(kills + 1):
        with running(folder, "--simulate=genoa", chip=chip_of) as daemon:
            if not life:
                for one in callers:
                    one.start()
            before = len(asked)
            until = time.monotonic() + 20
            while len(asked) < before + 3 * CALLERS and time.monotonic() < until:
                time.sleep(0.01)
            if life < kills:
                daemon.process.kill()
                daemon.process.wait()
                (folder / "s").unlink()  # or the next one seems to be there before it is
            else:
                done.set()
                for one in callers:
                    one.join(30)
    trail = list(records(open_files(str(folder / "state" / "audit.jsonl"))))
    found = verify(trail)
    assert (found.intact, found.notes) == (True, []), found.problems
    known = [one.facts.get("request_id") for one in trail if one.result != "refused"]
    assert len(asked) >= 3 * CALLERS * (kills + 1)
    assert [one for one in asked if one not in known] == []
    again = [one for one in trail if one.facts.get("repeated") or one.facts.get("reason") == "OUTCOME_UNKNOWN"]
    recorded = [one.facts["request_id"] for one in trail if one not in again]
    assert len(recorded) == len(set(recorded)), "none is there twice, but as the repetition that it was"
