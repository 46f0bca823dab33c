"""The three roles. Their numbers are those of `sev.v1.Role`; each role includes the ones before it."""

from __future__ import annotations

from enum import IntEnum


class Role(IntEnum):
    """What a caller may do, in ascending order."""

    VIEWER = 1
    """May read what this host is, and its own guests."""
    LAUNCHER = 2
    """May launch guests of its own."""
    ADMIN = 3
    """May change the platform and its endorsements, and sees everybody's guests."""

    @property
    def text(self) -> str:
        """The role in lower case, as configuration, audit records and errors spell it."""
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> Role:
        """The role of this name. Raises ValueError for any other word."""
        for role in cls:
            if role.text == text:
                return role
        raise ValueError(f"{text!r} is no role: expected viewer, launcher or admin")
