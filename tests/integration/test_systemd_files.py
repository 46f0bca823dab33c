"""What lies in the folder systemd: held to systemd's own checks, to the table of settings, and to what installs it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from sevd import config, example_config
from sevd.access.listeners import KINDS
from sevd.config import SETTINGS, Settings
from tests.support.needs import need_program

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "systemd"
SOCKETS = sorted(path.name for path in FOLDER.glob("*.socket"))
PORTS = ("sevd-mtls.socket", "sevd-metrics.socket")
ROLES = [name for name in SOCKETS if name not in (*PORTS, "sevd-fetch.socket")]


def values(text: str, key: str) -> list[str]:
    """All values of a key of a unit."""
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "dropin", "most"),
    [("sevd.service", "", 0.7), ("sevd.service", "plain-user.conf", 0.5), ("sevd-fetch.service", "", 1.2)],
    ids=["root", "plain-user", "fetch"],
)
def test_exposure_is_as_low_as_promised(tmp_path: Path, name: str, dropin: str, most: float) -> None:
    need_program("systemd-analyze")
    unit = tmp_path / name
    unit.write_text((FOLDER / name).read_text() + "\n" + ((FOLDER / dropin).read_text() if dropin else ""))
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


@pytest.mark.parametrize("name", SOCKETS)
def test_every_socket_says_its_mode_its_name_and_its_service(name: str) -> None:
    text = (FOLDER / name).read_text()
    (mode,) = values(text, "SocketMode")
    (service,) = values(text, "Service")
    (kind,) = values(text, "FileDescriptorName")
    assert name == ("sevd.socket" if kind == "sevd" else f"sevd-{kind}.socket")
    assert re.fullmatch("0[0-7]{3}", mode)
    assert int(mode, 8) & 0o007 == 0, "the world has no part in any"
    assert (FOLDER / service).exists()
    assert values(text, "WantedBy") == ["sockets.target sevd.service" if name in PORTS else "sockets.target"]
    if name in PORTS:
        assert values(text, "ListenStream")[0].rpartition(":")[2].isdigit()
    else:
        assert values(text, "SocketUser") == ["root"]
        assert len(values(text, "SocketGroup")) == 1
        assert values(text, "RemoveOnStop") == ["no"], "a path that vanishes is an error to callers"


def test_ports_are_opened_by_the_administrator_alone() -> None:
    service = (FOLDER / "sevd.service").read_text()
    for name in PORTS:
        assert not [line for line in service.splitlines() if name in line and not line.startswith("#")]
    assert values((FOLDER / "sevd-metrics.socket").read_text(), "ListenStream")[0].startswith("127.0.0.1:")


def test_nobody_but_the_daemon_has_certificates_fetched() -> None:
    text = (FOLDER / "sevd-fetch.socket").read_text()
    assert values(text, "SocketMode") == ["0600"]
    assert values(text, "SocketGroup") == ["root"]
    assert values((FOLDER / "plain-user-fetch.conf").read_text(), "SocketUser") == ["sevd"]


def test_every_socket_of_a_role_has_its_unit() -> None:
    found = {}
    for name in ROLES:
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
    assert sorted(values(service, "Sockets")[0].split()) == sorted(ROLES)


def test_the_stop_outlasts_the_drain() -> None:
    service = (FOLDER / "sevd.service").read_text()
    assert int(values(service, "TimeoutStopSec")[0]) > 100 + Settings().drain_seconds
