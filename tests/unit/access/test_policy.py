"""Identities and roles: default deny, the highest role wins, sockets cap and floor."""

from __future__ import annotations

import os

import pytest

from sev.errors import UsageError
from sevd.access.identity import Caller
from sevd.access.peer import Peer
from sevd.access.policy import AccessPolicy, gid_of
from sevd.access.roles import Role

POLICY = AccessPolicy.build(
    {Role.VIEWER: ["1001"], Role.ADMIN: ["1002"]},
    {Role.VIEWER: ["50"], Role.LAUNCHER: ["51"], Role.ADMIN: ["52"]},
    own_uid=999,
)


@pytest.mark.parametrize(
    ("uid", "groups", "role"),
    [
        (0, (), Role.ADMIN),
        (999, (), Role.ADMIN),
        (1000, (), None),
        (1000, (49,), None),
        (1001, (), Role.VIEWER),
        (1002, (), Role.ADMIN),
        (1000, (50,), Role.VIEWER),
        (1000, (50, 51), Role.LAUNCHER),
        (1001, (51,), Role.LAUNCHER),
        (1000, (52, 50), Role.ADMIN),
    ],
)
def test_the_highest_role_wins(uid: int, groups: tuple[int, ...], role: Role | None) -> None:
    assert POLICY.role_of(uid, groups) == role


def test_the_primary_group_counts_too() -> None:
    caller = POLICY.caller(Peer(1000, 51, 1))
    assert caller is not None
    assert caller.role is Role.LAUNCHER


@pytest.mark.parametrize(
    ("uid", "floor", "ceiling", "role"),
    [
        (0, Role.VIEWER, Role.ADMIN, Role.ADMIN),
        (0, Role.VIEWER, Role.VIEWER, Role.VIEWER),
        (0, Role.ADMIN, Role.ADMIN, Role.ADMIN),
        (1001, Role.ADMIN, Role.ADMIN, None),
        (1001, Role.VIEWER, Role.VIEWER, Role.VIEWER),
        (1000, Role.VIEWER, Role.ADMIN, None),
    ],
)
def test_a_socket_admits_from_its_floor_and_grants_up_to_its_ceiling(
    uid: int, floor: Role, ceiling: Role, role: Role | None
) -> None:
    caller = POLICY.caller(Peer(uid, 1, 1), floor=floor, ceiling=ceiling)
    assert (caller.role if caller else None) == role


def test_root_and_the_daemon_s_own_user_cannot_be_lowered() -> None:
    policy = AccessPolicy.build({Role.VIEWER: ["0", "7"]}, {}, own_uid=7)
    assert policy.role_of(0, ()) is Role.ADMIN
    assert policy.role_of(7, ()) is Role.ADMIN


def test_the_default_knows_nobody_else() -> None:
    policy = AccessPolicy.build({}, {}, own_uid=0)
    assert policy.users == {0: Role.ADMIN}
    assert policy.groups == {}


def test_groups_and_users_that_do_not_exist() -> None:
    absent = "no-such-group-here"
    assert gid_of(absent) is None
    assert AccessPolicy.build({}, {Role.LAUNCHER: [absent]}, optional=frozenset({absent})).groups == {}
    with pytest.raises(UsageError, match="no group") as caught:
        AccessPolicy.build({}, {Role.LAUNCHER: [absent]})
    assert caught.value.field == "access.launcher_groups"
    with pytest.raises(UsageError, match="no user"):
        AccessPolicy.build({Role.ADMIN: ["no-such-user-here"]}, {})


def test_names_are_looked_up() -> None:
    assert gid_of("root") == 0
    assert AccessPolicy.build({Role.VIEWER: ["root"]}, {}, own_uid=os.geteuid()).role_of(0, ()) is Role.ADMIN


@pytest.mark.parametrize(
    ("text", "role"), [("viewer", Role.VIEWER), ("launcher", Role.LAUNCHER), ("admin", Role.ADMIN)]
)
def test_roles_by_name(text: str, role: Role) -> None:
    assert Role.parse(text) is role
    assert role.text == text


def test_a_word_that_is_no_role() -> None:
    with pytest.raises(ValueError, match="no role"):
        Role.parse("root")


def test_what_belongs_to_others_is_seen_by_admins_alone() -> None:
    launcher, admin = Caller.local(1, 1, 1, Role.LAUNCHER), Caller.local(2, 2, 2, Role.ADMIN)
    assert launcher.may_see("uid:1")
    assert not launcher.may_see("uid:2")
    assert admin.may_see("uid:1")
