"""`sev guest` on a simulated daemon, as tests of several commands need it."""

from __future__ import annotations

from pathlib import Path

from tests.support.cli import Done, sev
from tests.support.daemon import Daemon


def launch(daemon: Daemon, firmware: Path, *words: object) -> Done:
    """Launches an SNP guest of this image."""
    return sev("--socket", daemon.socket, "guest", "launch", "--type", "snp", "--firmware", firmware, *words, "--json")


def delete(daemon: Daemon, guest_id: str) -> None:
    """Deletes a guest, which is there."""
    assert sev("--socket", daemon.socket, "guest", "delete", guest_id, "--yes").code == 0
