"""What methods declare, and what happens where they do not."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from sev.v1 import options_pb2
from sevd.access.roles import Role
from sevd.api.foreign import Foreign
from sevd.api.rules import UndeclaredMethod, methods_of, snake
from tests.support.serving import METHODS, SERVICES


def test_every_method_of_ours_is_declared() -> None:
    assert len(METHODS) == sum(len(service.methods) for service in SERVICES)
    assert all(method.role in Role for method in METHODS)


def test_reads_change_nothing_and_changes_can_be_tried() -> None:
    for method in METHODS:
        name = method.name.partition("/")[2]
        if name.startswith(("Check", "Get", "List", "ReadAudit", "Watch", "Request")):
            assert method.idempotent, method.name
            assert not method.mutating, method.name
        else:
            assert method.mutating, method.name
            assert method.role > Role.VIEWER, method.name


@pytest.mark.parametrize(
    ("name", "expected"), [("GetHost", "get_host"), ("LoadVlek", "load_vlek"), ("SetSnpConfig", "set_snp_config")]
)
def test_names_of_functions(name: str, expected: str) -> None:
    assert snake(name) == expected


_COUNTER = iter(range(1000))


def service_with(
    fields: dict[str, int], rules: options_pb2.MethodRules | None, *, uploads: bool = False
) -> ServiceDescriptor:
    """A service with one method, in a pool of its own."""
    pool = descriptor_pool.Default()
    file = descriptor_pb2.FileDescriptorProto(
        name=f"test/rules_{next(_COUNTER)}.proto", package=f"test.rules{next(_COUNTER)}", syntax="proto3"
    )
    file.dependency.append("sev/v1/options.proto")
    message = file.message_type.add(name="Ask")
    for number, (name, kind) in enumerate(fields.items(), 1):
        message.field.add(
            name=name,
            number=number,
            type=descriptor_pb2.FieldDescriptorProto.Type.ValueType(kind),
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        )
    service = file.service.add(name="TestService")
    scope = f".{file.package}.Ask"
    method = service.method.add(name="DoIt", input_type=scope, output_type=scope, client_streaming=uploads)
    if rules is not None:
        method.options.Extensions[options_pb2.rules].CopyFrom(rules)
    return pool.AddSerializedFile(file.SerializeToString()).services_by_name["TestService"]


BOOL, STRING = 8, 9
ALL = {"confirm": BOOL, "validate_only": BOOL, "request_id": STRING}
RULES = options_pb2.MethodRules


@pytest.mark.parametrize(
    ("fields", "rules", "says"),
    [
        pytest.param(ALL, None, "no rules", id="no rules at all"),
        pytest.param(ALL, RULES(idempotent=True), "no role", id="no role"),
        pytest.param(ALL, RULES(role=options_pb2.Role.ValueType(9)), "no role", id="a role that is none"),
        pytest.param(
            {"validate_only": BOOL, "request_id": STRING},
            RULES(role=options_pb2.ROLE_ADMIN, destructive=True),
            "no confirm",
            id="destructive without confirm",
        ),
        pytest.param(
            {"confirm": STRING, "validate_only": BOOL, "request_id": STRING},
            RULES(role=options_pb2.ROLE_ADMIN, destructive=True),
            "no confirm",
            id="confirm that is no bool",
        ),
        pytest.param({"validate_only": BOOL}, RULES(role=options_pb2.ROLE_ADMIN), "no request_id", id="no request_id"),
        pytest.param(
            {"request_id": STRING}, RULES(role=options_pb2.ROLE_ADMIN), "no validate_only", id="no validate_only"
        ),
    ],
)
def test_a_method_that_does_not_say_what_it_needs_is_refused(
    fields: dict[str, int], rules: options_pb2.MethodRules | None, says: str
) -> None:
    with pytest.raises(UndeclaredMethod, match=says):
        methods_of([service_with(fields, rules)])


def test_a_whole_declaration_is_taken() -> None:
    rules = RULES(role=options_pb2.ROLE_LAUNCHER, destructive=True, needs_device=True)
    (method,) = methods_of([service_with(ALL, rules)])
    assert (method.role, method.destructive, method.needs_device, method.mutating) == (Role.LAUNCHER, True, True, True)
    assert method.fields == set(ALL)


def test_foreign_methods_that_nobody_declared_are_not_served() -> None:
    frame: object = object()
    foreign = Foreign(frame, (), dict)  # type: ignore[arg-type]  # not reached
    assert foreign.handler("/grpc.channelz.v1.Channelz/GetServers") is None
    assert foreign.handler("/grpc.health.v1.Health/Invented") is None
