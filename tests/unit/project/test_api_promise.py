"""The API as a promise: what landed once stays, on the wire and in JSON."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass

from tests import api_goldens
from tests.generate import PROTOS, ROOT
from tests.support.needs import lacking, need_program

KEPT = api_goldens.load()
MESSAGES = {one.full_name: one for one in api_goldens.messages()}
NUMBERS = {f"{one.full_name}.{value.name}": value.number for one in api_goldens.enums() for value in one.values}


def message_of(name: str) -> str:
    """The message that an entry is of: itself, or the one whose field it names."""
    return name if name in MESSAGES else name.rpartition(".")[0]


@pytest.mark.parametrize("name", [name for name in KEPT if "wire" in KEPT[name]])
def test_a_field_means_what_it_always_meant(name: str) -> None:
    golden = KEPT[name]
    assert message_of(name) in MESSAGES, f"{name} is gone: within a version nothing is removed"
    cls = GetMessageClass(MESSAGES[message_of(name)])
    read = cls.FromString(bytes.fromhex(golden["wire"]))
    assert api_goldens.as_golden(read) == golden
    assert ParseDict(golden["json"], cls()) == read


def test_values_of_enums_keep_their_numbers() -> None:
    kept = {name: golden["number"] for name, golden in KEPT.items() if "number" in golden}
    assert kept == {name: NUMBERS.get(name) for name in kept}


def test_everything_has_its_golden() -> None:
    missing = sorted(set(api_goldens.wanted()) - set(KEPT))
    assert missing == [], "run python -m tests.api_goldens"


def test_a_golden_is_whole() -> None:
    """An entry whose field is not in its own bytes would promise nothing."""
    for name, golden in KEPT.items():
        if "wire" in golden and name not in MESSAGES:
            assert golden["wire"], name
            assert name.rpartition(".")[2] in golden["json"], name


def breaking(protos: Path) -> subprocess.CompletedProcess[str]:
    """`buf breaking` of protos against the image of the last landing."""
    buf = need_program("buf")
    shutil.copy(ROOT / "buf.yaml", protos.parent)
    command = [buf, "breaking", str(protos.parent), "--against", str(api_goldens.IMAGE)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_nothing_that_landed_is_broken(tmp_path: Path) -> None:
    shutil.copytree(PROTOS, tmp_path / "proto")
    result = breaking(tmp_path / "proto")
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("removed", "  // True if the host can run what was asked for.\n  bool able = 1;\n", ""),
        ("renumbered", "bool able = 1;", "bool able = 77;"),
        ("retyped", "bool able = 1;", "uint32 able = 1;"),
        ("renamed", "bool able = 1;", "bool can = 1;"),
        ("a method gone", "rpc GetHost(", "rpc FetchHost("),
        ("a stream gone", "returns (stream WatchEventsResponse)", "returns (WatchEventsResponse)"),
        ("a value gone", "  // It is not.\n  CHECK_RESULT_FAILED = 2;\n", ""),
    ],
)
def test_what_breaks_callers_is_found(tmp_path: Path, what: str, old: str, new: str) -> None:
    shutil.copytree(PROTOS, tmp_path / "proto")
    file = tmp_path / "proto" / "sev" / "v1" / "host.proto"
    text = file.read_text()
    assert old in text, what
    file.write_text(text.replace(old, new, 1))
    result = breaking(tmp_path / "proto")
    assert result.returncode not in (0, 1), what
    assert "host.proto" in result.stdout + result.stderr


def test_the_image_is_of_a_landing_and_not_of_the_future() -> None:
    """Nothing may be in the image that the protos lack, whoever wrote it; what was added since is not in it yet."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    image = FileDescriptorSet.FromString(api_goldens.IMAGE.read_bytes())
    landed = {
        f"{file.package}.{message.name}.{field.name}"
        for file in image.file
        if file.package == "sev.v1"
        for message in file.message_type
        for field in message.field
    }
    if not landed:
        lacking("the image of the last landing is empty")
    assert landed <= set(KEPT)
