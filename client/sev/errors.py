"""Errors of the library, the daemon and the command.

    SevError                      something failed; never raised itself
    ├── InternalError             a bug of ours                                                exit  1
    ├── UsageError                the caller asked wrongly: option, value, file                exit  2
    │   └── ConfirmationMissing   an irreversible command was not confirmed
    ├── VerificationError         the evidence is not genuine                                  exit  3
    │                             (one class per failure: sev.attestation.errors)
    ├── AppraisalError            genuine, but not what was asked for                          exit  4
    ├── CollateralError           cannot decide: certificates or lists missing or unusable     exit  5
    ├── RefusedError              the firmware or the kernel said no                           exit  6
    │   ├── FirmwareError         a firmware status (and the errno it came with)
    │   ├── KernelError           an errno without a firmware status
    │   ├── DeviceMissing         /dev/sev or /dev/kvm is not there, or SNP is not initialised
    │   └── NotOffered            this host does not offer the operation
    ├── NotPermitted              this caller may not do it                                    exit  7
    ├── Unreachable               no daemon answers                                            exit  8
    ├── MalformedInput            bytes that are not what they should be                       exit  9
    ├── NotFound                  it does not exist, or not for this caller                    exit 10
    └── NotNow                    wrong state, busy, or a limit is reached                     exit 11
        ├── WrongState            out of order; says the state and the allowed steps
        ├── LimitReached          a limit of the host or of this caller
        └── OutcomeUnknown        a call was repeated whose first outcome was lost

Every error says what was expected and what to do (`remedy`). `reason` is a stable word for programs; it crosses the
RPC as ErrorInfo.reason, and `from_reason` finds the class again.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


NEVER = -1.0
"""`retry_after` of what waiting does not help."""

MAX_WAIT_SECONDS = 7 * 86400.0
"""A longer wait is no advice: whoever hears of one leaves it out."""


class SevError(Exception):
    """Base of all errors.

    Args:
        message: One sentence: what happened, with the field, its offset and what was expected where that applies.
        remedy: What to do about it; empty if nothing is known.
        field: The field, option or file at fault, if one is.
        command: The firmware or KVM command, if one was under way.
        firmware_status: Firmware status number, if the firmware answered.
        errno: Kernel errno, if the kernel answered.
        request_id: The request's id, where a request was under way.
        metadata: Further facts for programs, text by name.
        retry_after: Seconds after which the same may be asked again, where that is known: a limit that passes. NEVER
            for one that does not.
    """

    kind = "internal"
    exit_code = 1
    reason = "INTERNAL"
    default_remedy = ""
    retry_after: float | None = None

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        field: str = "",
        command: str = "",
        firmware_status: int | None = None,
        errno: int | None = None,
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy or self.default_remedy
        self.field = field
        self.command = command
        self.firmware_status = firmware_status
        self.errno = errno
        self.request_id = request_id
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after

    def document(self) -> dict[str, object]:
        """The error as the JSON object that commands print under the key `error`."""
        out: dict[str, object] = {"kind": self.kind, "message": self.message, "remedy": self.remedy}
        if self.firmware_status is not None:
            from sev import status

            out["firmware_status"] = {"code": self.firmware_status, "name": status.name(self.firmware_status)}
        if self.errno is not None:
            out["errno"] = self.errno
        if self.request_id:
            out["request_id"] = self.request_id
        if self.field:
            out["field"] = self.field
        if self.retry_after is not None and self.retry_after >= 0:
            out["retry_after_seconds"] = round(self.retry_after, 3)
        return out


class InternalError(SevError):
    """A bug of ours."""

    default_remedy = "This is a bug in sevd; please report it with the output of the same command and -v."


class UsageError(SevError):
    """The caller asked wrongly: an unknown option, a bad value, a file that cannot be read."""

    kind = "usage"
    exit_code = 2
    reason = "INVALID_ARGUMENT"


class ConfirmationMissing(UsageError):
    """An irreversible command was not confirmed."""

    reason = "CONFIRMATION_MISSING"
    default_remedy = "Confirm with --yes (in the API: the field `confirm`) if you mean it; it cannot be undone."


class VerificationError(SevError):
    """The evidence is not genuine. Subclasses, one per failure, are in sev.attestation.errors."""

    kind = "verification"
    exit_code = 3
    reason = "VERIFICATION_FAILED"


class AppraisalError(SevError):
    """The evidence is genuine, but not what the policy asks for."""

    kind = "appraisal"
    exit_code = 4
    reason = "APPRAISAL_FAILED"


class CollateralError(SevError):
    """It cannot be decided: certificates or lists are missing or unusable."""

    kind = "undecided"
    exit_code = 5
    reason = "COLLATERAL_UNUSABLE"


class RefusedError(SevError):
    """The firmware or the kernel refused."""

    kind = "refused"
    exit_code = 6
    reason = "REFUSED"


class FirmwareError(RefusedError):
    """The firmware answered with a status other than SUCCESS; `firmware_status` and `errno` are set."""

    reason = "FIRMWARE_STATUS"

    def __init__(self, status: int, *, command: str = "", errno: int | None = None, message: str = "", **more: str):
        from sev import status as table

        entry = table.lookup(status)
        super().__init__(
            message or f"{command or 'the firmware'}: {entry.name} (0x{status:02x}): {entry.meaning}",
            remedy=more.pop("remedy", "") or entry.remedy,
            command=command,
            firmware_status=status,
            errno=errno,
            metadata=more,
        )


class KernelError(RefusedError):
    """The kernel answered with an errno and the firmware was not asked, or gave no status."""

    reason = "KERNEL_ERRNO"

    def __init__(self, number: int, *, command: str = "", message: str = "", remedy: str = "", **more: str):
        super().__init__(
            message or f"{command or 'the kernel'}: {os.strerror(number)} (errno {number})",
            remedy=remedy,
            command=command,
            errno=number,
            metadata=more,
        )


class DeviceMissing(RefusedError):
    """/dev/sev or /dev/kvm is not there, or SNP is not initialised."""

    reason = "DEVICE_MISSING"
    default_remedy = "Enable SEV-SNP in the BIOS and load kvm_amd, or try the simulator: sevd --simulate."


class NotOffered(RefusedError):
    """This host does not offer the operation."""

    reason = "NOT_OFFERED"


class NotPermitted(SevError):
    """This caller may not do it."""

    kind = "not_permitted"
    exit_code = 7
    reason = "NOT_PERMITTED"


class Unreachable(SevError):
    """No daemon answers."""

    kind = "unreachable"
    exit_code = 8
    reason = "UNREACHABLE"
    default_remedy = "Start the daemon (systemctl start sevd), or name its socket with --socket."


class MalformedInput(SevError):
    """Bytes that are not what they should be: too short, a bad value, an offset that points outside."""

    kind = "malformed"
    exit_code = 9
    reason = "MALFORMED"


class NotFound(SevError):
    """It does not exist, or not for this caller: the two look the same on purpose."""

    kind = "not_found"
    exit_code = 10
    reason = "NOT_FOUND"


class NotNow(SevError):
    """Not now: the wrong state, busy, or a limit is reached."""

    kind = "not_now"
    exit_code = 11
    reason = "NOT_NOW"


class WrongState(NotNow):
    """A step out of order. `metadata` has `state` and `allowed`."""

    reason = "WRONG_STATE"


class LimitReached(NotNow):
    """A limit of the host (ASIDs) or of this caller is reached; `errno` is set where the kernel said so."""

    reason = "LIMIT_REACHED"


class OutcomeUnknown(NotNow):
    """A call with this request_id was under way when the daemon ended; whether it acted is not known."""

    reason = "OUTCOME_UNKNOWN"
    default_remedy = "Look at the state (sev snp status, sev guest list) and ask again with a new request id."


def from_reason(reason: str) -> type[SevError]:
    """The class whose `reason` this is; SevError's nearest stand-in, InternalError, for a word of a newer daemon."""
    pending: list[type[SevError]] = [SevError]
    while pending:
        cls = pending.pop()
        if cls.reason == reason and cls is not SevError:
            return cls
        pending.extend(cls.__subclasses__())
    return InternalError
