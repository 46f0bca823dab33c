"""Who is at the other end of a connection, as the kernel or a verified certificate tells it.

A `Caller` is made once per connection, from SO_PEERCRED and its relatives (see `sevd.access.peer`) or from the names in
the certificate of a TLS handshake, and never from anything that the caller says about itself.
"""

from __future__ import annotations

from sev.records import record
from sevd.access.limits import NO_LIMITS_OF_ITS_OWN, IdentityLimits
from sevd.access.roles import Role


@record
class Caller:
    """An identity with the role that the policy gives it.

    Attributes:
        owner: The identity that guests belong to: "uid:1000" for a user of this host, "unit:NAME" for a systemd unit
            that the configuration names, "uri:…" or "dns:…" for a remote caller. Stable over connections and processes.
        role: What the caller may do here.
        text: One line for logs and audit records.
        uid: User id of the process that called connect(2); None for a remote caller, as the three below.
        gid: Its primary group id.
        groups: Its supplementary group ids.
        pid: Its process id as sevd sees it. For logs only: a number may be reused.
        limits: Limits of its own.
    """

    owner: str
    role: Role
    text: str
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    pid: int | None = None
    limits: IdentityLimits = NO_LIMITS_OF_ITS_OWN

    @classmethod
    def local(
        cls,
        uid: int,
        gid: int,
        pid: int,
        role: Role,
        groups: tuple[int, ...] = (),
        *,
        owner: str = "",
        limits: IdentityLimits = NO_LIMITS_OF_ITS_OWN,
    ) -> Caller:
        """The caller on a Unix socket with these kernel-told credentials; `owner` if it is not known by its uid."""
        text = f"{owner + ' ' if owner else ''}uid:{uid} gid:{gid} pid:{pid} role:{role.text}"
        return cls(owner or f"uid:{uid}", role, text, uid, gid, groups, pid, limits)

    @classmethod
    def remote(cls, name: str, role: Role, *, limits: IdentityLimits = NO_LIMITS_OF_ITS_OWN) -> Caller:
        """The caller whose certificate has this name ("uri:…" or "dns:…")."""
        return cls(name, role, f"{name} role:{role.text}", limits=limits)

    def may_see(self, owner: str) -> bool:
        """Whether what belongs to this owner exists for this caller: its own things, and for an admin everything."""
        return self.role >= Role.ADMIN or self.owner == owner

    def limit(self, own: int | None, common: int) -> int | None:
        """The limit that holds for it: one of its own, else everybody's; None: none, for an administrator."""
        if own is not None:
            return own
        return None if self.role >= Role.ADMIN else common


DAEMON = Caller("daemon", Role.ADMIN, "daemon")
"""The daemon itself, in records of what it does unasked. Nobody can connect as it: no policy knows the name."""
