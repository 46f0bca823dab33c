"""What the daemon keeps over a restart, damaged or of another product, and that reflection describes what it lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sev.v1 import endorsement_pb2
from tests.integration.test_daemon import ask, eventually
from tests.support.running import running


def imported(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "state" / "endorsements").rglob("*") if path.is_file())


def keep_chain(folder: Path) -> dict[Path, bytes]:
    """A Genoa host imports its own ARK, ASK and VCEK; the files and what is in them."""
    kinds = endorsement_pb2
    wanted = (kinds.ENDORSEMENT_KIND_ARK, kinds.ENDORSEMENT_KIND_ASK, kinds.ENDORSEMENT_KIND_VCEK)
    with running(folder, "--simulate=genoa") as daemon:
        answer = ask(daemon.target, "EndorsementService/GetEndorsements")
        contents = [one.der for one in answer.endorsements if one.kind in wanted]
        request = endorsement_pb2.ImportEndorsementsRequest(contents=contents)
        ask(daemon.target, "EndorsementService/ImportEndorsements", request)
    kept = {path: path.read_bytes() for path in imported(folder)}
    assert sorted(data for path, data in kept.items() if path.parent.name == "objects") == sorted(contents)
    return kept


def test_what_was_imported_for_another_product_is_left_alone(host_folder: Path) -> None:
    kept = keep_chain(host_folder)
    with running(host_folder, "--simulate=milan") as daemon:
        ask(daemon.target, "EndorsementService/GetEndorsements")
        assert "damaged" not in daemon.log()
        assert "Traceback" not in daemon.log()
    assert {path: path.read_bytes() for path in imported(host_folder)} == kept
    with running(host_folder, "--simulate=genoa") as daemon:
        ask(daemon.target, "EndorsementService/GetEndorsements")
        assert "damaged" not in daemon.log()


def test_a_damaged_file_is_reported_without_a_trace(host_folder: Path) -> None:
    path = next(path for path in keep_chain(host_folder) if path.parent.name == "objects")
    path.write_bytes(b"damage")
    with running(host_folder, "--simulate=genoa") as daemon:
        eventually(lambda: "is damaged" in daemon.log(), "the damage is said")
        ask(daemon.target, "EndorsementService/GetEndorsements")
        assert "Traceback" not in daemon.log()
        assert "never awaited" not in daemon.log()
    assert not path.exists()
    assert len(list(path.parent.glob(f"{path.name}.damaged-*"))) == 1


def test_reflection_describes_every_service_that_it_lists(host_folder: Path) -> None:
    with running(host_folder, "--simulate=genoa") as daemon, grpc.insecure_channel(daemon.target) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

        def told(**request: Any) -> Any:
            asked = iter([reflection_pb2.ServerReflectionRequest(**request)])
            return next(stub.ServerReflectionInfo(asked, timeout=10))

        names = [one.name for one in told(list_services="").list_services_response.service]
        assert "grpc.health.v1.Health" in names
        for name in names:
            files = [
                descriptor_pb2.FileDescriptorProto.FromString(raw)
                for raw in told(file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
            ]
            assert name in {f"{file.package}.{service.name}" for file in files for service in file.service}
