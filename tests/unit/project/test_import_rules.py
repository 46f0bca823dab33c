"""Arrows between the rooms run downwards only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOPS = {"sev": ROOT / "client" / "sev", "sevd": ROOT / "sevd"}

NETWORK = ("grpc", "asyncio", "socket", "ssl", "urllib", "http", "httpx", "requests")
PURE = ("sev.measurement", "sev.attestation", "sev.certs", "sev.abi")
LOGIC = (
    "sevd.platform",
    "sevd.guests",
    "sevd.leases",
    "sevd.endorsements",
    "sevd.devices",
    "sevd.simulator",
    "sevd.worker",
)
ROOTS = ("sevd.daemon", "sevd.daemon_worker", "sevd.__main__")
LIMIT = 400

FORBIDDEN: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    # (rule, rooms that it binds, what they may not import)
    ("the library knows no daemon", ("sev",), ("sevd",)),
    ("pure rooms know no network", PURE, NETWORK),
    ("logic knows no gRPC", LOGIC, ("grpc", "google.rpc", "sev.v1")),
    ("logic knows no skin", (*LOGIC, "sevd.access"), ("sevd.api", "sevd.daemon")),
    ("devices know nothing above them", ("sevd.devices",), ("sevd.guests", "sevd.platform", "sevd.endorsements")),
    ("layouts know nothing above them", ("sev.abi",), ("sev.certs", "sev.attestation", "sev.measurement", "sev.cli")),
    ("the library knows no command", ("sev.abi", "sev.certs", "sev.attestation", "sev.measurement"), ("sev.cli",)),
    ("measuring needs no certificates", ("sev.measurement",), ("sev.certs", "sev.attestation")),
    ("a worker stays small", ("sevd.worker",), ("grpc", "asyncio", "cryptography")),
    ("the simulator knows no daemon", ("sevd.simulator",), ("sevd.guests", "sevd.platform", "sevd.api", "sevd.access")),
)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def modules() -> Iterator[tuple[str, Path]]:
    for top, folder in TOPS.items():
        for file in sorted(folder.rglob("*.py")):
            if "_pb2" in file.name:
                continue
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join((top, *parts)).removesuffix(".__init__"), file


def imports(name: str, file: Path) -> Iterator[str]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*home, node.module]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


ALL = list(modules())


@pytest.mark.parametrize(("rule", "rooms", "banned"), FORBIDDEN, ids=[rule for rule, _, _ in FORBIDDEN])
def test_arrows(rule: str, rooms: tuple[str, ...], banned: tuple[str, ...]) -> None:
    broken = [
        f"{name} imports {target}"
        for name, file in ALL
        if any(within(name, room) for room in rooms)
        for target in imports(name, file)
        if any(within(target, top) for top in banned)
    ]
    assert broken == [], rule


def test_only_the_composition_root_reaches_the_simulator() -> None:
    broken = [
        f"{name} imports {target}"
        for name, file in ALL
        if name not in ROOTS and not within(name, "sevd.simulator")
        for target in imports(name, file)
        if within(target, "sevd.simulator")
    ]
    assert broken == []


def test_modules_stay_readable() -> None:
    large = {name: count for name, file in ALL if (count := len(file.read_text().splitlines())) > LIMIT}
    assert large == {}


def test_every_module_says_what_it_is() -> None:
    silent = [name for name, file in ALL if not ast.get_docstring(ast.parse(file.read_text()))]
    assert silent == []


@pytest.mark.parametrize(
    ("entry", "unwanted"),
    [
        ("import sev", ("argparse", "json", "typing", "cryptography", "grpc")),
        (
            "from sev.cli.main import main\ntry:\n main(['measure', 'snp', '--help'])\nexcept SystemExit:\n pass",
            ("cryptography", "grpc", "asyncio", "dataclasses", "typing"),
        ),
        ("import sev.attestation", ("grpc", "asyncio", "cryptography.x509")),
    ],
    ids=["import sev", "sev measure snp", "sev.attestation"],
)
def test_start_up_loads_only_what_is_used(entry: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys\n{entry}\nprint(*[m for m in {unwanted!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-S", "-c", _site() + code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def _site() -> str:
    """Puts this interpreter's paths back without running `site`, whose .pth files import what they like."""
    return f"import sys\nsys.path[:] = {[p for p in sys.path if p]!r}\n"
