"""Moves an SEV guest from one host to another, by way of this program: neither daemon needs to reach the other.

    with sev.connect(here) as source, sev.connect(there) as target:
        guest = sev.migration.migrate(source, target, guest_id, roots=None)

For asyncio the same is `sev.aio.migrate`. Both do what `steps` describes, which works on both hosts at once: while one
takes pages the other makes the next.

The receiving platform's chain is verified before anything is sent. The guest is whole at the source until all of it is
at the target, and has begun to be a guest there: whatever fails before that is undone. It can run at one of them alone.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from sev import guest_operations, migration_operations, sev_operations
from sev.calls import drive
from sev.errors import NotFound, NotNow, OutcomeUnknown, SevError, Unreachable
from sev.records import record

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from concurrent.futures import Executor
    from typing import TypeAlias

    from sev.calls import Operation
    from sev.certs.sev_roots import SevRoots
    from sev.client import Host
    from sev.guest_model import Guest

    Progress = Callable[[str, int, int], object]


_UNKNOWN = (NotNow, OutcomeUnknown, Unreachable)
"""Errors after which nobody knows whether the call acted; of the first, what its subclasses say is a refusal."""


@record
class Both:
    """An operation at the source, one at the target, or one at each at the same time.

    It is answered by both results, (source, target); what fails is thrown in once both are over.
    """

    source: Operation[Any] | None = None
    target: Operation[Any] | None = None


if TYPE_CHECKING:
    Steps: TypeAlias = Generator[Both, tuple[Any, Any], Guest]


def steps(guest_id: str, *, roots: SevRoots | None = None, progress: Progress | None = None) -> Steps:
    """The migration, described without doing it: ends with the guest as it is at the target.

    Args and errors as of `migrate`.
    """
    from sev.certs import sev_chain

    own, exported = yield Both(sev_operations.export_platform(), sev_operations.export_platform())
    chain = exported.chain()
    sev_chain.verify(chain, roots=roots)
    theirs = b"".join(one.encode() for one in (chain.pek, chain.oca, chain.cek))
    authorities = exported.authorities or b"".join(one.encode() for one in chain.authorities)
    start = migration_operations.start_sending(guest_id, pdh=exported.pdh, chain=theirs, authorities=authorities)
    leaving = yield from _started(guest_id, start)
    made = ""
    try:
        made = yield from _created(leaving)
        policy = leaving.guest.policy
        receive = migration_operations.start_receiving(made, policy=policy, pdh=own.pdh, session=leaving.session)
        yield Both(target=receive)
        yield from _pages(guest_id, made, (leaving.guest.memory_bytes + leaving.firmware_bytes) // 4096, progress)
        finish = migration_operations.finish_receiving(made, leaving.vcpus, leaving.shared)
        _, guest = yield Both(target=finish)
    except GeneratorExit:
        raise
    except BaseException:
        if made:
            with contextlib.suppress(SevError):
                yield Both(target=guest_operations.delete_guest(made))
        with contextlib.suppress(SevError):
            yield Both(source=migration_operations.cancel_sending(guest_id))
        raise
    yield from _leave(guest_id, made)
    there: Guest = guest
    return there


def _started(
    guest_id: str, start: Operation[migration_operations.Departure]
) -> Generator[Both, tuple[Any, Any], migration_operations.Departure]:
    """The beginning. If nobody knows whether it began it is undone; where it was refused somebody else's may be on."""
    try:
        leaving, _ = yield Both(source=start)
    except GeneratorExit:
        raise
    except BaseException as error:
        if not isinstance(error, SevError) or type(error) in _UNKNOWN:
            with contextlib.suppress(SevError):
                yield Both(source=migration_operations.cancel_sending(guest_id))
        raise
    departure: migration_operations.Departure = leaving
    return departure


def _created(leaving: migration_operations.Departure) -> Generator[Both, tuple[Any, Any], str]:
    """A guest at the target for the one that comes; its id."""
    guest = leaving.guest
    _, created = yield Both(
        target=guest_operations.create_guest(
            guest_type="sev",
            guest_id=guest.guest_id,
            memory_bytes=guest.memory_bytes,
            firmware_bytes=leaving.firmware_bytes,
            vcpu_count=guest.vcpu_count,
            cpuid_signature=leaving.cpuid_signature,
            ap_reset_address=leaving.ap_reset_address,
            label=guest.label,
        )
    )
    made: str = created.guest_id
    return made


def _pages(guest_id: str, made: str, total: int, progress: Progress | None) -> Generator[Both, tuple[Any, Any], None]:
    """All pages, a batch on its way in while the next is on its way out."""
    pages: list[Any] = []
    position, last = 0, False
    while pages or not last:
        send = None if last else migration_operations.send_pages(guest_id, position)
        receive = migration_operations.receive_pages(made, pages) if pages else None
        sent, _ = yield Both(send, receive)
        pages, position = sent if sent is not None else ([], 0)
        last = last or not position
        if progress is not None:
            progress("send", total if last else position, total)


def _leave(guest_id: str, made: str) -> Generator[Both, tuple[Any, Any], None]:
    """The guest is at the target: it ends at the source. If that fails it is given back, and the target's goes."""
    try:
        yield Both(source=migration_operations.finish_sending(guest_id, confirm=True))
    except GeneratorExit:
        raise
    except BaseException as error:
        try:
            yield Both(source=migration_operations.cancel_sending(guest_id))
        except NotFound:
            if isinstance(error, SevError):
                return  # it had ended all the same
            raise error from None
        except SevError:
            if isinstance(error, SevError):
                error.remedy = (
                    f"{made} is ready at the target. Where the source is heard again: sev guest delete, if it is still "
                    "sending there."
                )
            raise error from None
        with contextlib.suppress(SevError):
            yield Both(target=guest_operations.delete_guest(made))
        raise


def migrate(
    source: Host,
    target: Host,
    guest_id: str,
    *,
    roots: SevRoots | None = None,
    progress: Progress | None = None,
) -> Guest:
    """Moves a guest of the caller's own, which is launched and does not run; answers it as it is at the target.

    It keeps its id, memory, registers, and which pages it shares; it is READY there.

    Args:
        source: The host where it is.
        target: The host where it goes.
        guest_id: The guest.
        roots: Trusted roots of the target's platform; AMD's if none are given.
        progress: Called with ("send", pages looked at, pages in all).

    Raises:
        VerificationError: The target's chain does not reach a trusted root; nothing was begun.
        FirmwareError: POLICY_FAILURE: the guest's policy keeps it; BAD_MEASUREMENT: a packet was changed.
        NotNow, WrongState: It runs, or is not launched.
    """
    from concurrent.futures import ThreadPoolExecutor

    description = steps(guest_id, roots=roots, progress=progress)
    with ThreadPoolExecutor(1, "migrate") as helper:
        return drive(description, lambda both: _done(source, target, both, helper))


def _done(source: Host, target: Host, both: Both, helper: Executor) -> tuple[Any, Any]:
    """Both results. Raises what failed, once both are over."""
    if both.source is None or both.target is None:
        here = source.run(both.source) if both.source is not None else None
        return here, target.run(both.target) if both.target is not None else None
    ahead = helper.submit(source.run, both.source)
    try:
        there = target.run(both.target)
    finally:
        failure = ahead.exception()
    if failure is not None:
        raise failure
    return ahead.result(), there
