"""Every setting has its place, its type and its range; a mistake is named."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.errors import UsageError
from sev.records import fields_of
from sevd import config
from sevd.config import SETTINGS, Settings


def parse(text: str) -> Settings:
    return config.parse(text.encode(), "test.toml")


def test_the_table_has_every_setting_once_with_its_risk() -> None:
    assert sorted([*(one.attribute for one in SETTINGS), "identities"]) == sorted(fields_of(Settings))
    assert len({one.name for one in SETTINGS}) == len(SETTINGS)
    for one in SETTINGS:
        assert (one.meaning[-1], one.risk[-1]) == (".", "."), one.name
        assert (one.kind == "number") == (one.unit != "") or one.name == "simulation.seed", one.name


def test_defaults_are_within_their_own_ranges() -> None:
    for one in SETTINGS:
        value = getattr(Settings(), one.attribute)
        if one.kind == "number" and value is not None:
            assert one.least <= value <= one.most, one.name
        if one.words:
            assert set(value if one.kind == "texts" else [value]) <= set(one.words), one.name


def test_a_whole_file_is_read() -> None:
    settings = parse(
        """
        [daemon]
        state_dir = "/var/lib/x"
        socket = "/run/x/s"
        drain_seconds = 3
        log_level = "debug"
        [devices]
        sev = "/tmp/sev"
        [simulation]
        product = "milan"
        seed = 7
        [access]
        admin_users = ["root", "1000"]
        [limits]
        connections = 12
        """
    )
    assert settings.state_dir == Path("/var/lib/x")
    assert (settings.drain_seconds, settings.log_level, settings.seed, settings.simulate) == (3, "debug", 7, "milan")
    assert settings.admin_users == ("root", "1000")
    assert (settings.sev_device, settings.connections) == (Path("/tmp/sev"), 12)
    assert settings.launcher_groups == ("sev",)


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        pytest.param("[limits]\nconections = 1", "limits.conections", "no setting", id="misspelt key"),
        pytest.param("[limit]\nconnections = 1", "limit.connections", "no setting", id="misspelt table"),
        pytest.param("connections = 1", "connections", "no setting", id="key outside a table"),
        pytest.param("[limits]\nconnections = 0", "limits.connections", "from 1 to", id="too small"),
        pytest.param("[limits]\nconnections = 99999999", "limits.connections", "from 1 to", id="too large"),
        pytest.param('[limits]\nconnections = "9"', "limits.connections", "whole number", id="text for a number"),
        pytest.param("[limits]\nconnections = true", "limits.connections", "whole number", id="bool for a number"),
        pytest.param("[limits]\nconnections = 1.5", "limits.connections", "whole number", id="fraction"),
        pytest.param("[daemon]\nsocket = 5", "daemon.socket", "expected a text", id="number for a path"),
        pytest.param('[daemon]\nsocket = "s"', "daemon.socket", "absolute path", id="relative path"),
        pytest.param('[daemon]\nsocket = ""', "daemon.socket", "absolute path", id="empty path"),
        pytest.param('[daemon]\nlog_level = "loud"', "daemon.log_level", "one of", id="unknown word"),
        pytest.param('[simulation]\nproduct = "siena"', "simulation.product", "one of", id="unknown product"),
        pytest.param(
            '[guests]\ntechnologies = ["snp", "tdx"]', "guests.technologies", "some of", id="unknown technology"
        ),
        pytest.param("[guests]\ntechnologies = []", "guests.technologies", "some of", id="no technology"),
        pytest.param('[access]\nadmin_users = "root"', "access.admin_users", "list of texts", id="text for a list"),
        pytest.param("[access]\nadmin_users = [0]", "access.admin_users", "list of texts", id="number in a list"),
        pytest.param('[access]\nadmin_users = [""]', "access.admin_users", "list of texts", id="empty in a list"),
        pytest.param("[limits", "config", "no valid TOML", id="no TOML"),
        pytest.param("[a]\n[a]", "config", "no valid TOML", id="a table twice"),
    ],
)
def test_mistakes_are_named(text: str, field: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse(text)
    assert caught.value.field == field
    assert "test.toml" in caught.value.message


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        parse("[limits]\nconections = 1")
    assert "limits.connections" in caught.value.remedy


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        config.parse(data, "x")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        config.load(tmp_path / "absent")
    with pytest.raises(UsageError, match="Is a directory"):
        config.load(tmp_path)
    (tmp_path / "big").write_bytes(b"#" * (config.CONFIG_BYTES + 1))
    with pytest.raises(UsageError, match="larger than"):
        config.load(tmp_path / "big")


def test_paths_of_root() -> None:
    settings = config.resolved(Settings(), 0, {})
    assert (settings.socket, settings.monitor_socket, settings.admin_socket) == (
        Path("/run/sevd/sevd.sock"),
        Path("/run/sevd/monitor.sock"),
        Path("/run/sevd/admin.sock"),
    )
    assert (settings.state_dir, settings.certificate_table) == (Path("/var/lib/sevd"), Path("/run/sevd/certs.bin"))


def test_paths_of_a_user() -> None:
    settings = config.resolved(Settings(), 1000, {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1000"})
    assert settings.socket == Path("/run/user/1000/sevd/sevd.sock")
    assert (settings.monitor_socket, settings.admin_socket) == (None, None)
    assert settings.state_dir == Path("/home/u/.local/state/sevd")
    assert settings.certificate_table == Path("/home/u/.local/state/sevd/certs.bin")
    bare = config.resolved(Settings(), 1000, {"XDG_STATE_HOME": "/s"})
    assert (bare.socket, bare.state_dir) == (Path("/run/user/1000/sevd/sevd.sock"), Path("/s/sevd"))


def test_a_socket_that_is_named_is_the_only_one() -> None:
    settings = config.resolved(Settings(socket=Path("/x/s")), 0, {})
    assert (settings.socket, settings.monitor_socket, settings.admin_socket) == (Path("/x/s"), None, None)


def test_a_simulated_table_never_lies_where_the_real_one_does() -> None:
    settings = config.resolved(Settings(simulate="genoa"), 0, {})
    assert settings.certificate_table == Path("/var/lib/sevd/certs.bin")


def test_what_a_reload_changes() -> None:
    live, restart = config.changed(Settings(), Settings(connections=5, simulate="milan"))
    assert (live, restart) == (["limits.connections"], ["simulation.product"])
