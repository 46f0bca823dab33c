"""A walk over the whole tree of commands: help, no arguments, bad values; never a trace, never exit 1."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sev.cli.main import NOUNS
from sev.cli.tree import Command, Option, global_options, walk
from tests.support.cli import sev

COMMANDS = {" ".join(command.words): command for command in walk()}
LEAVES = [name for name, command in COMMANDS.items() if command.is_leaf]
BRANCHES = [name for name, command in COMMANDS.items() if not command.is_leaf and name]

ANSWERS = {0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
"""Exit codes that a command may have here: all but 1, a bug, and 130, interrupted."""

ALONE = {"demo", "host check", "attest check"}
"""Leaves that do something real without arguments; their own tests run them."""

BAD_VALUES = [
    "",
    "-",
    "--",
    "nonsense",
    "-1",
    "0x" + "f" * 40,
    "9" * 40,
    "\udcff",
    "/nonexistent/x",
    "1e3",
    "é" * 300,
    "=,=",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon, and a directory of our own for what commands write."""
    monkeypatch.setenv("SEVD_SOCKET", str(tmp_path / "no-daemon"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage").write_bytes(os.urandom(4096))


def value_for(option: Option) -> str:
    """A value that is of the right kind, if not of the right content."""
    if option.choices:
        return option.choices[0]
    return "garbage" if option.value == "FILE" else "out" if option.value == "DIR" else "1"


def plausible(command: Command) -> list[str]:
    """The words of a command with everything that it requires."""
    assert command.parser is not None
    words = [*command.words]
    required = {
        action.option_strings[0] for action in command.parser._actions if action.required and action.option_strings
    }
    for option in command.options:
        if required & set(option.names):
            words += [option.names[-1], value_for(option)]
    return words + [value_for(argument) for argument in command.arguments]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(name: str, flag: str) -> None:
    done = sev(*name.split(), flag)
    assert done.code == 0
    assert done.out.startswith(f"usage: sev {name}")
    assert done.err == ""
    first = sev("help", *name.split())
    assert (first.code, first.out) == (0, done.out)


@pytest.mark.parametrize("name", LEAVES)
def test_help_of_a_leaf_explains_itself(name: str) -> None:
    command = COMMANDS[name]
    assert command.parser is not None
    description = command.parser.description or ""
    text = sev(*name.split(), "--help").out
    assert len(description) > 80, "a description in sentences"
    assert "examples:" in text
    assert re.search(rf"^  (\S.*)?sev {name}", text, re.M), "an example of this very command"
    assert command.help, "one line in the list of its noun"
    for option in (*command.options, *command.arguments):
        assert option.help, f"{option.names or option.value} is explained"
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("name", LEAVES)
def test_examples_are_commands_that_parse(name: str) -> None:
    import shlex

    from sev.cli import globals as global_options_module
    from sev.cli.main import build_parser

    text = sev(*name.split(), "--help").out.partition("examples:")[2]
    found = [line.strip() for line in text.splitlines() if re.match(r"  (\S.*)?sev \S", line) and "#" not in line]
    assert found
    for line in found:
        plain = re.sub(r'^eval "\$\((.*)\)"$', r"\1", line)
        words = shlex.split(plain.partition("|")[0].partition(">")[0])
        assert words[0] == "sev"
        _, rest = global_options_module.split(words[1:])
        parser = build_parser(rest[0])
        args, extras = parser.parse_known_args(rest[1:])
        assert not extras, line
        assert args.run is not None


def test_help_of_sev_lists_every_noun_and_global_option() -> None:
    for words in (["--help"], ["-h"], ["help"]):
        done = sev(*words)
        assert done.code == 0
        for noun, line in NOUNS.items():
            assert noun in done.out
            assert line in done.out
        for option in global_options():
            assert all(name in done.out for name in option.names)


def test_nothing_at_all() -> None:
    done = sev()
    assert done.code == 2
    assert done.out == ""
    assert "usage: sev" in done.err


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_without_a_verb(name: str) -> None:
    done = sev(*name.split())
    assert done.code == 2
    assert done.out == ""
    for verb, _ in COMMANDS[name].verbs:
        assert verb in done.err
    wrong = sev(*name.split(), "nonsense")
    assert wrong.code == 2
    assert "nonsense" in wrong.err


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in ALONE])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_leaf_without_arguments(name: str, form: tuple[str, ...]) -> None:
    done = sev(*name.split(), *form)
    assert done.code in ANSWERS
    command = COMMANDS[name]
    assert command.parser is not None
    if any(action.required for action in command.parser._actions):
        assert done.code == 2
    if form and done.code:
        error = done.json()["error"]
        assert set(error) >= {"kind", "message", "remedy"}
    if done.code:
        assert done.err.startswith("sev: ")


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("extra", ["--no-such-option", "--no-such-option=1", "-Z"])
def test_unknown_options(name: str, extra: str) -> None:
    done = sev(*plausible(COMMANDS[name]), extra)
    assert done.code == 2
    assert extra.partition("=")[0] in done.err


@pytest.mark.parametrize("name", LEAVES)
def test_too_many_words(name: str) -> None:
    command = COMMANDS[name]
    assert command.parser is not None
    if any(action.nargs in ("*", "+") for action in command.parser._actions if not action.option_strings):
        return  # takes any number
    assert sev(*plausible(command), "word", "word", "word").code == 2


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in ALONE])
def test_bad_values(name: str) -> None:
    command = COMMANDS[name]
    base = plausible(command)
    for option in command.options:
        for value in BAD_VALUES if option.value else []:
            done = sev(*base, option.names[-1], value)
            assert done.code in ANSWERS, (option.names, value, done.err)
            assert done.code or not option.choices or value in option.choices
    for place in range(len(base) - len(command.arguments), len(base)):
        for value in BAD_VALUES:
            words = [*base[:place], value, *base[place + 1 :]]
            done = sev(*words)
            assert done.code in ANSWERS, (words, done.err)


@pytest.mark.parametrize("name", sorted(ALONE))
def test_bad_values_of_what_runs_alone(name: str) -> None:
    for option in COMMANDS[name].options:
        for value in BAD_VALUES if option.value else []:
            assert sev(name, option.names[-1], value).code in (2, 9)


@pytest.mark.parametrize(
    "words",
    [
        ("--timeout", "x"), ("--timeout", "0"), ("--timeout", "-1"), ("--timeout", "nan"), ("--timeout",),
        ("--socket",), ("--socket", ""), ("--socket", "unix:"), ("--socket", "http://x"), ("--socket", "x" * 200),
        ("--tls-ca", "/nonexistent"), ("--socket", "dns:h:1"), ("--socket", "dns:h:1", "--tls-ca", "a"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [True, False])
def test_bad_global_values(words: tuple[str, ...], before: bool) -> None:
    if before and words in (("--timeout",), ("--socket",)):
        return  # the next word is their value
    done = sev(*words, "host", "show") if before else sev("host", "show", *words)
    assert done.code == 2, done.err


@pytest.mark.parametrize(
    "name", [n for n in LEAVES if n.startswith(("host", "snp", "guest", "certs export", "certs import"))]
)
def test_without_a_daemon_every_command_says_so(name: str, tmp_path: Path) -> None:
    words = plausible(COMMANDS[name])
    if name == "snp config set":
        words = ["snp", "config", "set", "--snp", "1"]
    if name == "guest launch":
        from sev.measurement.sample import sample_firmware

        (tmp_path / "garbage").write_bytes(sample_firmware())
    if name == "snp vlek load":
        (tmp_path / "garbage").write_bytes(bytes(432))
    if name == "guest inject":
        (tmp_path / "header").write_bytes(bytes(52))
        (tmp_path / "garbage").write_bytes(bytes(16))
        words = ["guest", "inject", "some-guest", *(str(tmp_path / one) for one in ("header", "garbage")), "--gpa", "0"]
    if name == "host check":  # looks at this machine itself unless a daemon is named
        words += ["--socket", str(tmp_path / "no-daemon")]
    done = sev(*words, "--yes", "--json")
    assert done.code == 8, done.err
    assert done.json()["error"]["kind"] == "unreachable"
    assert "--socket" in done.json()["error"]["remedy"]
