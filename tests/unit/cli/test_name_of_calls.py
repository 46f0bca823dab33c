"""$SEV_REQUEST_ID names the calls of a command: at every daemon that it talks to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sev import client
from tests.support.cli import sev


@pytest.mark.parametrize(
    ("words", "daemons"),
    [
        pytest.param(("host", "show"), 1, id="one daemon"),
        pytest.param(("guest", "migrate", "sev-000000000000", "--to", "{there}"), 2, id="from one to another"),
        pytest.param(("doctor",), 1, id="a daemon that may be away"),
    ],
)
def test_every_daemon_hears_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], daemons: int
) -> None:
    names: list[object] = []
    real = client.connect

    def connect(target: str | None = None, **options: Any) -> client.Host:
        names.append(options.get("request_id"))
        return real(target, **options)

    monkeypatch.setattr(client, "connect", connect)
    monkeypatch.setenv("SEV_REQUEST_ID", "deploy-42")
    there = str(tmp_path / "there")
    sev("--socket", tmp_path / "here", *(word.format(there=there) for word in words))
    assert names == ["deploy-42"] * daemons
