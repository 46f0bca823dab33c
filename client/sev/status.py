"""Firmware status codes: name, meaning, likely causes, remedy.

The numbers are those the AMD secure processor answers with, as a 16-bit status in the mailbox and in the `error` field
of /dev/sev and KVM ioctls (include/uapi/linux/psp-sev.h, SEV_RET_*; AMD 55766, 56860 and 58271 for SEV-TIO).
0xFFFFFFFF is Linux's own mark for "the firmware was not asked". This module loads nothing else: the command line
prints statuses without paying for it.
"""

from __future__ import annotations

from sev import status_table, status_tio


class Status:
    """One status code.

    Attributes:
        code: The number.
        name: The firmware's name for it, such as "POLICY_FAILURE".
        meaning: What the firmware says with it, one sentence.
        causes: What usually leads to it, most likely first; empty for success.
        remedy: What to do about it.
    """

    __slots__ = ("causes", "code", "meaning", "name", "remedy")

    def __init__(self, code: int, name: str, meaning: str, causes: tuple[str, ...], remedy: str) -> None:
        self.code = code
        self.name = name
        self.meaning = meaning
        self.causes = causes
        self.remedy = remedy

    def __repr__(self) -> str:
        return f"<Status 0x{self.code:02x} {self.name}>"


SUCCESS = 0x00
INVALID_PLATFORM_STATE = 0x01
INVALID_GUEST_STATE = 0x02
INVALID_CONFIG = 0x03
INVALID_LENGTH = 0x04
ALREADY_OWNED = 0x05
INVALID_CERTIFICATE = 0x06
POLICY_FAILURE = 0x07
INACTIVE = 0x08
INVALID_ADDRESS = 0x09
BAD_SIGNATURE = 0x0A
BAD_MEASUREMENT = 0x0B
ASID_OWNED = 0x0C
INVALID_ASID = 0x0D
WBINVD_REQUIRED = 0x0E
DF_FLUSH_REQUIRED = 0x0F
INVALID_GUEST = 0x10
INVALID_COMMAND = 0x11
ACTIVE = 0x12
HWERROR_PLATFORM = 0x13
HWERROR_UNSAFE = 0x14
UNSUPPORTED = 0x15
INVALID_PARAM = 0x16
RESOURCE_LIMIT = 0x17
SECURE_DATA_INVALID = 0x18
INVALID_PAGE_SIZE = 0x19
INVALID_PAGE_STATE = 0x1A
INVALID_MDATA_ENTRY = 0x1B
INVALID_PAGE_OWNER = 0x1C
AEAD_OFLOW = 0x1D
EXIT_RING_BUFFER = 0x1F
RMP_INIT_REQUIRED = 0x20
BAD_SVN = 0x21
BAD_VERSION = 0x22
SHUTDOWN_REQUIRED = 0x23
UPDATE_FAILED = 0x24
RESTORE_REQUIRED = 0x25
RMP_INITIALIZATION_FAILED = 0x26
INVALID_KEY = 0x27
SHUTDOWN_INCOMPLETE = 0x28
INCORRECT_BUFFER_LENGTH = 0x30
EXPAND_BUFFER_LENGTH_REQUEST = 0x31
SPDM_REQUEST = 0x32
SPDM_ERROR = 0x33
ERR_IN_DEV_CONN = 0x35
INVALID_DEV_CTX = 0x36
INVALID_TDI_CTX = 0x37
INVALID_TDI = 0x38
RECLAIM_REQUIRED = 0x39
IN_USE = 0x3A
INVALID_DEV_STATE = 0x3B
INVALID_TDI_STATE = 0x3C
DEV_CERT_CHANGED = 0x3D
RESYNC_REQ = 0x3E
RESPONSE_TOO_LARGE = 0x3F
NO_FW_CALL = 0xFFFFFFFF

ALL = tuple(Status(*row) for row in sorted(status_table.ROWS + status_tio.ROWS))
"""Every assigned status, ascending."""

_BY_CODE = {entry.code: entry for entry in ALL}
_ALIASES = {
    "INVALID_LEN": INVALID_LENGTH,
    "INAVLID_CONFIG": INVALID_CONFIG,
    "DFFLUSH_REQUIRED": DF_FLUSH_REQUIRED,
    "HWSEV_RET_PLATFORM": HWERROR_PLATFORM,
    "HWSEV_RET_UNSAFE": HWERROR_UNSAFE,
}  # spellings of the kernel's header


def lookup(code: int) -> Status:
    """The status with this number (negative numbers as 32-bit two's complement); a stand-in if it is unassigned."""
    code &= 0xFFFFFFFF
    found = _BY_CODE.get(code)
    if found is not None:
        return found
    return Status(
        code,
        f"UNKNOWN_0x{code:02X}",
        "This number has no published meaning.",
        ("the firmware is newer than this program",),
        "Look for a newer version of this program, and at the firmware's release notes.",
    )


def name(code: int) -> str:
    """The name of a status; "UNKNOWN_0x1E" for an unassigned number."""
    return lookup(code).name


def find(text: str) -> Status:
    """A status by name or number: "POLICY_FAILURE", "policy-failure", "SEV_RET_POLICY_FAILURE", "7", "0x7", "-1".

    Raises:
        sev.errors.UsageError: It is neither a number from -1 to 0xFFFFFFFF nor a name of a status.
    """
    word = text.strip().upper().replace("-", "_") if not text.strip().startswith("-") else text.strip()
    try:
        code = int(word, 0)
    except ValueError:
        code = None
    if code is not None and -1 <= code <= 0xFFFFFFFF:
        return lookup(code)
    for prefix in ("SEV_RET_", "SEV_STATUS_"):
        word = word.removeprefix(prefix)
    word = word.removeprefix("SEV_STATUS_")
    code = _ALIASES.get(word)
    for entry in ALL:
        if entry.name == word or entry.code == code:
            return entry
    if word.startswith("UNKNOWN_0X"):
        try:
            code = int(word.removeprefix("UNKNOWN_"), 16)
        except ValueError:
            code = None
        if code is not None and 0 <= code <= 0xFFFFFFFF:
            return lookup(code)
    from sev.errors import UsageError

    raise UsageError(
        f"{text!r} is no firmware status: expected a name such as POLICY_FAILURE or a number such as 0x07",
        remedy="sev explain lists all of them." if not word else "",
        field="status",
    )
