"""Logs and audit records as a real journal has them: fields that can be searched for."""

from __future__ import annotations

import json
from typing import Any

from sevd.audit import MESSAGE_ID
from tests.support.booted import Booted
from tests.support.booted_service import wait_for


def entries(system: Booted, *matches: str) -> list[dict[str, Any]]:
    done = system.run("journalctl", "--no-pager", "--output=json", *matches, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_journal_has_fields(system: Booted) -> None:
    refused = system.run(
        "env", "SEV_REQUEST_ID=deploy-42", "sev", "--yes", "guest", "delete", "guest-none", check=False
    )
    assert refused.returncode == 10, refused.stderr
    last = json.loads(system.run("sev", "audit", "--json", "--last", "1").stdout)
    number = f"SEVD_SEQUENCE={last['sequence']}"
    wait_for(lambda: bool(entries(system, number)), "the audit record is in the journal")
    *_, found = entries(system, f"MESSAGE_ID={MESSAGE_ID}", "SEVD_METHOD=GuestService/DeleteGuest")
    assert found["MESSAGE"].startswith("uid:0 GuestService/DeleteGuest guest-none: refused: NOT_FOUND")
    assert (found["SEVD_RESULT"], found["SEVD_CALLER"], found["PRIORITY"]) == ("refused", "uid:0", "5")
    assert found["SEVD_REQUEST_ID"].startswith("deploy-42.")
    assert (found["SYSLOG_IDENTIFIER"], found["_SYSTEMD_UNIT"], found["_TRANSPORT"]) == (
        "sevd",
        "sevd.service",
        "journal",
    )
    assert json.loads(found["SEVD_RECORD"])["target"] == "guest-none"
    ready = [one for one in entries(system, "SEVD_LOGGER=sevd.daemon") if "ready version=" in str(one["MESSAGE"])]
    assert ready[-1]["PRIORITY"] == "6"
    sections = json.loads(system.run("sev", "doctor", "--json").stdout)["sections"]
    assert any("ready version=" in one["message"] for one in sections["log"])
    assert "guest-none" not in json.dumps(sections)
    assert sections["audit"]["intact"] is True
    shown = system.run("sev", "audit", "--json", "--request-id", "deploy-42").stdout
    assert json.loads(shown.splitlines()[-1]) == json.loads(found["SEVD_RECORD"])
