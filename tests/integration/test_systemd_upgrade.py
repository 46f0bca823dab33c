"""From a wheel of an earlier version to this tree, under clients that call without pause: nothing is lost, all stays."""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.booted import PREFIX, Booted
from tests.support.booted_service import PYTHON, configure, holds_a_vm, main_pid, outside, simulator, wait_for, workers
from tests.support.crowd import crowd
from tests.support.needs import need_fuse, need_kvm
from tests.support.wheels import BEFORE_SERVICE, ROOT, wheel, wheel_of

INSTALLED = "/opt/installed"
"""Where the service's own interpreter and packages are in the booted system."""

OLD_CLIENT = "/opt/old-client"
"""Where the earlier library is, for programs that were not upgraded."""

PATIENCE_SECONDS = 5.0
CONFIGURATION = '[simulation]\ndirectory = "/run/simulated"\n[guests]\nplain = true\n'


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Booted]:
    """A system with the earlier wheel installed, and its service set up by it, not started."""
    need_fuse()
    need_kvm()
    old, new = wheel_of(BEFORE_SERVICE, tmp_path), wheel(ROOT, tmp_path / "new")
    made = Booted(tmp_path)
    try:
        for name, one in (("old", old), ("new", new)):
            place = outside(made, f"/opt/wheels/{name}/{one.name}")
            place.parent.mkdir(parents=True)
            shutil.copy(one, place)
        made.run(PYTHON, "-m", "venv", "--without-pip", INSTALLED)
        made.run(PYTHON, "-m", "venv", "--without-pip", OLD_CLIENT)
        with zipfile.ZipFile(old) as packed:
            packed.extractall(outside(made, "/opt/unpacked"))
        for venv, first in ((INSTALLED, ""), (OLD_CLIENT, "/opt/unpacked\n")):
            pth = next(outside(made, venv).glob("lib/python*/site-packages")) / "others.pth"
            pth.write_text(f"{first}{PREFIX}/site\n")
        install(made, "old")
        made.run(f"{INSTALLED}/bin/sevd", "--install-units")
        made.run("systemd-sysusers")
        made.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/sevd.conf")
        made.run("systemctl", "daemon-reload")
        yield made
    finally:
        made.close()


def install(system: Booted, version: str) -> None:
    """What `pip install` does with a wheel."""
    place = outside(system, f"/opt/wheels/{version}")
    (name,) = (path.name for path in place.glob("*.whl"))
    options = ("--no-deps", "--no-index", "--force-reinstall", "--quiet", "--disable-pip-version-check")
    system.run(
        PYTHON, "-m", "pip", f"--python={INSTALLED}/bin/python", "install", *options, f"/opt/wheels/{version}/{name}"
    )


def client(system: Booted, *words: str) -> str:
    """The output of `sev`, as root."""
    return system.run("sev", "--yes", "--json", *words).stdout


def guests(system: Booted) -> dict[str, tuple[object, ...]]:
    """What stays of each guest, whatever a newer version tells besides."""
    listed = json.loads(client(system, "guest", "list"))["guests"]
    return {one["guest_id"]: tuple(str(one[key]) for key in ("owner", "state", "type", "created_at") if key in one)
            for one in listed}  # fmt: skip


def audited(system: Booted) -> list[tuple[str, str, str]]:
    """(method, request id, result) of every call in the audit trail."""
    lines = outside(system, "/var/lib/sevd/audit.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(one["method"], one.get("request_id", ""), one["result"]) for one in records if one.get("what") == "call"]


def test_an_upgrade_loses_no_call_no_guest_no_certificate_and_no_record(system: Booted) -> None:
    simulator(system)
    configure(system, CONFIGURATION)
    system.run("systemctl", "start", "sevd.socket", "sevd.service")
    system.write("/image", "\xf4" * 4096)
    sample = "from sev.measurement.sample import sample_firmware; open('/snp', 'wb').write(sample_firmware())"
    system.run(PYTHON, "-c", sample)
    client(system, "guest", "launch", "--type", "plain", "--firmware", "/image", "--memory", "8MiB")
    client(system, "guest", "launch", "--firmware", "/snp", "--memory", "16MiB")
    client(system, "snp", "commit")
    system.run("sev", "certs", "export", "--out", "/before")
    before, records = guests(system), audited(system)
    kept = {one for one in workers(system) if holds_a_vm(system, one)}
    assert len(before) == 2
    assert len(kept) == 2
    assert len(records) >= 5
    everybody = [(kind, python) for python in (PYTHON, f"{OLD_CLIENT}/bin/python") for kind in ("sync", "aio")]
    with crowd(system, *everybody) as clients:
        time.sleep(0.5)
        with clients.during("pip install"):
            install(system, "new")
        first = main_pid(system)
        with clients.during("units"):
            system.run(f"{INSTALLED}/bin/sevd", "--install-units")
            system.run("systemctl", "daemon-reload")
        with clients.during("upgrade"):
            system.run("systemctl", "restart", "sevd.service")
        assert main_pid(system) != first
        with clients.during("kill -9"):
            system.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "sevd.service")
            wait_for(lambda: main_pid(system) not in (first, "0"), "it comes back")
        clients.end()
    print(clients.report())
    # that version remembered nothing: its unit, which this one replaced, is kept
    assert outside(system, "/etc/systemd/system/sevd.service.sevd-old").exists()
    assert clients.failed == []
    assert clients.longest("upgrade") < PATIENCE_SECONDS
    assert clients.longest("kill -9") < PATIENCE_SECONDS
    assert outside(system, f"{INSTALLED}/bin/sevd-fetch").exists()
    assert guests(system) == before
    assert {one for one in workers(system) if holds_a_vm(system, one)} == kept
    system.run("sev", "certs", "export", "--out", "/after")
    certificates = [
        {path.name: path.read_bytes() for path in outside(system, place).iterdir()} for place in ("/before", "/after")
    ]
    assert certificates[0]
    assert {**certificates[1], **certificates[0]} == certificates[1]
    assert audited(system)[: len(records)] == records
    for guest in before:
        client(system, "guest", "delete", guest)
    assert kept.isdisjoint(workers(system))
    deletions = [result for method, _, result in audited(system)[len(records) :] if method.endswith("DeleteGuest")]
    assert deletions == ["done", "done"]
    system.run("systemctl", "stop", "sevd.service", "simulator.service", check=False)
