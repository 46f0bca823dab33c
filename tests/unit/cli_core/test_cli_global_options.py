"""Options of every command: found wherever they stand, the last one wins, values are never mistaken."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.cli.globals import FLAGS, HELP, VALUES, split

CASES: dict[str, tuple[list[str], dict[str, object], list[str]]] = {
    "none": (["host", "show"], {"json": False, "timeout": 5.0, "socket": None}, ["host", "show"]),
    "before": (["--json", "host", "show"], {"json": True}, ["host", "show"]),
    "after": (["host", "show", "--json"], {"json": True}, ["host", "show"]),
    "between": (["host", "-v", "show"], {"verbose": True}, ["host", "show"]),
    "value is a noun": (["--socket", "measure", "host"], {"socket": "measure"}, ["host"]),
    "value is a noun, joined": (["--socket=measure", "host"], {"socket": "measure"}, ["host"]),
    "value of another option": (["host", "--out", "measure"], {}, ["host", "--out", "measure"]),
    "last socket wins": (["--socket", "a", "host", "--socket", "b"], {"socket": "b"}, ["host"]),
    "last timeout wins": (["--timeout=1", "host", "--timeout", "2.5"], {"timeout": 2.5}, ["host"]),
    "verbose after quiet": (["-q", "host", "-v"], {"quiet": False, "verbose": True}, ["host"]),
    "quiet after verbose": (["--verbose", "host", "--quiet"], {"quiet": True, "verbose": False}, ["host"]),
    "nothing after --": (["run", "--", "prog", "--json"], {"json": False}, ["run", "--", "prog", "--json"]),
    "certificates": (
        ["--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a", "--yes"],
        {"tls_cert": "c", "tls_key": "k", "tls_ca": "a", "yes": True},
        [],
    ),
    "empty values in place": (["host", "--append", ""], {}, ["host", "--append", ""]),
    "a lone dash": (["report", "show", "-"], {}, ["report", "show", "-"]),
}


@pytest.mark.parametrize("name", CASES)
def test_split(name: str) -> None:
    words, expected, rest = CASES[name]
    options, left = split(words)
    assert options.problem is None
    assert left == rest
    assert {key: getattr(options, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["host", "--socket"], "--socket: a value is missing"),
        (["--socket", "--json", "host"], "--socket: a value is missing"),
        (["--socket=", "host"], "--socket: the value is empty"),
        (["--timeout", "soon", "host"], "--timeout: expected seconds"),
        (["--timeout=0", "host"], "--timeout: expected seconds"),
        (["--timeout=-1", "host"], "--timeout: expected seconds"),
        (["--timeout=nan", "host"], "--timeout: expected seconds"),
        (["--timeout=inf", "host"], "--timeout: expected seconds"),
    ],
)
def test_problems_are_kept_for_later(words: list[str], message: str) -> None:
    options, _ = split([*words, "--json"])
    assert options.json
    assert options.problem is not None
    assert message in options.problem.message


def test_every_option_is_in_the_help() -> None:
    described = {word for names, _ in HELP for word in names.replace(",", "").split() if word.startswith("-")}
    assert described == set(FLAGS) | set(VALUES)


@given(
    st.lists(st.sampled_from(["host", "show", "--out", "x", "--json", "-q", "--socket", "s", "--timeout=3", "--", ""]))
)
def test_no_other_word_is_lost_or_moved(words: list[str]) -> None:
    options, rest = split(words)
    assert options.timeout in (5.0, 3.0)
    remaining = iter(words)
    assert all(word in remaining for word in rest)  # a subsequence
    before_dashes = words[: words.index("--")] if "--" in words else words
    for word in ("host", "show", "--out", ""):
        taken = sum(1 for a, b in pairwise(before_dashes) if a == "--socket" and b == word)
        assert words.count(word) - taken <= rest.count(word) <= words.count(word)
