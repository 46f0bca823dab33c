"""A gRPC server that answers as a test says: for what the real daemon cannot be made to do on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc


class FakeDaemon(grpc.GenericRpcHandler):
    """Answers by method name; remembers the requests.

    Attributes:
        answers: "Service/Method" to a function of the raw request (of the list of them, for uploads) and the context.
        requests: (method, raw request or list of them) in order.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any, grpc.ServicerContext], Any]] = {}
        self.streams: dict[str, Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]] = {}
        self.requests: list[tuple[str, Any]] = []

    def methods(self) -> list[str]:
        """The methods called, in order."""
        return [method for method, _ in self.requests]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = str(details.method).removeprefix("/sev.v1.")
        if method in self.streams:

            def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
                self.requests.append((method, request))
                yield from self.streams[method](request, context)

            return grpc.unary_stream_rpc_method_handler(stream)
        if method not in self.answers:
            return None
        if method == "GuestService/LoadGuestMemory":

            def upload(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
                taken = list(requests)
                self.requests.append((method, taken))
                return bytes(self.answers[method](taken, context))

            return grpc.stream_unary_rpc_method_handler(upload)

        def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.requests.append((method, request))
            return bytes(self.answers[method](request, context))

        return grpc.unary_unary_rpc_method_handler(unary)

    def fail_once(self, method: str, code: grpc.StatusCode, answer: bytes) -> None:
        """The first call of this method fails with a code, later ones are answered."""
        calls: list[int] = []

        def act(request: Any, context: grpc.ServicerContext) -> bytes:
            calls.append(1)
            if len(calls) == 1:
                abort(context, code)
            return answer

        self.answers[method] = act


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, text: str = "as the test says") -> NoReturn:
    """Ends a call with a code."""
    context.abort(code, text)
    raise AssertionError("abort returned")


@contextmanager
def served(fake: FakeDaemon, path: str) -> Iterator[None]:
    """Serves the fake on a Unix socket."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=[fake], options=[("grpc.max_receive_message_length", 8 << 20)])
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield
        finally:
            server.stop(0).wait()
