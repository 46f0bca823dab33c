"""What the README shows is what happens: its session, its Python example, its grpcurl line, its links."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
OVMF = Path("/usr/share/ovmf/OVMF.fd")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    return [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]


def need(path: str | Path | None, what: str) -> None:
    if path is None or not Path(path).exists():
        if os.environ.get("CI"):
            pytest.fail(f"{what} is not installed")
        pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the README's daemon runs."""
    need(OVMF, "OVMF (package ovmf)")
    here = tmp_path_factory.mktemp("readme")
    start = next(line for line in commands() if line.startswith("sevd "))
    daemon = subprocess.Popen(["bash", "-c", "exec " + start.rstrip("& ")], cwd=here, env=environment())
    try:
        until = time.monotonic() + 60
        while run("sev -q host show", here).returncode:
            assert daemon.poll() is None, "the README's daemon ended"
            assert time.monotonic() < until, "the README's daemon does not answer"
            time.sleep(0.2)
        yield here
    finally:
        daemon.terminate()
        assert daemon.wait(20) == 0


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "SEVD_SOCKET": "./sevd.sock"}


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def session(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every `sev` command of the README's session, run in order with the guest id of this run."""
    shown = re.search(r"snp-[0-9a-f]+", README)
    assert shown
    done: dict[str, subprocess.CompletedProcess[str]] = {}
    guest = ""
    for line in commands():
        if not line.startswith("sev ") or "vcek.der" in line:
            continue
        done[line] = run(line.replace(shown[0], guest), folder)
        if not guest and (found := re.search(r"snp-[0-9a-f]+", done[line].stdout)):
            guest = found[0]
    return done


def test_the_session_runs(session: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert len(session) >= 3
    assert {line: done.stderr for line, done in session.items() if done.returncode} == {}


def test_the_session_looks_as_shown(session: dict[str, subprocess.CompletedProcess[str]]) -> None:
    """Line by line, but for identifiers of this host and this guest, and the digest of this OVMF build."""

    def plain(text: str) -> list[str]:
        return [
            re.sub(r"[0-9a-f]{12,}…?|\d{4}-\d\d-\d\dT[\d:]+Z", "HEX", line).rstrip()
            for line in text.splitlines()
            if line.strip()
        ]

    shown = "\n".join(plain("\n".join(blocks("console"))))
    for line, done in session.items():
        if " guest report " in line:
            continue
        output = [text for text in plain(done.stdout) if not text.startswith("     ") or "agree" in text]
        missing = [text for text in output if text not in shown and text != "accepted"]
        assert missing == [], line


def test_without_the_simulators_root_the_report_is_refused(
    folder: Path, session: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    assert run("sev report verify report.bin --certs certs", folder).returncode == 3


def test_the_python_example_runs(folder: Path, session: dict[str, subprocess.CompletedProcess[str]]) -> None:
    (example,) = blocks("python")
    (folder / "example.py").write_text(example)
    done = run(f"{sys.executable} -W error example.py", folder)
    assert done.returncode == 0, done.stderr
    assert "genuine" in done.stdout


def test_the_grpcurl_line_runs(folder: Path) -> None:
    need(shutil.which("grpcurl"), "grpcurl")
    line = next(line for line in commands() if line.startswith("grpcurl"))
    done = run(line, folder)
    assert done.returncode == 0, done.stderr
    assert '"simulated": true' in done.stdout


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_both_commands_are_one_line_each_and_their_last_part_stands_alone() -> None:
    set_ups = [line for line in commands() if line.startswith("python3 -m venv")]
    assert [line.split("&&")[-1].strip() for line in set_ups] == [".venv/bin/sev demo", ".venv/bin/python -m pytest"]
