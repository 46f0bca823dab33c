"""`sev explain`: every status by name and by number."""

from __future__ import annotations

import pytest

from sev import status
from tests.support.cli import sev


@pytest.mark.parametrize("entry", status.ALL, ids=lambda entry: entry.name)
def test_every_status(entry: status.Status) -> None:
    wanted = {
        "code": entry.code,
        "name": entry.name,
        "meaning": entry.meaning,
        "causes": list(entry.causes),
        "remedy": entry.remedy,
    }
    spellings = [entry.name, entry.name.lower().replace("_", "-"), str(entry.code), hex(entry.code)]
    for text in (*spellings, "SEV_RET_" + entry.name):
        done = sev("explain", text, "--json")
        assert (done.code, done.json()) == (0, wanted), text
    shown = sev("explain", entry.name).out
    for piece in (entry.name, f"0x{entry.code:02x}", entry.meaning, entry.remedy, *entry.causes):
        assert piece in shown


def test_all_of_them() -> None:
    done = sev("explain")
    assert done.code == 0
    assert len(done.out.splitlines()) == len(status.ALL) + 1
    listed = sev("explain", "--json").json()["statuses"]
    assert [entry["name"] for entry in listed] == [entry.name for entry in status.ALL]


def test_an_unassigned_number_is_explained_as_such() -> None:
    done = sev("explain", "0x1e", "--json")
    assert done.code == 0
    assert done.json()["name"] == "UNKNOWN_0x1E"


@pytest.mark.parametrize("text", ["NOT_A_STATUS", "", "0x", "-5", "99999999999", "7.0"])
def test_what_is_none(text: str) -> None:
    done = sev("explain", text)
    assert done.code == 2
    assert done.out == ""
