"""What both clients tell gRPC: reconnecting, message sizes, TLS; and what a failed call of either looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sev.calls import RECONNECT_SECONDS, Failure
from sev.errors import InternalError, UsageError

if TYPE_CHECKING:
    import grpc

    from sev.calls import Call
    from sev.target import Target

MAX_RECEIVE = 64 << 20
"""Bytes of the largest answer that is taken."""

_PEM_LIMIT = 1 << 20


def options(timeout: float) -> list[tuple[str, Any]]:
    """The channel's arguments: it dials again every 50 ms or so, and gives a silent daemon `timeout` seconds."""
    return [
        ("grpc.initial_reconnect_backoff_ms", int(RECONNECT_SECONDS * 1000)),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.min_reconnect_backoff_ms", max(100, min(int(timeout * 1000), 1 << 30))),
        ("grpc.max_receive_message_length", MAX_RECEIVE),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def credentials(
    target: Target, tls_cert: str | None, tls_key: str | None, tls_ca: str | None
) -> grpc.ChannelCredentials | None:
    """Mutual TLS for a remote target, from PEM files; None for a Unix socket.

    Raises:
        UsageError: A file is missing or cannot be read, or TLS is asked for on a Unix socket.
    """
    given = {"--tls-cert": tls_cert, "--tls-key": tls_key, "--tls-ca": tls_ca}
    if not target.remote:
        named = [option for option, path in given.items() if path]
        if named:
            raise UsageError(
                f"{', '.join(named)}: TLS is for remote daemons, and {target.address} is on this machine",
                field=named[0],
            )
        return None
    missing = [option for option, path in given.items() if not path]
    if missing:
        raise UsageError(
            f"{target.address}: a remote daemon takes mutual TLS only; missing: {', '.join(missing)}",
            field=missing[0],
            remedy="Give your certificate, its key, and the authority that signed the daemon's certificate.",
        )
    import grpc

    from sev.target import ClientFiles, endpoint

    endpoint(target.address)
    target.files = ClientFiles(tls_cert or "", tls_key or "", tls_ca or "")
    contents = {option: _pem(option, path or "") for option, path in given.items()}
    return grpc.ssl_channel_credentials(contents["--tls-ca"], contents["--tls-key"], contents["--tls-cert"])


def _pem(option: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_PEM_LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise UsageError(f"{option}: cannot read {path!r}: {reason}", field=option) from None
    if len(data) > _PEM_LIMIT or b"-----BEGIN " not in data:
        raise UsageError(f"{option}: {path!r} is not a PEM file", field=option)
    return data


def failure(error: Any) -> Failure:
    """A failed call of either client."""
    code = error.code()
    return Failure(
        code.name if code is not None else "UNKNOWN",
        error.details() or "",
        tuple((key, value) for key, value in error.trailing_metadata() or ()),
    )


def serialize(message: Any) -> bytes:
    """A message on the wire; bytes are one already."""
    if isinstance(message, bytes):
        return message
    data: bytes = message.SerializeToString()
    return data


def deserialize(call: Call[Any], data: bytes) -> Any:
    """The answer of a call. (A deserialiser of gRPC's that fails would log a trace.)

    Raises:
        InternalError: Not such a message.
    """
    from google.protobuf.message import DecodeError

    try:
        return call.answer.FromString(data)
    except DecodeError:
        raise InternalError(f"{call.method}: {len(data)} bytes that are no {call.answer.__name__}") from None
