"""Programs that hold secrets leave no core."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import sev

CRASH = """
import os, resource, sys
os.chdir(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
{before}
print(resource.getrlimit(resource.RLIMIT_CORE), flush=True)
os.abort()
"""


def crash(folder: Path, before: str) -> tuple[str, bool]:
    """Limits at the end of a program that aborts, and whether the kernel says that it dumped core."""
    reading, writing = os.pipe()
    program = [sys.executable, "-c", CRASH.format(before=before), str(folder)]
    child = os.posix_spawn(sys.executable, program, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)])
    os.close(writing)
    with open(reading, encoding="ascii") as output:
        limits = output.read().strip()
    _, state = os.waitpid(child, 0)
    assert os.WIFSIGNALED(state), limits
    return limits, os.WCOREDUMP(state)


def test_a_program_that_holds_secrets_leaves_none(tmp_path: Path) -> None:
    limits, dumped = crash(tmp_path, "from sev.cores import no_core; no_core()")
    assert limits.startswith(("(1, ", "(0, "))
    assert not dumped
    assert list(tmp_path.iterdir()) == []


def test_without_it_there_would_be_one(tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    limits, dumped = crash(tmp_path, "")
    if limits in ("(0, 0)", "(1, 1)") or pattern.startswith(("|", "@", "/")):
        pytest.skip(f"cores of this machine are not written here: {limits}, {pattern}")
    assert dumped
    assert [path for path in tmp_path.iterdir() if path.name.startswith(pattern.partition("%")[0])]


def test_a_limit_of_nothing_stays(tmp_path: Path) -> None:
    before = "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nfrom sev.cores import no_core; no_core()"
    assert crash(tmp_path, before) == ("(0, 0)", False)


def test_what_a_filter_forbids_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    from sev.cores import no_core

    def refuse(*_: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", refuse)
        no_core()


@pytest.mark.parametrize("reads", [("certs", "generate", "oca.cert", "oca.key")])
def test_commands_that_touch_secrets(tmp_path: Path, reads: tuple[str, ...]) -> None:
    program = (
        "import resource, sys\nhard = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "from sev.cli.main import main\ncode = main(sys.argv[1:])\n"
        "print(hard, resource.getrlimit(resource.RLIMIT_CORE)[0], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *reads], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-2:] in (["1", "0"], ["0", "0"])
    assert sev("certs", "show", tmp_path / "oca.cert").code == 0
