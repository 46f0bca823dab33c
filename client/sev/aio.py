"""A connection to sevd for asyncio.

    async with sev.aio.connect() as host:
        print((await host.host()).product)
        async for guest in host.watch_guests():
            print(guest.guest_id, guest.state)

The operations are those of `sev.client`, one description behind both. A cancelled `launch_snp` deletes the guest that
it had created before it lets the cancellation through.
"""

from __future__ import annotations

from asyncio import InvalidStateError, sleep, to_thread
from contextlib import suppress
from functools import update_wrapper
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

import grpc
import grpc.aio

from sev import channel
from sev.calls import NAME, Attempts, Later, check_name, drive_async
from sev.errors import UsageError
from sev.target import Target, choose

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from sev import (
        guest_operations,
        hosted,
        hosted_plain,
        hosted_sev,
        migration_operations,
        operations,
        sev_guest_operations,
        sev_operations,
    )
    from sev.aio_run import AsyncGuestRun
    from sev.calls import Call, Failure, Operation, Stream
    from sev.certs.sev_roots import SevRoots
    from sev.guest_model import Guest
    from sev.mapped_memory import MappedMemory
else:
    guest_operations, hosted, operations = Later("sev.guest_operations"), Later("sev.hosted"), Later("sev.operations")
    hosted_plain, sev_operations = Later("sev.hosted_plain"), Later("sev.sev_operations")
    hosted_sev, sev_guest_operations = Later("sev.hosted_sev"), Later("sev.sev_guest_operations")
    migration_operations = Later("sev.migration_operations")

P = ParamSpec("P")
R = TypeVar("R")


class _Does(Generic[P, R]):
    """A method made of an operation, which is looked up when it is first used."""

    def __init__(self, find: Callable[[], Callable[P, Operation[R]]]) -> None:
        self._find = find

    @property
    def describe(self) -> Callable[P, Operation[R]]:
        """The function that describes it."""
        return self._find()

    @overload
    def __get__(self, host: None, owner: type[AsyncHost]) -> Self: ...

    @overload
    def __get__(self, host: AsyncHost, owner: type[AsyncHost]) -> Callable[P, Awaitable[R]]: ...

    def __get__(self, host: AsyncHost | None, owner: type[AsyncHost]) -> Self | Callable[P, Awaitable[R]]:
        if host is None:
            return self
        describe = self._find()

        async def method(*args: P.args, **kwargs: P.kwargs) -> R:
            return await host.run(describe(*args, **kwargs))

        return update_wrapper(method, describe)


class _Watches(Generic[P, R]):
    """A method made of a stream."""

    def __init__(self, find: Callable[[], Callable[P, Stream[R]]]) -> None:
        self._find = find

    @property
    def describe(self) -> Callable[P, Stream[R]]:
        """The function that describes it."""
        return self._find()

    @overload
    def __get__(self, host: None, owner: type[AsyncHost]) -> Self: ...

    @overload
    def __get__(self, host: AsyncHost, owner: type[AsyncHost]) -> Callable[P, AsyncIterator[R]]: ...

    def __get__(self, host: AsyncHost | None, owner: type[AsyncHost]) -> Self | Callable[P, AsyncIterator[R]]:
        if host is None:
            return self
        describe = self._find()

        def method(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
            return host.watch(describe(*args, **kwargs))

        return update_wrapper(method, describe)


class AsyncHost:
    """A host, through its daemon. Dials with the first call, on the event loop that makes it.

    Attributes:
        target: Whom it talks to, and why.
        timeout: Seconds to wait for a daemon that refuses or is unavailable.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout: float,
        credentials: grpc.ChannelCredentials | None = None,
        request_id: str = "",
    ) -> None:
        self.target = target
        self.timeout = timeout
        self._name = check_name(request_id)
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._seen = False

    host = _Does(lambda: operations.host)
    check_host = _Does(lambda: operations.check_host)
    metrics = _Does(lambda: operations.metrics)
    events = _Watches(lambda: operations.events)
    audit = _Watches(lambda: operations.audit)
    snp_status = _Does(lambda: operations.snp_status)
    snp_commit = _Does(lambda: operations.snp_commit)
    snp_set_config = _Does(lambda: operations.snp_set_config)
    snp_reset_config = _Does(lambda: operations.snp_reset_config)
    vlek_load = _Does(lambda: operations.vlek_load)
    update_firmware = _Does(lambda: operations.update_firmware)
    sev_status = _Does(lambda: sev_operations.sev_status)
    chip_ids = _Does(lambda: sev_operations.chip_ids)
    export_platform = _Does(lambda: sev_operations.export_platform)
    pek_csr = _Does(lambda: sev_operations.pek_csr)
    reset_platform = _Does(lambda: sev_operations.reset_platform)
    pek_generate = _Does(lambda: sev_operations.pek_generate)
    pdh_generate = _Does(lambda: sev_operations.pdh_generate)
    pek_import = _Does(lambda: sev_operations.pek_import)
    own_platform = _Does(lambda: sev_operations.own_platform)
    disown_platform = _Does(lambda: sev_operations.disown_platform)
    endorsements = _Does(lambda: operations.endorsements)
    import_endorsements = _Does(lambda: operations.import_endorsements)
    refresh_endorsements = _Does(lambda: operations.refresh_endorsements)
    create_guest = _Does(lambda: guest_operations.create_guest)
    load_memory = _Does(lambda: guest_operations.load_memory)
    start_launch = _Does(lambda: guest_operations.start_launch)
    update_launch = _Does(lambda: guest_operations.update_launch)
    finish_launch = _Does(lambda: guest_operations.finish_launch)
    guest = _Does(lambda: guest_operations.guest)
    guests = _Does(lambda: guest_operations.guests)
    watch_guests = _Watches(lambda: guest_operations.watch_guests)
    pause_guest = _Does(lambda: guest_operations.pause_guest)
    delete_guest = _Does(lambda: guest_operations.delete_guest)
    measure_guest = _Does(lambda: sev_guest_operations.measure_guest)
    inject_secret = _Does(lambda: sev_guest_operations.inject_secret)
    attestation_report = _Does(lambda: sev_guest_operations.attestation_report)
    read_guest_memory = _Does(lambda: sev_guest_operations.read_guest_memory)
    write_guest_memory = _Does(lambda: sev_guest_operations.write_guest_memory)
    start_sending = _Does(lambda: migration_operations.start_sending)
    send_pages = _Does(lambda: migration_operations.send_pages)
    cancel_sending = _Does(lambda: migration_operations.cancel_sending)
    finish_sending = _Does(lambda: migration_operations.finish_sending)
    start_receiving = _Does(lambda: migration_operations.start_receiving)
    receive_pages = _Does(lambda: migration_operations.receive_pages)
    finish_receiving = _Does(lambda: migration_operations.finish_receiving)
    guest_report = _Does(lambda: guest_operations.guest_report)
    guest_key = _Does(lambda: guest_operations.guest_key)
    launch_plan = _Does(lambda: hosted.launch_plan)
    launch_snp = _Does(lambda: hosted.launch_snp)
    launch_plain = _Does(lambda: hosted_plain.launch_plain)
    launch_sev = _Does(lambda: hosted_sev.launch_sev)
    launch_sev_es = _Does(lambda: hosted_sev.launch_sev_es)
    launch_sev_plan = _Does(lambda: hosted_sev.launch_sev_plan)

    async def map_memory(self, guest_id: str) -> MappedMemory:
        """As `sev.client.Host.map_memory`."""
        from sev.mapped_memory import map_memory

        name = self._name
        return await to_thread(map_memory, self.target, guest_id, timeout=self.timeout, request_id=name)

    async def run(self, operation: Operation[R]) -> R:
        """Runs an operation: makes its calls, answers its result."""
        if not self._name:
            return await drive_async(operation, self._perform)
        token = NAME.set(self._name)
        try:
            return await drive_async(operation, self._perform)
        finally:
            NAME.reset(token)

    async def watch(self, stream: Stream[R]) -> AsyncIterator[R]:
        """Yields the answers of a stream until it ends; leaving the iteration cancels it."""
        attempts = self._attempts(stream.call)
        method: Any = self._dialled().unary_stream(stream.call.path, channel.serialize)
        while True:
            call = method(stream.call.request, metadata=attempts.metadata)
            started = False
            try:
                async for answer in call:
                    started = self._seen = True
                    yield stream.convert(channel.deserialize(stream.call, answer))
                return
            except grpc.RpcError as error:
                failure = self._failure(error)
            finally:
                call.cancel()
            if started:
                raise attempts.lost(failure)
            await sleep(await to_thread(attempts.after, failure, monotonic()))  # it asks the socket, briefly

    def run_guest(self, guest_id: str, *, posted_writes: int = 0) -> AsyncGuestRun:
        """Runs a launched guest of one's own from `async with` on; arguments as of `sev.client.Host.run_guest`."""
        from sev.aio_run import AsyncGuestRun
        from sev.running import PATH, Conversation, described

        talk = Conversation(guest_id, posted_writes)
        attempts = self._attempts(described())

        async def begin(first: bytes) -> tuple[Any, Any]:
            while True:
                call: Any = self._dialled().stream_stream(PATH)(metadata=attempts.metadata)
                try:
                    with suppress(InvalidStateError):  # it has ended: reading says how
                        await call.write(first)
                    raw = await call.read()
                except grpc.RpcError as error:
                    failure = self._failure(error)
                except BaseException:
                    call.cancel()
                    raise
                else:
                    self._seen = True
                    return call, raw
                await sleep(await to_thread(attempts.after, failure, monotonic()))

        return AsyncGuestRun(talk, begin, lambda error: attempts.lost(self._failure(error)))

    async def close(self) -> None:
        """Hangs up; calls under way are cancelled."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<sev.aio.AsyncHost {self.target.address}>"

    async def _perform(self, call: Call[Any]) -> Any:
        attempts = self._attempts(call)
        while True:
            try:
                answer = await self._send(call, attempts)
            except grpc.RpcError as error:
                failure = self._failure(error)
            else:
                self._seen = True
                return answer
            await sleep(await to_thread(attempts.after, failure, monotonic()))  # it asks the socket, briefly

    async def _send(self, call: Call[Any], attempts: Attempts) -> Any:
        dialled = self._dialled()
        make: Any = dialled.stream_unary if call.upload else dialled.unary_unary
        request = call.request() if callable(call.request) else call.request
        send = make(call.path, channel.serialize)
        return channel.deserialize(call, await send(request, timeout=attempts.seconds, metadata=attempts.metadata))

    def _dialled(self) -> grpc.aio.Channel:
        if self._channel is None:
            arguments = channel.options(self.timeout)
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self.target.address, options=arguments)
            else:
                self._channel = grpc.aio.secure_channel(self.target.address, self._credentials, options=arguments)
        return self._channel

    def _attempts(self, call: Call[Any]) -> Attempts:
        return Attempts(call, self.target, self.timeout, monotonic(), seen=self._seen, name=self._name)

    def _failure(self, error: grpc.RpcError) -> Failure:
        failure = channel.failure(error)
        self._seen = self._seen or failure.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        return failure


def connect(
    target: str | None = None,
    *,
    timeout: float = 5.0,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_ca: str | None = None,
    request_id: str = "",
) -> AsyncHost:
    """A connection to a daemon; arguments and errors as `sev.connect` has them."""
    if not timeout > 0:
        raise UsageError(f"timeout is {timeout!r}, expected seconds above 0", field="timeout")
    chosen = choose(target)
    secured = channel.credentials(chosen, tls_cert, tls_key, tls_ca)
    return AsyncHost(chosen, timeout=timeout, credentials=secured, request_id=request_id)


async def migrate(
    source: AsyncHost,
    target: AsyncHost,
    guest_id: str,
    *,
    roots: SevRoots | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Guest:
    """Moves an SEV guest of the caller's own to another host, as `sev.migration.migrate` does, from one description.

    Cancelled, it undoes what it began before it lets the cancellation through: the guest is whole at the source, or,
    where that had ended already, at the target.
    """
    from sev.aio_migration import migrate

    return await migrate(source, target, guest_id, roots=roots, progress=progress)
