"""A guest kernel's conversation with the firmware under one VMPCK (snp_send_guest_request, arch/x86/coco/sev).

A number must never encrypt two messages. So the kernel repeats a throttled message as it is, burns the number of an
extended request that met too small a buffer with a plain one, and otherwise gives the key up: after almost any failure
behind the sending, every later request answers ENOTTY.

One exception follows from the order of the kernel's checks: a plain retry that the firmware refuses looks like one that
it answered, and the key stays; the number is used up on one side only, so the next request fails and wipes it.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sev.abi import guest_device as abi
from sev.abi import guest_message as messages
from sev.abi.guest_message import Header
from sevd.simulator.errnos import fail, refusal
from sevd.simulator.guest_host import Answer, GuestHost, GuestRef
from sevd.simulator.guest_requests import seal, unseal

SEQUENCE_END = 0xFFFFFFFF
"""The kernel keeps the number in 32 bits and stops before this one."""

INVALID_LEN = abi.vmm_error(abi.VMM_ERROR_INVALID_LEN)
BUSY = abi.vmm_error(abi.VMM_ERROR_BUSY)


@dataclass(frozen=True, slots=True)
class Patience:
    """How the kernel deals with a busy host.

    Attributes:
        delay: Seconds between two tries.
        limit: Seconds after which it gives up (and wipes the key).
        clock: Seconds from some point on.
        pause: Waits that many seconds; None: until then, or until the guest ends.
    """

    delay: float = 2.0
    limit: float = 60.0
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] | None = None


@dataclass(slots=True)
class Call:
    """One request and what becomes of it.

    Attributes:
        message_type: messages.REPORT_REQ or KEY_REQ.
        version: Message version, as the caller gave it.
        payload: In the clear; a multiple of 16 bytes.
        response_size: Bytes that the response may have at most.
        pages: Pages for certificates; None: a plain request. Afterwards, the pages that they need.
        exitinfo2: The host's answer; 0 while nothing was sent.
        certificates: What the host put into the pages.
    """

    message_type: int
    version: int
    payload: bytes
    response_size: int
    pages: int | None = None
    exitinfo2: int = 0
    certificates: bytes = b""


class _Sealed(NamedTuple):
    """A request as it goes out."""

    header: Header
    message: bytes


class GuestChannel:
    """One VMPCK as the guest's kernel uses it.

    Args:
        guest: The guest.
        host: Who answers its hypercalls.
        number: Number of the VMPCK, 0 to 3.
        patience: How long a busy host is asked again.
    """

    def __init__(self, guest: GuestRef, host: GuestHost, number: int, patience: Patience) -> None:
        self.number = number
        self._guest = guest
        self._host = host
        self._patience = patience
        self._key: bytes | None = guest.vmpck(number)
        self._count = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @property
    def wiped(self) -> bool:
        """The key was given up."""
        return self._key is None

    def end(self) -> None:
        """The guest has ended: nobody waits for its host any longer."""
        self._ended.set()

    def send(self, call: Call) -> bytes:
        """The response in the clear.

        Raises:
            OSError: ENOTTY: the key was given up; EIO: the numbers are used up, or the host or the firmware refused
                (`call.exitinfo2`); ETIMEDOUT: the host is busy; EBADMSG: the response is not one to this request.
        """
        with self._lock:
            key = self._key
            if key is None:
                fail(errno.ENOTTY)
            sent = self._seal(key, call)
            try:
                sent, answer = self._exchange(key, call, sent)
                return _open(key, sent.header, answer.response, call.response_size)
            except OSError as refused:
                if refused.errno != errno.EIO or call.exitinfo2 != INVALID_LEN:
                    self._key = None
                raise

    def _seal(self, key: bytes, call: Call) -> _Sealed:
        """The request as a message with the next number. Raises OSError(EIO): there is none left."""
        # The secrets page counts for everybody who uses the key.
        self._count = max(self._count, self._guest.messages(self.number))
        sequence = self._count + 1
        if sequence >= SEQUENCE_END:
            fail(errno.EIO)
        header = Header(b"", sequence, call.message_type, call.version, len(call.payload), self.number)
        return _Sealed(header, seal(key, header, call.payload))

    def _issue(self, key: bytes, call: Call, sent: _Sealed, *, plain: bool) -> tuple[_Sealed, Answer]:
        answer = self._host.refusal(extended=not plain)
        if answer is None:
            with self._guest.lock:
                if self._guest.messages(self.number) > self._count:
                    # The host has played the guest meanwhile, which no other host can: the number is used up.
                    sent = self._seal(key, call)
                if plain:
                    answer = self._host.request(sent.message)
                else:
                    answer = self._host.extended(sent.message, call.pages or 0)
        call.exitinfo2 = answer.exitinfo2
        return sent, answer

    def _exchange(self, key: bytes, call: Call, sent: _Sealed) -> tuple[_Sealed, Answer]:
        """Sends, and repeats what may be repeated; the message and the answer that count. Raises OSError."""
        started = self._patience.clock()
        plain = call.pages is None
        needed: int | None = None
        problem: OSError | None = None
        sent, answer = self._issue(key, call, sent, plain=plain)
        while answer.exitinfo2:
            if answer.exitinfo2 == BUSY:
                if self._patience.clock() - started > self._patience.limit or self._ended.is_set():
                    problem = refusal(errno.ETIMEDOUT)
                    break
                (self._patience.pause or self._ended.wait)(self._patience.delay)
            elif answer.exitinfo2 == INVALID_LEN and not plain:
                plain, needed = True, answer.pages
            else:
                problem = refusal(errno.EIO)
                break
            sent, answer = self._issue(key, call, sent, plain=plain)
        self._count += 2
        if needed is not None:
            call.exitinfo2, call.pages = INVALID_LEN, needed
            problem = problem or refusal(errno.EIO)
        if problem is not None:
            raise problem
        call.certificates = answer.certificates
        return sent, answer


def _open(key: bytes, sent: Header, response: bytes, limit: int) -> bytes:
    """The payload of a response, checked as the kernel does. Raises OSError(EBADMSG)."""
    page = response[: messages.PAGE_SIZE].ljust(messages.PAGE_SIZE, b"\0")
    header = Header.decode(page)
    belongs = (
        header.sequence == sent.sequence + 1
        and header.message_type == sent.message_type + 1
        and header.message_version == sent.message_version
        and header.message_size <= limit
    )
    clear = unseal(key, header, page) if belongs else None
    if clear is None:
        fail(errno.EBADMSG)
    return clear
