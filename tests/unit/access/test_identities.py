"""`[[identity]]` tables: what they may say, and how a mistake is named."""

from __future__ import annotations

import contextlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.errors import UsageError
from sevd import config
from sevd.access.identities import IDENTITIES, LIMITS, parse
from sevd.access.limits import IdentityLimits
from sevd.access.roles import Role


def read(text: str) -> config.Settings:
    return config.parse(text.encode(), "test.toml")


WHOLE = """
[[identity]]
match = "unit:orchestrator.service"
role = "launcher"
connections = 3
calls = 4
guests = 0
guest_memory = 4096
watches = 5
launches_per_minute = 6
bytes_in_flight = 65536

[[identity]]
match = "dns:Host.Example.ORG."
role = "none"
"""


def test_a_whole_table_is_read() -> None:
    first, second = read(WHOLE).identities
    assert (first.match, first.role) == ("unit:orchestrator.service", Role.LAUNCHER)
    assert first.limits == IdentityLimits(3, 4, 0, 4096, 5, 6, 65536)
    assert (second.match, second.role, second.limits) == ("dns:host.example.org", None, IdentityLimits())
    assert (first.where, second.where) == ("identity[1]", "identity[2]")


def test_none_are_the_default() -> None:
    assert read("").identities == ()


def test_what_is_shown_can_be_read_again() -> None:
    settings = read(WHOLE + '[[identity]]\nmatch = "unit:a\\\\x2db.service"\nrole = "admin"')
    shown = "identity = [" + ", ".join(one.table() for one in settings.identities) + "]"
    assert parse(tomllib.loads(shown)["identity"], "shown") == settings.identities


@pytest.mark.parametrize(
    "match",
    [
        "user:alice", "uid:0", "uid:4294967294", "group:sev", "gid:12", "unit:a.service", "unit:a@b.service",
        "unit:run-r1.scope", "uri:spiffe://example.org/ns/x/sa/y", "uri:urn:uuid:6e8bc430", "dns:host", "dns:a.b-c.d",
    ],
)  # fmt: skip
def test_matches(match: str) -> None:
    (one,) = parse([{"match": match, "role": "viewer"}], "x")
    assert one.match == match


@pytest.mark.parametrize(
    "match",
    [
        "", "alice", "user:", "user:a\nb", "uid:-1", "uid:x", "uid:4294967295", "uid:99999999999", "gid:", "unit:a",
        "unit:.service", "unit:a/b.service", "unit:a.slice", "uri:", "uri:no-scheme", "uri:a: b", 'uri:a:"', "dns:",
        "dns:a..b", "dns:*.example.org", "dns:a b", "dns:" + "a." * 127 + "a", "pid:1", "uri:a:" + "b" * 2047, "Uid:1",
    ],
)  # fmt: skip
def test_matches_that_match_nobody(match: str) -> None:
    with pytest.raises(UsageError, match="matches nobody") as caught:
        parse([{"match": match, "role": "viewer"}], "test.toml")
    assert caught.value.field == "identity[1].match"
    assert "unit:NAME.service" in caught.value.remedy


GOOD = 'match = "uid:1"\nrole = "viewer"\n'


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        pytest.param("identity = 5", "identity", "array of tables", id="number"),
        pytest.param("[identity]\n" + GOOD, "identity", "array of tables", id="one table"),
        pytest.param("identity = [1]", "identity[1]", "expected a table", id="number in the array"),
        pytest.param('[[identity]]\nrole = "viewer"', "identity[1].match", "missing", id="no match"),
        pytest.param('[[identity]]\nmatch = 5\nrole = "viewer"', "identity[1].match", "expected a text", id="a number"),
        pytest.param('[[identity]]\nmatch = "uid:1"', "identity[1].role", "missing", id="no role"),
        pytest.param('[[identity]]\nmatch = "uid:1"\nrole = "root"', "identity[1].role", "expected", id="no such role"),
        pytest.param('[[identity]]\nmatch = "uid:1"\nrole = 3', "identity[1].role", "expected", id="number for a role"),
        pytest.param(f"[[identity]]\n{GOOD}guest = 1", "identity[1].guest", "no setting", id="misspelt limit"),
        pytest.param(f"[[identity]]\n{GOOD}guests = -1", "identity[1].guests", "from 0 to", id="negative"),
        pytest.param(f"[[identity]]\n{GOOD}guests = true", "identity[1].guests", "whole number", id="bool"),
        pytest.param(f'[[identity]]\n{GOOD}guests = "1"', "identity[1].guests", "whole number", id="text"),
        pytest.param(f"[[identity]]\n{GOOD}connections = 0", "identity[1].connections", "from 1 to", id="too small"),
        pytest.param(
            f"[[identity]]\n{GOOD}[[identity]]\n{GOOD}", "identity[2].match", "identity.1. already", id="twice"
        ),
    ],
)
def test_mistakes_are_named(text: str, field: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        read(text)
    assert caught.value.field == field
    assert "test.toml" in caught.value.message


def test_there_may_be_many_and_not_any_number() -> None:
    entries: list[object] = [{"match": f"uid:{number}", "role": "viewer"} for number in range(IDENTITIES + 1)]
    assert len(parse(entries[1:], "x")) == IDENTITIES
    with pytest.raises(UsageError, match="at most"):
        parse(entries, "x")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["match", "role", "x", *LIMITS]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(ANY)
def test_anything_is_read_or_refused(value: object) -> None:
    with contextlib.suppress(UsageError):
        parse(value, "x")


def test_a_reload_applies_them() -> None:
    assert config.changed(read(""), read(WHOLE)) == (["identity"], [])
