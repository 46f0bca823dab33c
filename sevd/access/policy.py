"""Which identity has which role and which limits: one table, default deny.

Without a configuration root is admin, the daemon's own user is admin where the daemon does not run as root, members of
the group `sev` are launchers, others are nothing. Root and the daemon's own user stay admin whatever is configured.

Of the `[[identity]]` tables that match a local caller, the most specific decides, and alone:

1. `unit:`: the systemd unit that the process is in. A unit is narrower than a user (a user may run several, and a unit
   with DynamicUser= has no user that a table could name), so what is said of the unit goes before what is said of its
   user;
2. `user:`, `uid:`;
3. `group:`, `gid:`, where several may match: one that says "none" decides; else the highest role, of equals the one
   that stands first.

`access.*_users` is as specific as 2 and `access.*_groups` as 3. A user of `access.*_users` without a `user:` or `uid:`
table has the highest role that those lists and its groups give, and no group takes it away.

Of the names in a remote caller's certificate, one whose table says "none" decides; else the first that a table has.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable, Mapping, Sequence

from sev.errors import UsageError
from sev.records import field, record
from sevd.access.identities import Identity
from sevd.access.identity import Caller
from sevd.access.limits import NO_LIMITS_OF_ITS_OWN, IdentityLimits
from sevd.access.peer import Peer
from sevd.access.roles import Role


@record
class Grant:
    """What a local caller gets.

    Attributes:
        role: Its role; None: nothing.
        limits: Limits of its own.
        owner: The identity that it acts as; empty: its user.
    """

    role: Role | None
    limits: IdentityLimits = NO_LIMITS_OF_ITS_OWN
    owner: str = ""


@record
class AccessPolicy:
    """Who may do what.

    Attributes:
        users: Role by uid, of `access.*_users`, root and the daemon's own user.
        groups: Role by gid, of `access.*_groups`.
        units: Tables by name of the unit.
        uids: Tables by uid.
        gids: Tables by gid.
        names: Tables by "uri:…" and "dns:…".
        always: Uids that are always admin.
    """

    users: Mapping[int, Role] = field(default_factory=dict)
    groups: Mapping[int, Role] = field(default_factory=dict)
    units: Mapping[str, Identity] = field(default_factory=dict)
    uids: Mapping[int, Identity] = field(default_factory=dict)
    gids: Mapping[int, Identity] = field(default_factory=dict)
    names: Mapping[str, Identity] = field(default_factory=dict)
    always: frozenset[int] = frozenset()

    @classmethod
    def build(
        cls,
        users: Mapping[Role, Iterable[str]],
        groups: Mapping[Role, Iterable[str]],
        *,
        identities: Iterable[Identity] = (),
        own_uid: int | None = None,
        optional: frozenset[str] = frozenset(),
    ) -> AccessPolicy:
        """The policy of a configuration: names or numbers by role; root and the daemon's own user are always admin.

        Args:
            users: User names or uids by role.
            groups: Group names or gids by role.
            identities: The `[[identity]]` tables, in the order of the file.
            own_uid: The daemon's uid; None: the effective one.
            optional: Group names that may be missing on this host.

        Raises:
            UsageError: A user or group does not exist here, two tables mean the same one, or a table takes root's role
                away.
        """
        by_uid: dict[int, Role] = {}
        by_gid: dict[int, Role] = {}
        for role in Role:  # ascending: the highest role wins
            for name in users.get(role, ()):
                by_uid[_uid(name, "access")] = role
            for name in groups.get(role, ()):
                gid = gid_of(name)
                if gid is not None:
                    by_gid[gid] = role
                elif name not in optional:
                    raise _no_group(name, f"access.{role.text}_groups")
        own = os.geteuid() if own_uid is None else own_uid
        always = frozenset({0, own})
        by_uid.update(dict.fromkeys(always, Role.ADMIN))
        units: dict[str, Identity] = {}
        uids: dict[int, Identity] = {}
        gids: dict[int, Identity] = {}
        names: dict[str, Identity] = {}
        for one in identities:
            where = f"{one.where}.match"
            if one.kind in ("user", "uid"):
                uid = _uid(one.name, where)
                if uid in always and one.role is not Role.ADMIN:
                    raise UsageError(
                        f"{one.where}.role: {one.match} is always admin here: it can act as the daemon itself",
                        field=f"{one.where}.role",
                        remedy='Write role = "admin"; its limits can be changed.',
                    )
                _put(uids, uid, one)
            elif one.kind in ("group", "gid"):
                gid = gid_of(one.name)
                if gid is None:
                    raise _no_group(one.name, where)
                _put(gids, gid, one)
            elif one.kind == "unit":
                _put(units, one.name, one)
            else:
                _put(names, one.match, one)
        return cls(by_uid, by_gid, units, uids, gids, names, always)

    def grant(self, uid: int, groups: Iterable[int], unit: str = "") -> Grant:
        """What a user in these groups gets, calling from this unit of the system's service manager."""
        if uid in self.always:
            table = self.uids.get(uid)
            return Grant(Role.ADMIN, table.limits if table else NO_LIMITS_OF_ITS_OWN)
        if unit and unit in self.units:
            table = self.units[unit]
            return Grant(table.role, table.limits, table.match)
        if uid in self.uids:
            return Grant(self.uids[uid].role, self.uids[uid].limits)
        groups = frozenset(groups)
        # In the order of the file: of equal roles the first decides.
        tables = [table for gid, table in self.gids.items() if gid in groups]
        given = [(table.role, table.limits) for table in tables if table.role is not None]
        own = self.users.get(uid)
        if own is None and len(given) < len(tables):
            return Grant(None)
        role, limits = max(given, key=lambda one: one[0], default=(None, NO_LIMITS_OF_ITS_OWN))
        roles = [self.groups[gid] for gid in groups if gid in self.groups]
        roles.extend(one for one in (own, role) if one is not None)
        return Grant(max(roles, default=None), limits)

    def role_of(self, uid: int, groups: Iterable[int], unit: str = "") -> Role | None:
        """The role of a user in these groups and this unit; None if it has none."""
        return self.grant(uid, groups, unit).role

    def caller(self, peer: Peer, *, floor: Role = Role.VIEWER, ceiling: Role = Role.ADMIN) -> Caller | None:
        """The caller that a peer is on a socket that admits from `floor` on and grants at most `ceiling`."""
        unit = peer.unit() if self.units else ""
        grant = self.grant(peer.uid, (peer.gid, *peer.groups), unit)
        if grant.role is None or grant.role < floor:
            return None
        role = min(grant.role, ceiling)
        return Caller.local(peer.uid, peer.gid, peer.pid, role, peer.groups, owner=grant.owner, limits=grant.limits)

    def remote_caller(
        self, names: Sequence[str], *, floor: Role = Role.VIEWER, ceiling: Role = Role.ADMIN
    ) -> Caller | None:
        """The caller whose verified certificate has these names, in its order; None: it may not call.

        Args:
            names: "uri:…" and "dns:…" from the subject alternative names. DNS names are compared without case.
            floor: The least role that is admitted.
            ceiling: The highest role that is granted.
        """
        spelt = (name.lower().removesuffix(".") if name.startswith("dns:") else name for name in names)
        tables = [self.names[name] for name in spelt if name in self.names]
        if not tables or any(table.role is None for table in tables):
            return None
        first = tables[0]
        assert first.role is not None
        if first.role < floor:
            return None
        return Caller.remote(first.match, min(first.role, ceiling), limits=first.limits)

    @property
    def admits_remote(self) -> bool:
        """Whether any remote caller may have a role: without one there is nothing to listen for."""
        return any(table.role is not None for table in self.names.values())


def gid_of(name: str) -> int | None:
    """The gid of a group by name or number; None if there is no such group."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None


def _put(tables: dict[int, Identity] | dict[str, Identity], key: int | str, one: Identity) -> None:
    known: dict[int | str, Identity] = tables  # type: ignore[assignment]
    if key in known:
        other = known[key]
        raise UsageError(
            f"{one.where}.match: {one.match} and {other.match} ({other.where}) are the same identity",
            field=f"{one.where}.match",
        )
    known[key] = one


def _no_group(name: str, where: str) -> UsageError:
    return UsageError(
        f"{where}: this host has no group {name!r}",
        field=where,
        remedy=f"Create it (groupadd --system {name}) or take it out of the configuration.",
    )


def _uid(name: str, where: str) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise UsageError(f"{where}: this host has no user {name!r}", field=where) from None
