"""The committed stubs are what the protos give."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.generate import PROTOS, STUBS, generate


def test_regenerating_the_stubs_changes_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        reason = "grpcio-tools is not installed (pip install -e '.[dev]')"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    generate(tmp_path)
    fresh = {path.name: path.read_text() for path in (tmp_path / "sev" / "v1").iterdir()}
    committed = {path.name: path.read_text() for path in STUBS.iterdir() if "_pb2" in path.name}
    assert sorted(fresh) == sorted(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == []


def test_every_proto_has_stubs() -> None:
    protos = {path.stem for path in (PROTOS / "sev" / "v1").glob("*.proto")}
    stubs = {path.name.removesuffix("_pb2.py") for path in STUBS.glob("*_pb2.py")}
    assert protos == stubs
