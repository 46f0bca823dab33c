"""Which of several identities decides: the most specific, and "none" is an answer."""

from __future__ import annotations

import pytest

from sev.errors import UsageError
from sevd.access.identities import parse
from sevd.access.limits import IdentityLimits
from sevd.access.peer import Peer, unit_of
from sevd.access.policy import AccessPolicy
from sevd.access.roles import Role


def policy(*tables: tuple[str, str] | tuple[str, str, int], **lists: str) -> AccessPolicy:
    """Tables as (match, role[, guests]); lists as users_admin="1 2"."""
    entries = [{"match": match, "role": role, **({"guests": rest[0]} if rest else {})} for match, role, *rest in tables]
    users = {role: lists.get(f"users_{role.text}", "").split() for role in Role}
    groups = {role: lists.get(f"groups_{role.text}", "").split() for role in Role}
    return AccessPolicy.build(users, groups, identities=parse(entries, "test"), own_uid=999)


UNIT = ("unit:a.service", "launcher", 7)
USER = ("uid:1000", "viewer", 5)
GROUP = ("gid:50", "admin", 3)


@pytest.mark.parametrize(
    ("tables", "groups", "unit", "role", "guests"),
    [
        pytest.param([UNIT, USER, GROUP], (50,), "a.service", Role.LAUNCHER, 7, id="the unit before the user"),
        pytest.param([UNIT, USER, GROUP], (50,), "b.service", Role.VIEWER, 5, id="the user before the group"),
        pytest.param([UNIT, USER, GROUP], (50,), "", Role.VIEWER, 5, id="no unit can be told"),
        pytest.param([UNIT, GROUP], (50,), "", Role.ADMIN, 3, id="the group"),
        pytest.param([UNIT, GROUP], (51,), "", None, None, id="nobody"),
        pytest.param([("uid:1000", "none"), GROUP], (50,), "", None, None, id="a user's none before a group"),
        pytest.param([("unit:a.service", "none"), USER], (), "a.service", None, None, id="a unit's none before a user"),
        pytest.param([("gid:51", "none"), GROUP], (50, 51), "", None, None, id="none among groups"),
        pytest.param([("gid:51", "launcher", 9), GROUP], (50, 51), "", Role.ADMIN, 3, id="the highest among groups"),
        pytest.param([("gid:51", "admin", 9), GROUP], (50, 51), "", Role.ADMIN, 9, id="the first of equals"),
    ],
)
def test_the_most_specific_decides(
    tables: list[tuple[str, str, int]], groups: tuple[int, ...], unit: str, role: Role | None, guests: int | None
) -> None:
    grant = policy(*tables).grant(1000, groups, unit)
    assert (grant.role, grant.limits.guests if grant.role else None) == (role, guests)


def test_tables_go_before_lists_of_the_same_specificity() -> None:
    assert policy(("uid:1000", "viewer"), users_admin="1000").role_of(1000, ()) is Role.VIEWER
    assert policy(("uid:1000", "none"), users_admin="1000", groups_admin="50").role_of(1000, (50,)) is None
    assert policy(("gid:51", "none"), groups_admin="50").role_of(1000, (50, 51)) is None


def test_a_user_of_a_list_keeps_what_no_table_of_users_takes_away() -> None:
    made = policy(("gid:51", "none"), ("gid:52", "admin"), users_launcher="1000")
    assert made.role_of(1000, (51,)) is Role.LAUNCHER
    assert made.role_of(1000, (51, 52)) is Role.ADMIN


def test_root_and_the_daemon_s_user_are_admin_in_any_unit() -> None:
    made = policy(("unit:a.service", "none"), ("uid:0", "admin", 4), ("gid:0", "none"))
    assert made.grant(0, (0,), "a.service").role is Role.ADMIN
    assert made.grant(0, (0,), "a.service").limits.guests == 4
    assert made.role_of(999, (0,), "a.service") is Role.ADMIN


@pytest.mark.parametrize("match", ["uid:0", "user:root", "uid:999"])
def test_their_role_cannot_be_taken_away(match: str) -> None:
    with pytest.raises(UsageError, match="always admin") as caught:
        policy((match, "viewer"))
    assert caught.value.field == "identity[1].role"


def test_the_same_one_twice_under_two_names() -> None:
    with pytest.raises(UsageError, match="same identity") as caught:
        policy(("uid:0", "admin"), ("user:root", "admin"))
    assert caught.value.field == "identity[2].match"


@pytest.mark.parametrize(("match", "says"), [("user:no-such-one", "no user"), ("group:no-such-one", "no group")])
def test_who_does_not_exist(match: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        policy((match, "viewer"))
    assert caught.value.field == "identity[1].match"


def test_what_belongs_to_whom() -> None:
    made = policy(UNIT, USER)
    in_unit = made.caller(Peer(1000, 1, 7, (), None, "a.service"))
    outside = made.caller(Peer(1000, 1, 7))
    assert in_unit is not None
    assert outside is not None
    assert (in_unit.owner, in_unit.uid, in_unit.limits) == ("unit:a.service", 1000, IdentityLimits(guests=7))
    assert in_unit.text == "unit:a.service uid:1000 gid:1 pid:7 role:launcher"
    assert (outside.owner, outside.limits.guests) == ("uid:1000", 5)
    assert not outside.may_see(in_unit.owner)


A, B = "uri:spiffe://example.org/a", "dns:b.example.org"


@pytest.mark.parametrize(
    ("names", "owner"),
    [
        pytest.param([A], A, id="a URI"),
        pytest.param(["dns:B.example.org."], B, id="a DNS name in any case"),
        pytest.param(["uri:x:y", B, A], B, id="the first that is known"),
        pytest.param([A, "uri:x:none"], "", id="none among the names"),
        pytest.param(["uri:spiffe://EXAMPLE.org/a"], "", id="a URI in another case"),
        pytest.param(["uid:1000", "dns:x"], "", id="names that are not a certificate's"),
        pytest.param([], "", id="no name"),
    ],
)
def test_remote_callers(names: list[str], owner: str) -> None:
    made = policy((A, "launcher", 2), (B, "admin"), ("uri:x:none", "none"), ("uid:1000", "admin"))
    caller = made.remote_caller(names)
    assert (caller.owner if caller else "") == owner
    if caller:
        assert (caller.uid, caller.gid, caller.pid, caller.groups) == (None, None, None, ())


def test_remote_callers_have_floors_and_ceilings_too() -> None:
    made = policy((A, "launcher", 2), (B, "admin"))
    assert made.remote_caller([A], floor=Role.ADMIN) is None
    capped = made.remote_caller([B], ceiling=Role.LAUNCHER)
    assert capped is not None
    assert capped.role is Role.LAUNCHER
    assert made.admits_remote
    assert not policy(("uid:1", "admin"), (A, "none")).admits_remote


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/a.service", "a.service"),
        ("/system.slice/system-a.slice/a@b.service", "a@b.service"),
        ("/a.service", "a.service"),
        ("/machine.slice/machine-x.scope/a.service", "machine-x.scope"),
        ("/user.slice/user-7.slice/user@7.service/app.slice/a.service", "user@7.service"),
        ("/user.slice/user-7.slice/session-2.scope", "session-2.scope"),
        ("/system.slice/b.service/system.slice/a.service", "b.service"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/kubepods/pod1/a.service", ""),
        ("/../system.slice/a.service", ""),
        ("/../../a.service", ""),
        ("/init.scope", "init.scope"),
        ("/system.slice", ""),
        ("/", ""),
        ("", ""),
        ("a.service", ""),
    ],
)
def test_a_unit_is_the_service_manager_s(path: str, unit: str) -> None:
    assert unit_of(path) == unit
