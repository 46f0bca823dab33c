"""What the API promises, kept as files: `python -m tests.api_goldens [--landed]`.

`tests/goldens/api.json` has, for every field of every message and every value of every enum of package sev.v1, a message
with that alone in it: as bytes of the wire and as JSON. Entries are added and never changed. `tests/goldens/api.binpb` is
the image (FileDescriptorSet) of the protos as they landed last, against which `buf breaking` compares.

Without an option, entries are added for what is new. With `--landed` the image becomes that of the present protos: the
first commit after a landing does so.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.generate import PROTOS, ROOT

GOLDENS = ROOT / "tests" / "goldens" / "api.json"
IMAGE = ROOT / "tests" / "goldens" / "api.binpb"

FILES: tuple[FileDescriptor, ...] = tuple(
    importlib.import_module(f"sev.v1.{path.stem}_pb2").DESCRIPTOR
    for path in sorted((PROTOS / "sev" / "v1").glob("*.proto"))
)
"""Every file of the package."""

Golden = dict[str, Any]
"""A message's entry: `wire` in hexadecimal and `json`; an enum value's: `number`."""


def messages() -> Iterator[Descriptor]:
    """Every message of the package, nested ones included; the entries of maps are none of their own."""

    def below(message: Descriptor) -> Iterator[Descriptor]:
        if not message.GetOptions().map_entry:
            yield message
            for nested in message.nested_types:
                yield from below(nested)

    for file in FILES:
        for message in file.message_types_by_name.values():
            yield from below(message)


def enums() -> Iterator[EnumDescriptor]:
    """Every enum of the package."""
    for file in FILES:
        yield from file.enum_types_by_name.values()
    for message in messages():
        yield from message.enum_types


def wanted() -> Iterator[str]:
    """The names under which there has to be an entry: `message.field`, `enum.VALUE`, and messages without fields."""
    for message in messages():
        if not message.fields:
            yield message.full_name
        yield from (f"{message.full_name}.{field.name}" for field in message.fields)
    for enum in enums():
        yield from (f"{enum.full_name}.{value.name}" for value in enum.values)


def as_golden(message: Message) -> Golden:
    """A message as its entry says it."""
    return {
        "wire": message.SerializeToString(deterministic=True).hex(),
        "json": MessageToDict(message, preserving_proto_field_name=True),
    }


def make(name: str) -> Golden:
    """A new entry."""
    for enum in enums():
        for value in enum.values:
            if name == f"{enum.full_name}.{value.name}":
                return {"number": value.number}
    for descriptor in messages():
        if name == descriptor.full_name:
            return as_golden(GetMessageClass(descriptor)())
        for field in descriptor.fields:
            if name == f"{descriptor.full_name}.{field.name}":
                message = GetMessageClass(descriptor)()
                _fill(message, field, depth=2)
                return as_golden(message)
    raise KeyError(name)


def _fill(message: Message, field: FieldDescriptor, depth: int) -> None:
    """Puts one value, or two where it repeats, into a field."""
    held = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        value = kind.fields_by_name["value"]
        if value.message_type is not None:
            _fill_all(held[_scalar(kind.fields_by_name["key"])], depth - 1)
        else:
            held[_scalar(kind.fields_by_name["key"])] = _scalar(value)
    elif kind is not None:
        for target in (held.add(), held.add()) if field.is_repeated else (held,):
            target.SetInParent()
            _fill_all(target, depth - 1)
    elif field.is_repeated:
        held.extend([_scalar(field), _scalar(field)])
    else:
        setattr(message, field.name, _scalar(field))


def _fill_all(message: Message, depth: int) -> None:
    if depth:
        descriptor: Descriptor = message.DESCRIPTOR  # type: ignore[assignment]
        for field in descriptor.fields:
            _fill(message, field, depth)


def _scalar(field: FieldDescriptor) -> Any:
    """A value that shows in the wire, and tells a field from its neighbours by its number."""
    number = field.number
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    return (
        {
            FieldDescriptor.CPPTYPE_BOOL: True,
            FieldDescriptor.CPPTYPE_STRING: f"{field.name} \N{GREEK SMALL LETTER SIGMA}",
            FieldDescriptor.CPPTYPE_INT32: 1000 + number,
            FieldDescriptor.CPPTYPE_INT64: number << 33,
            FieldDescriptor.CPPTYPE_UINT32: (1 << 31) + number,
            FieldDescriptor.CPPTYPE_UINT64: (1 << 63) + number,
            FieldDescriptor.CPPTYPE_DOUBLE: number + 0.5,
            FieldDescriptor.CPPTYPE_FLOAT: number + 0.5,
        }[field.cpp_type]
        if field.type != FieldDescriptor.TYPE_BYTES
        else bytes((number, 0, 255))
    )


def load() -> dict[str, Golden]:
    """The entries that are kept."""
    kept: dict[str, Golden] = json.loads(GOLDENS.read_text())
    return kept


def write_image(path: Path, protos: Path = PROTOS) -> None:
    """Writes the image of the protos. Raises subprocess.CalledProcessError."""
    files = sorted((protos / "sev" / "v1").glob("*.proto"))
    options = [f"-I{protos}", "--include_imports", f"--descriptor_set_out={path}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *map(str, files)], check=True)


def main() -> None:
    """Adds what is new."""
    GOLDENS.parent.mkdir(exist_ok=True)
    kept = load() if GOLDENS.exists() else {}
    for name in wanted():
        if name not in kept:
            kept[name] = make(name)
    lines = (f"{json.dumps(name)}: {json.dumps(kept[name], sort_keys=True)}" for name in sorted(kept))
    GOLDENS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    if "--landed" in sys.argv[1:]:
        write_image(IMAGE)


if __name__ == "__main__":
    main()
