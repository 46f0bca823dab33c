"""Which identity has which role: one table, default deny.

The default: root is admin, the daemon's own user is admin where the daemon does not run as root, the group `sev` is
launcher, others are nothing. A caller has the highest role that its user or any of its groups has.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable, Mapping

from sev.errors import UsageError
from sev.records import field, record
from sevd.access.identity import Caller
from sevd.access.peer import Peer
from sevd.access.roles import Role


@record
class AccessPolicy:
    """Roles by uid and by gid.

    Attributes:
        users: Role by uid.
        groups: Role by gid, primary and supplementary alike.
    """

    users: Mapping[int, Role] = field(default_factory=dict)
    groups: Mapping[int, Role] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        users: Mapping[Role, Iterable[str]],
        groups: Mapping[Role, Iterable[str]],
        *,
        own_uid: int | None = None,
        optional: frozenset[str] = frozenset(),
    ) -> AccessPolicy:
        """The policy of a configuration: names or numbers by role; root and the daemon's own user are always admin.

        Args:
            users: User names or uids by role.
            groups: Group names or gids by role.
            own_uid: The daemon's uid; None: the effective one.
            optional: Group names that may be missing on this host.

        Raises:
            UsageError: A user or group does not exist here.
        """
        by_uid: dict[int, Role] = {}
        by_gid: dict[int, Role] = {}
        for role in Role:  # ascending: the highest role wins
            for name in users.get(role, ()):
                by_uid[_uid(name)] = role
            for name in groups.get(role, ()):
                gid = gid_of(name)
                if gid is not None:
                    by_gid[gid] = role
                elif name not in optional:
                    raise UsageError(
                        f"access.{role.text}_groups: this host has no group {name!r}",
                        field=f"access.{role.text}_groups",
                        remedy=f"Create it (groupadd --system {name}) or take it out of the configuration.",
                    )
        by_uid[0] = Role.ADMIN
        by_uid[os.geteuid() if own_uid is None else own_uid] = Role.ADMIN
        return cls(by_uid, by_gid)

    def role_of(self, uid: int, groups: Iterable[int]) -> Role | None:
        """The highest role of a user in these groups; None if it has none."""
        roles = [self.groups[gid] for gid in groups if gid in self.groups]
        if uid in self.users:
            roles.append(self.users[uid])
        return max(roles, default=None)

    def caller(self, peer: Peer, *, floor: Role = Role.VIEWER, ceiling: Role = Role.ADMIN) -> Caller | None:
        """The caller that a peer is on a socket that admits from `floor` on and grants at most `ceiling`."""
        role = self.role_of(peer.uid, (peer.gid, *peer.groups))
        if role is None or role < floor:
            return None
        return Caller.local(peer.uid, peer.gid, peer.pid, min(role, ceiling), peer.groups)


def gid_of(name: str) -> int | None:
    """The gid of a group by name or number; None if there is no such group."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None


def _uid(name: str) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise UsageError(f"access: this host has no user {name!r}", field="access") from None
