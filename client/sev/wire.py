"""Small values between messages and plain Python: TCBs, enum words, times; and the checks before a request is built.

protobuf answers a number that does not fit or a text that is no Unicode with exceptions of its own; the checks here
say it as errors of the project, with the field's name.
"""

from __future__ import annotations

from sev.errors import UsageError
from sev.products import MILAN, TURIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

    from sev.abi.tcb import TcbVersion
    from sev.v1 import types_pb2


def tcb(message: types_pb2.TcbVersion) -> TcbVersion:
    """The TCB version in a message. Which bytes are which is told by the components that are present."""
    from sev.abi.tcb import TcbVersion

    return TcbVersion.from_int(message.raw, TURIN if message.HasField("fmc") else MILAN)


def word(enum: object, prefix: str, value: int) -> str:
    """An enum value as a lower-case word; "unknown" for zero and for values of a newer daemon."""
    try:
        name: str = enum.Name(value)  # type: ignore[attr-defined]
    except ValueError:
        return "unknown"
    text = name.removeprefix(prefix).lower()
    return "unknown" if text == "unspecified" else text


def time(message: Timestamp) -> datetime | None:
    """A time in UTC; None if it is outside of what dates can say."""
    from datetime import UTC

    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def rfc3339(moment: datetime | None) -> str | None:
    """A time as JSON has it: UTC with milliseconds and Z."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z") if moment else None


def fits(name: str, value: int, bits: int) -> int:
    """The value, if it is an unsigned number of so many bits.

    Raises:
        UsageError: It is not.
    """
    if not 0 <= value < 1 << bits:
        raise UsageError(f"{name} is {value:#x}, expected a number of {bits} bits", field=name)
    return value


def text(name: str, value: str) -> str:
    """The value, if it can be sent as UTF-8.

    Raises:
        UsageError: It holds bytes that are no text (as the command line of a process may).
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} {value!a} is not valid text", field=name) from None
    return value
