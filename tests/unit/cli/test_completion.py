"""Completion scripts: that each shell reads them, and that they offer what the parsers take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sev.cli import completion_scripts
from sev.cli.tree import global_options, walk

BASH = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_sev
printf '%s\\n' "${{COMPREPLY[@]}}"
"""

ZSH = """
compdef() {{ : }}
compadd() {{ shift; print -l -- "$@" }}
_files() {{ print -l -- *(N) }}
source {script}
words=({words}); CURRENT=$#words
_sev
"""

FISH = """
source {script}
complete -C {line}
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(getattr(completion_scripts, shell)())
    (folder / "some-file.bin").touch()
    return folder


def complete(folder: Path, shell: str, *words: str) -> set[str]:
    """What a shell offers for the last of these words."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    quoted = " ".join(f"'{word}'" for word in ("sev", *words))
    if shell == "fish":
        line = " ".join(("sev", *words))
        text = FISH.format(script=folder / shell, line=f"'{line}'")
    else:
        text = (BASH if shell == "bash" else ZSH).format(script=folder / shell, words=quoted)
    flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [shell, *flags, "-c", text], capture_output=True, text=True, timeout=30, cwd=folder, check=False
    )
    assert done.stderr == ""
    return {line.split("\t")[0] for line in done.stdout.splitlines() if line}


SHELLS = pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])


@SHELLS
def test_nouns(scripts: Path, shell: str) -> None:
    offered = complete(scripts, shell, "")
    assert {"host", "snp", "guest", "demo", "id-block"} <= offered
    assert "launch" not in offered


@SHELLS
@pytest.mark.parametrize("before", [(), ("--json",), ("--socket", "/run/x"), ("--socket=/run/x", "-v")])
def test_verbs_of_a_noun(scripts: Path, shell: str, before: tuple[str, ...]) -> None:
    offered = complete(scripts, shell, *before, "guest", "")
    assert {"launch", "list", "show", "watch", "delete", "report"} <= offered
    assert "host" not in offered


@SHELLS
def test_verbs_below_verbs(scripts: Path, shell: str) -> None:
    offered = complete(scripts, shell, "snp", "config", "")
    assert {"set", "reset"} <= offered
    assert "commit" not in offered


@SHELLS
def test_options(scripts: Path, shell: str) -> None:
    offered = complete(scripts, shell, "guest", "launch", "--")
    assert {"--firmware", "--vcpus", "--id-block", "--json", "--socket"} <= offered
    assert "--report-data" not in offered


@SHELLS
def test_values_of_options(scripts: Path, shell: str) -> None:
    assert complete(scripts, shell, "guest", "launch", "--type", "") == {"snp", "sev-es", "sev", "plain"}
    assert complete(scripts, shell, "demo", "--product", "") == {"milan", "genoa", "turin"}


@SHELLS
def test_choices_of_arguments(scripts: Path, shell: str) -> None:
    assert {"bash", "zsh", "fish"} <= complete(scripts, shell, "completion", "")


@SHELLS
@pytest.mark.parametrize(
    "words",
    [("guest", "launch", "--firmware", ""), ("certs", "show", ""), ("guest", "list", "--socket", "")],
)
def test_files(scripts: Path, shell: str, words: tuple[str, ...]) -> None:
    assert "some-file.bin" in complete(scripts, shell, *words)


@SHELLS
def test_no_files_where_none_belong(scripts: Path, shell: str) -> None:
    assert "some-file.bin" not in complete(scripts, shell, "guest", "show", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_word_and_option_is_in_the_script(scripts: Path, shell: str) -> None:
    script = (scripts / shell).read_text()
    for command in walk():
        assert all(word in script for word in command.words)
        for option in (*command.options, *global_options()):
            for name in option.names:
                assert (f"-l {name[2:]}" if shell == "fish" and name.startswith("--") else name.lstrip("-")) in script
