"""A connection to sevd.

    with sev.connect() as host:
        print(host.host().product)
        launched = host.launch_snp(firmware, vcpus=2, vcpu_type="EPYC-v4")

Every method is one operation of `sev.operations`, `sev.guest_operations` or `sev.hosted`; `sev.aio` has the same ones
for asyncio. A daemon that restarts is waited for (see `sev.calls.Attempts`); every other failure is an error of
`sev.errors`, with the firmware's status where the firmware refused.
"""

from __future__ import annotations

from functools import partial, update_wrapper
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

import grpc

from sev import channel
from sev.calls import NAME, Attempts, Later, check_name, drive
from sev.errors import UsageError
from sev.target import Target, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
    from sev.calls import Call, Failure, Operation, Stream
    from sev.client_run import GuestRun
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
    def __get__(self, host: None, owner: type[Host]) -> Self: ...

    @overload
    def __get__(self, host: Host, owner: type[Host]) -> Callable[P, R]: ...

    def __get__(self, host: Host | None, owner: type[Host]) -> Self | Callable[P, R]:
        if host is None:
            return self
        describe = self._find()

        def method(*args: P.args, **kwargs: P.kwargs) -> R:
            return host.run(describe(*args, **kwargs))

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
    def __get__(self, host: None, owner: type[Host]) -> Self: ...

    @overload
    def __get__(self, host: Host, owner: type[Host]) -> Callable[P, Iterator[R]]: ...

    def __get__(self, host: Host | None, owner: type[Host]) -> Self | Callable[P, Iterator[R]]:
        if host is None:
            return self
        describe = self._find()

        def method(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
            return host.watch(describe(*args, **kwargs))

        return update_wrapper(method, describe)


class Host:
    """A host, through its daemon. Dials with the first call; close it, or use it as a context manager.

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
        self._seen = False
        arguments = channel.options(timeout)
        if credentials is None:
            self._channel = grpc.insecure_channel(target.address, options=arguments)
        else:
            self._channel = grpc.secure_channel(target.address, credentials, options=arguments)

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

    def map_memory(self, guest_id: str) -> MappedMemory:
        """The memory of a guest of one's own, mapped: filled here, it is filled without a copy. Close it when done.

        Raises:
            UsageError: The daemon is not on this machine.
            NotFound, NotPermitted: There is no such guest, or it is somebody else's.
            Unreachable: The daemon passes no descriptors.
        """
        from sev.mapped_memory import map_memory

        return map_memory(self.target, guest_id, timeout=self.timeout, request_id=self._name)

    def run(self, operation: Operation[R]) -> R:
        """Runs an operation: makes its calls, answers its result."""
        if not self._name:
            return drive(operation, self._perform)
        token = NAME.set(self._name)
        try:
            return drive(operation, self._perform)
        finally:
            NAME.reset(token)

    def watch(self, stream: Stream[R]) -> Iterator[R]:
        """Yields the answers of a stream until it ends; leaving the iteration cancels it."""
        attempts = self._attempts(stream.call)
        method: Any = self._channel.unary_stream(stream.call.path, channel.serialize)
        while True:
            call = method(stream.call.request, metadata=attempts.metadata)
            started = False
            try:
                for answer in call:
                    started = self._seen = True
                    yield stream.convert(channel.deserialize(stream.call, answer))
                return
            except grpc.RpcError as error:
                failure = self._failure(error)
            finally:
                call.cancel()
            if started:
                raise attempts.lost(failure)
            sleep(attempts.after(failure, monotonic()))

    def run_guest(self, guest_id: str, *, posted_writes: int = 0) -> GuestRun:
        """Runs a launched guest of one's own; returns when it runs. See `sev.client_run.GuestRun`.

        Args:
            guest_id: The guest.
            posted_writes: How many writes a vCPU may be ahead of their completion, 0 to 256; 0: it waits for each.
        """
        from sev.client_run import GuestRun
        from sev.running import PATH, Conversation, described

        attempts = self._attempts(described())
        while True:
            talk = Conversation(guest_id, posted_writes)
            call: Any = partial(self._channel.stream_stream(PATH), metadata=attempts.metadata)
            run = GuestRun(talk, call, lambda error: attempts.lost(self._failure(error)))
            try:
                run.begin()
            except grpc.RpcError as error:
                failure = self._failure(error)
            else:
                self._seen = True
                return run
            sleep(attempts.after(failure, monotonic()))

    def close(self) -> None:
        """Hangs up; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<sev.client.Host {self.target.address}>"

    def _perform(self, call: Call[Any]) -> Any:
        attempts = self._attempts(call)
        while True:
            try:
                answer = self._send(call, attempts)
            except grpc.RpcError as error:
                failure = self._failure(error)
            else:
                self._seen = True
                return answer
            sleep(attempts.after(failure, monotonic()))

    def _send(self, call: Call[Any], attempts: Attempts) -> Any:
        make: Any = self._channel.stream_unary if call.upload else self._channel.unary_unary
        request = call.request() if callable(call.request) else call.request
        send = make(call.path, channel.serialize)
        return channel.deserialize(call, send(request, timeout=attempts.seconds, metadata=attempts.metadata))

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
) -> Host:
    """A connection to a daemon.

    Args:
        target: A socket path, or a `unix:` or `dns:` target; None: `$SEVD_SOCKET`, else the system's socket, else the
            user's own.
        timeout: Seconds to wait for a daemon that refuses or is unavailable.
        tls_cert: Client certificate for a remote daemon, a PEM file.
        tls_key: Its key, a PEM file.
        tls_ca: The authority that signed the daemon's certificate, a PEM file.
        request_id: The name of all calls of this connection, found again in the daemon's log, audit and errors: at most
            48 letters, digits, dots, underscores and hyphens. A change has it with a dot and something unique behind,
            unless it is given a request id of its own. Empty: every call has an id of its own.

    Raises:
        UsageError: A malformed target or request id, or TLS files that are missing or cannot be read.
        Unreachable: No target was named and no socket is there.
    """
    if not timeout > 0:
        raise UsageError(f"timeout is {timeout!r}, expected seconds above 0", field="timeout")
    chosen = choose(target)
    secured = channel.credentials(chosen, tls_cert, tls_key, tls_ca)
    return Host(chosen, timeout=timeout, credentials=secured, request_id=request_id)
