"""The one exception by which the simulated firmware refuses: a status, as the mailbox would answer it."""

from __future__ import annotations

from sev import status


class FirmwareStatus(Exception):
    """A command was refused. Not a SevError: the layers above turn it into errno and status, as the kernel does.

    Attributes:
        code: Firmware status, never SUCCESS.
        pages_done: For SNP_LAUNCH_UPDATE, the whole pages that were added before the refusal.
        in_response: The command succeeded and the status stood inside a guest message's encrypted response.
        lengths: Bytes that each buffer must have, which INVALID_LENGTH leaves in the command's length fields.
    """

    def __init__(
        self, code: int, *, pages_done: int = 0, in_response: bool = False, lengths: tuple[int, ...] = ()
    ) -> None:
        super().__init__(code)
        self.code = code
        self.pages_done = pages_done
        self.in_response = in_response
        self.lengths = lengths

    def __str__(self) -> str:
        return f"{status.name(self.code)} (0x{self.code:02x})"
