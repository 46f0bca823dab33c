"""`sevd --install-units` and `--uninstall-units`: what is written, kept and taken away below a root directory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sev.errors import UsageError
from sevd import install_units

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "systemd"
PROGRAM = Path("/opt/sevd/bin/sevd")
UNIT = "etc/systemd/system/sevd.service"
PLACES = {*install_units.FILES.values(), *install_units.PLAIN_USER.values()}


def files(root: Path) -> set[str]:
    """Every file and link below a folder."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def started(root: Path, unit: str = "sevd.service") -> str:
    """The program of an installed unit."""
    (found,) = re.findall("^ExecStart=(.*)$", (root / "etc/systemd/system" / unit).read_text(), re.MULTILINE)
    return str(found)


def test_all_files_are_installed(tmp_path: Path) -> None:
    done = install_units.install(tmp_path, program=PROGRAM, plain_user=True)
    assert files(tmp_path) == {*PLACES, install_units.MANIFEST}
    assert sorted([*install_units.FILES, *install_units.PLAIN_USER]) == sorted(p.name for p in FOLDER.iterdir())
    assert all((tmp_path / place).stat().st_mode & 0o7777 == 0o644 for place in PLACES)
    assert {str(path.relative_to(tmp_path)) for path in done.written} == PLACES
    assert (started(tmp_path), started(tmp_path, "sevd-fetch.service")) == (str(PROGRAM), "/opt/sevd/bin/sevd-fetch")
    assert "systemctl enable" in done.text()
    assert "systemctl restart" not in done.text()


def test_without_the_wish_for_a_user_of_its_own_it_is_root(tmp_path: Path) -> None:
    install_units.install(tmp_path, program=PROGRAM)
    assert files(tmp_path) == {*install_units.FILES.values(), install_units.MANIFEST}


def test_a_second_installation_replaces_what_nobody_changed(tmp_path: Path) -> None:
    install_units.install(tmp_path, program=PROGRAM, plain_user=True)
    kept = tmp_path / "etc/sevd/sevd.toml"
    kept.write_text("[daemon]\n")
    dropin = tmp_path / "etc/systemd/system/sevd.service.d/mine.conf"
    dropin.write_text("[Service]\n")
    done = install_units.install(tmp_path, program=Path("/usr/local/bin/sevd"))
    assert started(tmp_path) == "/usr/local/bin/sevd"
    assert kept.read_text() == "[daemon]\n"
    assert dropin.read_text() == "[Service]\n"
    assert (tmp_path / install_units.PLAIN_USER["plain-user.conf"]).exists()
    assert {path.name for path in done.written} == {"sevd.service", "sevd-fetch.service"}
    assert done.kept == done.aside == []
    assert "systemctl restart sevd" in done.text()


def test_what_the_administrator_changed_stays_and_ours_lies_beside_it(tmp_path: Path) -> None:
    install_units.install(tmp_path, program=PROGRAM)
    unit = tmp_path / UNIT
    changed = unit.read_text() + "Environment=MINE=1\n"
    unit.write_text(changed)
    done = install_units.install(tmp_path, program=Path("/usr/local/bin/sevd"))
    assert unit.read_text() == changed
    beside = unit.with_name("sevd.service.sevd-new")
    assert "ExecStart=/usr/local/bin/sevd\n" in beside.read_text()
    assert done.kept == [unit]
    assert f"{unit}: kept, you changed it; compare {beside}\n" in done.text()
    unit.write_bytes(beside.read_bytes())  # the administrator takes ours
    done = install_units.install(tmp_path, program=Path("/usr/local/bin/sevd"))
    assert not beside.exists()
    assert done.kept == []


def test_a_file_that_the_administrator_removed_comes_back(tmp_path: Path) -> None:
    install_units.install(tmp_path, program=PROGRAM)
    (tmp_path / UNIT).unlink()
    assert install_units.install(tmp_path, program=PROGRAM).written == [tmp_path / UNIT]


def test_files_of_a_version_that_remembered_nothing_are_replaced_and_kept_aside(tmp_path: Path) -> None:
    unit = tmp_path / UNIT
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/old\n")
    done = install_units.install(tmp_path, program=PROGRAM)
    assert started(tmp_path) == str(PROGRAM)
    assert done.aside == [unit.with_name("sevd.service.sevd-old")]
    assert done.aside[0].read_text() == "[Service]\nExecStart=/old\n"


def test_uninstalling_leaves_nothing_of_ours_and_everything_of_the_administrators(tmp_path: Path) -> None:
    install_units.install(tmp_path, program=PROGRAM, plain_user=True)
    mine = ["etc/sevd/sevd.toml", "etc/systemd/system/sevd.service.d/mine.conf", "etc/systemd/system/other.service"]
    for place in mine:
        (tmp_path / place).write_text("mine")
    rules = tmp_path / "etc/udev/rules.d/72-sevd.rules"
    rules.write_text(rules.read_text() + "# mine\n")
    links = tmp_path / "etc/systemd/system/sockets.target.wants"
    links.mkdir()
    (links / "sevd.socket").symlink_to("../sevd.socket")
    (links / "other.socket").symlink_to("../other.socket")
    done = install_units.uninstall(tmp_path)
    assert files(tmp_path) == {
        *mine,
        "etc/udev/rules.d/72-sevd.rules",
        "etc/systemd/system/sockets.target.wants/other.socket",
    }
    assert done.kept == [rules]
    assert not (tmp_path / "etc/systemd/system/sevd-fetch.socket.d").exists()
    assert "systemctl stop" in done.text()
    assert f"{rules}: kept" in done.text()


def test_uninstalling_what_was_never_installed_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not known what was installed"):
        install_units.uninstall(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"version": 2, "files": {}}', b'{"version": 1, "files": []}', b"\xff", b"[" * 9999]
)
def test_a_damaged_memory_of_it_is_refused_and_nothing_is_touched(tmp_path: Path, content: bytes) -> None:
    install_units.install(tmp_path, program=PROGRAM)
    (tmp_path / install_units.MANIFEST).write_bytes(content)
    before = {place: (tmp_path / place).read_bytes() for place in files(tmp_path)}
    with pytest.raises(UsageError, match=r"units\.json") as caught:
        install_units.install(tmp_path, program=PROGRAM)
    assert caught.value.remedy
    with pytest.raises(UsageError, match=r"units\.json"):
        install_units.uninstall(tmp_path)
    assert {place: (tmp_path / place).read_bytes() for place in files(tmp_path)} == before


def test_places_that_are_not_ours_are_never_touched(tmp_path: Path) -> None:
    install_units.install(tmp_path, program=PROGRAM)
    manifest = tmp_path / install_units.MANIFEST
    document = json.loads(manifest.read_bytes())
    (tmp_path / "victim").write_text("x")
    document["files"]["victim"] = document["files"]["../victim"] = (
        "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    )
    manifest.write_text(json.dumps(document))
    install_units.uninstall(tmp_path)
    assert files(tmp_path) == {"victim"}


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("plain", "plain"), ("a b", '"/{}/a b"'), ("50%", "50%%"), ("a$b", "a$$b"), ('q"q', '"/{}/q\\"q"')],
)
def test_any_path_of_the_command_is_written_as_systemd_reads_it(tmp_path: Path, name: str, quoted: str) -> None:
    install_units.install(tmp_path / "root", program=tmp_path / name)
    assert started(tmp_path / "root").endswith(quoted.replace("/{}", str(tmp_path)))


@pytest.mark.parametrize("place", ["/home/somebody/bin/sevd", "/tmp/venv/bin/sevd", "/var/tmp/venv/bin/sevd"])
def test_a_command_that_the_service_would_not_see_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match="sees no programs") as caught:
        install_units.check(Path("/usr/bin/python3"), Path(place))
    assert "/opt" in caught.value.remedy


@pytest.mark.parametrize("place", ["/usr/bin/sevd", "/opt/sevd/bin/sevd", "/usr/local/bin/sevd", "/homes/sevd"])
def test_a_command_of_the_system_is_taken(place: str) -> None:
    install_units.check(Path(place))


def test_a_command_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{tmp_path}/sevd"])
    with pytest.raises(UsageError, match="no program"):
        install_units.command()


def test_the_option_says_what_it_wrote_or_why_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sevd", "--install-units", tmp_path / "root"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if done.returncode:  # this interpreter, or its environment, lies where the service does not see it
        assert done.returncode == 2
        assert re.search("sees no programs|no program", done.stderr)
        assert "      " in done.stderr, "and what to do"
        assert not (tmp_path / "root").exists()
    else:
        assert f"{tmp_path}/root/etc/systemd/system/sevd.service\n" in done.stdout
        assert (tmp_path / "root" / install_units.MANIFEST).exists()
        assert "systemctl enable" in done.stdout
