"""`sev demo`: the story holds, is told quickly the second time, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.cli import COMMAND
from tests.support.daemon import chip

DEMO = (*COMMAND, "demo")
STEPS = ["host", "launch", "report", "verify", "amd_root", "appraise", "tamper", "end"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory in which the chip is kept already, as after a first run."""
    from sev import __version__

    folder = tmp_path_factory.mktemp("cache")
    (folder / "sev").mkdir(mode=0o700)
    (folder / "sev" / f"demo-genoa-{__version__}").symlink_to(chip("genoa", tmp_path_factory))
    return folder


@pytest.fixture
def surroundings(cache: Path, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(tmp_path)}


def left_behind(folder: Path) -> list[str]:
    """Directories and processes of private hosts under this temporary directory."""
    found = [path.name for path in folder.glob("sev-demo-*")]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(folder).encode() in word for word in words) and b"sevd" in words:
            found.append(entry.parent.name)
    return found


def test_the_story(surroundings: dict[str, str], tmp_path: Path) -> None:
    begin = time.monotonic()
    done = subprocess.run([*DEMO], capture_output=True, text=True, env=surroundings, timeout=100, check=False)
    took = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 15
    assert max(len(line) for line in lines) <= 150
    for number in range(1, len(STEPS) + 1):
        assert any(line.startswith(f"{number}. ") for line in lines)
    assert "predicted" in done.stdout
    assert "refused" in done.stdout
    assert "What to try next" in done.stdout
    assert took < 15, "5 s where nothing else runs"
    assert left_behind(tmp_path) == []


def test_the_story_as_one_document(surroundings: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run([*DEMO, "--json"], capture_output=True, text=True, env=surroundings, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    steps = {step["id"]: step for step in document["steps"]}
    assert list(steps) == STEPS
    assert document["simulated"] is True
    assert steps["launch"]["launch_digest"] == steps["launch"]["expected_digest"]
    assert steps["report"]["report"]["measurement"] == steps["launch"]["launch_digest"]
    assert steps["verify"]["verified"] is True
    assert steps["appraise"]["appraisal"]["accepted"] is True
    assert steps["tamper"]["error"]["class"] == "ReportSignatureInvalid"
    assert steps["amd_root"]["refused"] is True
    assert steps["end"]["asids"]["in_use"] == 0
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_story_leaves_nothing(
    surroundings: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen([*DEMO], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings)
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    until = time.monotonic() + 10
    while not list(tmp_path.glob("sev-demo-*/sevd.sock")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.005)
    assert list(tmp_path.glob("sev-demo-*/sevd.sock")), "it runs"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        until = time.monotonic() + 10
        while any(name.isdigit() for name in left_behind(tmp_path)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(name.isdigit() for name in left_behind(tmp_path)), "the kernel ends the daemon with us"
    else:
        assert process.returncode in (130, 143, 0)
        assert left_behind(tmp_path) == []


def test_a_kept_chip_that_is_no_longer_taken_is_made_anew(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon refuses a state in which a mark stands, as one of another version would; the real one runs otherwise."""
    from sev import __version__
    from sev.cli import private_host

    made = chip("genoa", tmp_path_factory)
    interpreter = tmp_path / "python"
    interpreter.write_text(
        "#!/bin/sh\n"
        'for word; do case "$last" in --state-dir) state="$word";; esac; last="$word"; done\n'
        'if [ -e "$state/old" ]; then echo "state of another version" >&2; exit 3; fi\n'
        f'cp -r {made} "$state"\n'
        f'exec {sys.executable} "$@"\n'
    )
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "sev" / f"demo-genoa-{__version__}"
    kept.mkdir(parents=True)
    (kept / "old").touch()
    notes: list[str] = []
    with private_host.PrivateHost("genoa", notes.append) as private, private.connect() as host:
        assert host.host().product == "genoa"
        assert (private.directory.stat().st_mode & 0o777) == 0o700
    assert len(notes) == 1
    assert not (kept / "old").exists()
    assert {path.name for path in made.iterdir()} <= {path.name for path in kept.iterdir()}
    assert (kept.stat().st_mode & 0o777) == 0o700
    assert not private.directory.exists()


def test_a_daemon_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sev.cli import private_host
    from sev.errors import InternalError

    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(InternalError, match="no such luck"),
        private_host.PrivateHost("genoa", lambda text: None) as private,
    ):
        private.connect()
    assert list(tmp_path.glob("sev-demo-*")) == []
