"""Who is at the other end of a connection, as the kernel tells it.

A `Caller` is made once per connection, from SO_PEERCRED and its relatives (see `sevd.access.peer`), and never from
anything that the caller says about itself.
"""

from __future__ import annotations

from sev.records import record
from sevd.access.roles import Role


@record
class Caller:
    """An identity with the role that the policy gives it.

    Attributes:
        owner: The identity that guests belong to, such as "uid:1000": stable over connections and processes.
        uid: User id of the process that called connect(2).
        gid: Its primary group id.
        groups: Its supplementary group ids.
        pid: Its process id as sevd sees it. For logs only: a number may be reused.
        role: What the caller may do here.
        text: One line for logs and audit records.
    """

    owner: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    pid: int
    role: Role
    text: str

    @classmethod
    def local(cls, uid: int, gid: int, pid: int, role: Role, groups: tuple[int, ...] = ()) -> Caller:
        """The caller on a Unix socket with these kernel-told credentials."""
        text = f"uid:{uid} gid:{gid} pid:{pid} role:{role.text}"
        return cls(owner=f"uid:{uid}", uid=uid, gid=gid, groups=groups, pid=pid, role=role, text=text)

    def may_see(self, owner: str) -> bool:
        """Whether what belongs to this owner exists for this caller: its own things, and for an admin everything."""
        return self.role >= Role.ADMIN or self.owner == owner
