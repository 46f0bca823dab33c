"""What lies in the folder systemd: held to systemd's own checks, to the table of settings, and to what installs it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sev.errors import UsageError
from sevd import config, example_config, install_units
from sevd.access.listeners import KINDS
from sevd.config import SETTINGS, Settings
from tests.support.needs import need_program

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "systemd"
SOCKETS = sorted(path.name for path in FOLDER.glob("*.socket"))


def values(text: str, key: str) -> list[str]:
    """All values of a key of a unit."""
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


@pytest.mark.parametrize(("dropin", "most"), [("", 0.7), ("plain-user.conf", 0.5)], ids=["root", "plain-user"])
def test_exposure_is_as_low_as_promised(tmp_path: Path, dropin: str, most: float) -> None:
    need_program("systemd-analyze")
    unit = tmp_path / "sevd.service"
    unit.write_text((FOLDER / "sevd.service").read_text() + "\n" + ((FOLDER / dropin).read_text() if dropin else ""))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", unit], capture_output=True, text=True, check=False
    )
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= most


def test_the_example_has_every_setting() -> None:
    assert (FOLDER / "sevd.toml").read_text() == example_config.text(), (
        "write it anew: python -m sevd.example_config > systemd/sevd.toml"
    )


def test_the_example_changes_nothing_as_it_is() -> None:
    assert config.parse((FOLDER / "sevd.toml").read_bytes(), "example") == Settings()


def test_the_example_shows_the_defaults() -> None:
    text = (FOLDER / "sevd.toml").read_text()
    shown = "\n".join(
        line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ") and "# not set" not in line
    )
    names = [f"{table}.{key}" for table, keys in tomllib.loads(shown).items() for key in keys]
    unset = re.findall(r"^#(\w+) = .*# not set$", text, re.MULTILINE)
    assert sorted([*(name.rpartition(".")[2] for name in names), *unset]) == sorted(
        setting.name.rpartition(".")[2] for setting in SETTINGS
    )
    assert config.parse(shown.encode(), "example") == config.resolved(Settings(), 0, {})


def test_an_example_that_is_uncommented_whole_is_valid() -> None:
    shown = "\n".join(
        line.removeprefix("#") for line in example_config.text().splitlines() if not line.startswith("# ")
    )
    assert len([setting for setting in SETTINGS if setting.name.rpartition(".")[2] in shown]) == len(SETTINGS)
    config.parse(shown.encode(), "example")


def test_every_socket_has_its_unit() -> None:
    found = {}
    for name in SOCKETS:
        text = (FOLDER / name).read_text()
        (kind,) = values(text, "FileDescriptorName")
        (path,) = values(text, "ListenStream") or values(text, "ListenSequentialPacket")
        assert values(text, "Service") == ["sevd.service"]
        assert (values(text, "ListenStream") == []) == (kind == "fd"), "the type of its sockets"
        assert int(values(text, "SocketMode")[0], 8) == KINDS[kind].group_mode
        assert values(text, "SocketGroup") == ["root" if kind == "admin" else "sev"]
        found[kind] = path
    root = config.resolved(Settings(), 0, {})
    wanted = {
        "sevd": root.socket,
        "monitor": root.monitor_socket,
        "admin": root.admin_socket,
        "fd": root.fd_socket,
    }
    assert found == {kind: str(path) for kind, path in wanted.items()}
    service = (FOLDER / "sevd.service").read_text()
    assert sorted(values(service, "Sockets")[0].split()) == SOCKETS


def test_the_stop_outlasts_the_drain() -> None:
    service = (FOLDER / "sevd.service").read_text()
    assert int(values(service, "TimeoutStopSec")[0]) > 100 + Settings().drain_seconds


def test_all_files_are_installed(tmp_path: Path) -> None:
    install_units.install(tmp_path, program=Path("/bin/true"), plain_user=True)
    found = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    places = [*install_units.FILES.values(), *install_units.PLAIN_USER.values()]
    assert found == sorted(tmp_path / place for place in places)
    assert sorted([*install_units.FILES, *install_units.PLAIN_USER]) == sorted(p.name for p in FOLDER.iterdir())
    assert all(path.stat().st_mode & 0o7777 == 0o644 for path in found)


def test_a_second_installation_replaces_units_and_keeps_what_is_the_administrators(tmp_path: Path) -> None:
    install_units.install(tmp_path, program=Path("/bin/true"), plain_user=True)
    kept = tmp_path / "etc/sevd/sevd.toml"
    kept.write_text("[daemon]\n")
    unit = tmp_path / "etc/systemd/system/sevd.service"
    unit.write_text("old")
    install_units.install(tmp_path, program=Path("/bin/false"))
    assert kept.read_text() == "[daemon]\n"
    assert values(unit.read_text(), "ExecStart") == ["/bin/false"]
    assert (unit.parent / "sevd.service.d/plain-user.conf").exists()


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("plain", "plain"), ("a b", '"/{}/a b"'), ("50%", "50%%"), ("a$b", "a$$b"), ('q"q', '"/{}/q\\"q"')],
)
def test_any_path_of_the_command_is_written_as_systemd_reads_it(tmp_path: Path, name: str, quoted: str) -> None:
    install_units.install(tmp_path / "root", program=tmp_path / name)
    (found,) = values((tmp_path / "root/etc/systemd/system/sevd.service").read_text(), "ExecStart")
    assert found.endswith(quoted.replace("/{}", str(tmp_path)))


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
        assert "systemctl enable" in done.stdout
