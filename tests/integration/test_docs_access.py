"""The page on identities and limits says what the code does."""

from __future__ import annotations

from sev.records import fields_of
from sevd.access import greeting, refusals
from sevd.access.identities import _FITS, LIMITS
from sevd.access.limits import IdentityLimits
from sevd.access.turns import SHARE
from sevd.api import receiving, server
from sevd.config import SETTINGS
from sevd.events import QUEUE_EVENTS
from sevd.guests.limits import Limits
from sevd.guests.memory import UPLOAD_FACTOR
from tests.support import docs

PAGE = "access.md"


def test_every_limit_of_an_identity() -> None:
    found = docs.rows(PAGE, "key of `[[identity]]`", "values", "for the others", "counts")
    assert [(row[0], row[1]) for row in found] == [
        (name, f"{least} to {most} {unit}") for name, (least, most, unit) in LIMITS.items()
    ]
    assert list(LIMITS) == list(fields_of(IdentityLimits))
    assert {row[2] for row in found} <= {one.name for one in SETTINGS if one.live}


def test_every_match() -> None:
    cells = " ".join(row[0] for row in docs.rows(PAGE, "`match`", "who"))
    assert [kind for kind in _FITS if f"{kind}:" not in cells] == []


def test_bounds() -> None:
    text = (docs.DOCS / PAGE).read_text()
    bounds = [row[1] for row in docs.rows(PAGE, "", "bound", "what happens")]
    assert bounds == [
        f"{greeting.SECONDS:.0f} s",
        f"{receiving.REQUEST_SECONDS:.0f} s",
        f"{receiving.IDLE_SECONDS:.0f} s",
        f"{receiving.UPLOAD_SECONDS / 3600:.0f} hour",
        f"{UPLOAD_FACTOR} times the guest's memory",
        "limits.message_bytes",
        f"{server.METADATA_BYTES >> 10} KiB",
        str(server.STREAMS_PER_CONNECTION),
        f"{QUEUE_EVENTS} events, or changed guests",
    ]
    assert Limits().watch_backlog == QUEUE_EVENTS
    assert f"{refusals.RECORDED} a minute" in text
    assert SHARE == 0.75
    assert "three quarters of the time" in text
