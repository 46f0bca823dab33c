"""What every method declares about itself, read from the descriptors: nothing is served without a declaration.

Ours stand in the proto (`sev.v1.rules`). Those of the services that are not ours (health, reflection) stand in one
table here. A method that destroys needs a `confirm` field; one that may not be repeated needs a `request_id`; one that
changes anything has `validate_only`, or is an upload.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from sev.errors import InternalError
from sev.records import record
from sev.v1 import options_pb2
from sevd.access.roles import Role

FOREIGN: dict[str, Role | None] = {
    "/grpc.health.v1.Health/Check": None,
    "/grpc.health.v1.Health/Watch": None,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.VIEWER,
}
"""Methods that are not ours, and the role that each needs; None: whoever was admitted. Others are not served."""

LOCAL = frozenset(path for path in FOREIGN if path.endswith("/ServerReflectionInfo"))
"""Methods that callers from other machines do not get: they have the API's description, and others need not know it."""


class UndeclaredMethod(InternalError):
    """A method says not, or not consistently, what it needs: the server must not start."""


@record
class Method:
    """One method of ours.

    Attributes:
        path: Full path, such as "/sev.v1.HostService/GetHost".
        name: Its name with the service, such as "HostService/GetHost", for logs and audit records.
        attribute: The name of the skin's function, such as "get_host".
        role: The role it needs.
        idempotent: Calling twice is the same as calling once.
        destructive: It needs `confirm`.
        needs_device: It is refused while the device is missing.
        request: Class of its request.
        response: Class of its response.
        uploads: Its request is a stream.
        streams: Its response is a stream.
        mutating: It changes something (unless `validate_only` is set).
        fields: The request's fields that have a meaning for every method: a subset of confirm, validate_only,
            request_id, guest_id.
    """

    path: str
    name: str
    attribute: str
    role: Role
    idempotent: bool
    destructive: bool
    needs_device: bool
    request: type[Message]
    response: type[Message]
    uploads: bool
    streams: bool
    mutating: bool
    fields: frozenset[str]


_COMMON = {
    "confirm": FieldDescriptor.TYPE_BOOL,
    "validate_only": FieldDescriptor.TYPE_BOOL,
    "request_id": FieldDescriptor.TYPE_STRING,
    "guest_id": FieldDescriptor.TYPE_STRING,
}


def methods_of(services: Iterable[ServiceDescriptor]) -> list[Method]:
    """All methods of these services.

    Raises:
        UndeclaredMethod: One lacks its rules, or contradicts them.
    """
    return [_method(service, method) for service in services for method in service.methods]


def snake(name: str) -> str:
    """GetSnpStatus → get_snp_status."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _method(service: ServiceDescriptor, method: MethodDescriptor) -> Method:
    options, name = method.GetOptions(), f"{service.name}/{method.name}"
    if not options.HasExtension(options_pb2.rules):
        raise UndeclaredMethod(f"{name} declares no rules (option sev.v1.rules)")
    rules = options.Extensions[options_pb2.rules]
    if rules.role == options_pb2.ROLE_UNSPECIFIED or rules.role not in options_pb2.Role.values():
        raise UndeclaredMethod(f"{name} declares no role")
    by_name = method.input_type.fields_by_name
    fields = frozenset(key for key, kind in _COMMON.items() if key in by_name and by_name[key].type == kind)
    mutating = "validate_only" in fields or method.client_streaming
    if rules.destructive and "confirm" not in fields:
        raise UndeclaredMethod(f"{name} is destructive, and its request has no confirm")
    if not rules.idempotent and "request_id" not in fields:
        raise UndeclaredMethod(f"{name} is not idempotent, and its request has no request_id")
    if not rules.idempotent and not mutating:
        raise UndeclaredMethod(f"{name} is not idempotent, and its request has no validate_only")
    return Method(
        path=f"/{service.full_name}/{method.name}",
        name=name,
        attribute=snake(method.name),
        role=Role(rules.role),
        idempotent=rules.idempotent,
        destructive=rules.destructive,
        needs_device=rules.needs_device,
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        uploads=method.client_streaming,
        streams=method.server_streaming,
        mutating=mutating,
        fields=fields,
    )
