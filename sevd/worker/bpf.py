"""Seccomp filters as classic BPF, for x86-64 (seccomp(2); kernel include/uapi/linux/{filter,seccomp,audit}.h).

A filter here is an allow-list: system calls by number, some of them with a condition on one argument; everything else
answers EPERM. A program of another architecture is killed. Calls of the x32 form have other numbers and are refused.
"""

from __future__ import annotations

import errno
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

AUDIT_ARCH_X86_64 = 0xC000003E
RET_KILL_PROCESS = 0x80000000
RET_ERRNO = 0x00050000
RET_ALLOW = 0x7FFF0000

_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_BITS = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; an argument is 8 bytes, the low half first."""

LONGEST = 4096
"""Most instructions of a filter (BPF_MAXINSNS)."""

_INSTRUCTION = struct.Struct("<HBBI")


class Condition:
    """A condition on one argument's low 32 bits.

    Args:
        argument: 0 to 5.
        bits: Admitted if one of these bits is set; 0: not asked.
        equal: Admitted if the argument is one of these; none: not asked.
        types: Admitted if its second byte, the type of an ioctl, is one of these; none: not asked.
    """

    __slots__ = ("argument", "bits", "equal", "types")

    def __init__(
        self, argument: int, *, bits: int = 0, equal: tuple[int, ...] = (), types: tuple[int, ...] = ()
    ) -> None:
        self.argument = argument
        self.bits = bits
        self.equal = equal
        self.types = types


def allow_list(allowed: Iterable[int], conditions: Mapping[int, Condition], absent: Iterable[int] = ()) -> bytes:
    """The program (array of struct sock_filter) that admits these calls.

    Args:
        allowed: Numbers of calls admitted whatever their arguments.
        conditions: Calls admitted if their condition holds.
        absent: Calls that answer ENOSYS: as if the kernel did not have them, so that libraries use older ones.
    """
    out = [
        (_LOAD_WORD, 0, 0, _AT_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, RET_KILL_PROCESS),
        (_LOAD_WORD, 0, 0, _AT_NUMBER),
    ]
    for number in sorted(set(allowed) - set(conditions)):
        out += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, RET_ALLOW)]
    for number in sorted(set(absent)):
        out += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, RET_ERRNO | errno.ENOSYS)]
    for number, condition in sorted(conditions.items()):
        body = _body(condition)
        out += [(_JUMP_EQUAL, 0, len(body), number), *body]
    out.append((_RETURN, 0, 0, RET_ERRNO | errno.EPERM))
    assert len(out) <= LONGEST
    return b"".join(_INSTRUCTION.pack(*one) for one in out)


def _body(condition: Condition) -> list[tuple[int, int, int, int]]:
    """What follows when the call's number fits: it returns in any case."""
    out = [(_LOAD_WORD, 0, 0, _AT_ARGUMENTS + 8 * condition.argument)]
    if condition.bits:
        out += [(_JUMP_BITS, 0, 1, condition.bits), (_RETURN, 0, 0, RET_ALLOW)]
    for value in condition.equal:
        out += [(_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, RET_ALLOW)]
    if condition.types:
        out.append((_AND, 0, 0, 0xFF00))
        for kind in condition.types:
            out += [(_JUMP_EQUAL, 0, 1, kind << 8), (_RETURN, 0, 0, RET_ALLOW)]
    out.append((_RETURN, 0, 0, RET_ERRNO | errno.EPERM))
    return out
