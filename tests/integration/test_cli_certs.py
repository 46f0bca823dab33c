"""`sev certs` against a real simulated daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sev.certs import load
from tests.support.cli import sev
from tests.support.daemon import Daemon


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_export(daemons: Callable[[str], Daemon], tmp_path: Path, product: str) -> None:
    daemon = daemons(product)
    out, table = tmp_path / "a" / "certs", tmp_path / "table.bin"
    done = sev("--socket", daemon.socket, "certs", "export", "--out", out, "--der", "--cert-table", table, "--json")
    assert done.code == 0, done.err
    assert "SIMULATED" in done.err
    document = done.json()
    assert document["simulated"] is True
    for kind in ("ark", "ask", "vcek"):
        assert document["files"][kind] == str(out / f"{kind}.pem")
        (pem,) = load((out / f"{kind}.pem").read_bytes())
        (der,) = load((out / f"{kind}.der").read_bytes())
        assert pem.der == der.der
        assert pem.kind == kind
    shown = sev("certs", "show", table, "--json")
    assert shown.code == 0, shown.err
    kinds = {one.get("kind") for one in shown.json()["certificates"]}
    assert {"ark", "ask", "vcek"} <= kinds


def test_export_plain(daemon: Daemon, tmp_path: Path) -> None:
    done = sev("--socket", daemon.socket, "certs", "export", "--out", tmp_path)
    assert done.code == 0
    assert f"wrote {tmp_path / 'vcek.pem'}" in done.out
    assert not list(tmp_path.glob("*.der"))


@pytest.mark.parametrize("out", ["/dev/null", "/proc/none", "\0"])
def test_export_to_nowhere(daemon: Daemon, out: str) -> None:
    done = sev("--socket", daemon.socket, "certs", "export", "--out", out)
    assert done.code == 2, done.err


@pytest.fixture
def exported(daemon: Daemon, tmp_path: Path) -> Path:
    assert sev("--socket", daemon.socket, "certs", "export", "--out", tmp_path / "certs", "--der").code == 0
    return tmp_path / "certs"


def test_import_takes_what_fits(daemon: Daemon, exported: Path) -> None:
    files = [exported / "vcek.pem", exported / "ask.der", exported / "ark.pem"]
    done = sev("--socket", daemon.socket, "certs", "import", *files, "--json")
    assert done.code == 0, done.err
    assert {one["kind"] for one in done.json()["imported"]} == {"vcek", "ask", "ark"}
    assert sev("--socket", daemon.socket, "certs", "import", *files).code == 0


def test_import_refuses_what_does_not(
    daemon: Daemon, daemons: Callable[[str], Daemon], exported: Path, tmp_path: Path
) -> None:
    other = daemons("milan")
    assert sev("--socket", other.socket, "certs", "export", "--out", tmp_path / "other").code == 0
    foreign = sev("--socket", daemon.socket, "certs", "import", tmp_path / "other" / "vcek.pem", "--json")
    assert foreign.code in (3, 5, 9), foreign.err
    changed = bytearray((exported / "vcek.der").read_bytes())
    changed[-5] ^= 1
    (tmp_path / "changed").write_bytes(changed)
    assert sev("--socket", daemon.socket, "certs", "import", tmp_path / "changed").code in (3, 5, 9)
    (tmp_path / "junk").write_bytes(b"junk")
    assert sev("--socket", daemon.socket, "certs", "import", tmp_path / "junk").code == 9
    (tmp_path / "large").write_bytes(bytes((64 << 10) + 1))
    assert sev("--socket", daemon.socket, "certs", "import", tmp_path / "large").code == 2
    assert sev("--socket", daemon.socket, "certs", "import", tmp_path / "absent").code == 2
    assert sev("--socket", daemon.socket, "certs", "import").code == 2


def test_show(exported: Path, tmp_path: Path) -> None:
    done = sev("certs", "show", exported / "vcek.pem", "--json")
    assert done.code == 0
    (document,) = done.json()["certificates"]
    assert document["kind"] == "vcek"
    text = sev("certs", "show", exported / "vcek.der")
    assert text.code == 0
    assert "vcek" in text.out.lower()
    (tmp_path / "junk").write_bytes(b"\x30\x82junk")
    assert sev("certs", "show", tmp_path / "junk").code == 9
    assert sev("certs", "show", tmp_path / "absent").code == 2
