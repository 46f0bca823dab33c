"""Generates the stubs of package sev.v1 from the protos: `python -m tests.generate`. New fields get
their goldens (tests.api_goldens) on the way.

Needs the pinned grpcio-tools and mypy-protobuf of the `dev` extra, because generated code asks at run time for at
least the version that made it: the pin is the oldest version that we support.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "proto"
STUBS = ROOT / "client" / "sev" / "v1"

_CONSTRAINTS = re.compile(r"(TypeVar\(\n    '\w+',\n).*?(    default=)", re.DOTALL)
"""The two types that a method's type variable may have. A type checker looks at every combination of them over all
methods of a service, and needs all the memory there is from two dozen methods on; the default says what is needed."""


def generate(target: Path) -> None:
    """Writes the stubs below `target` (as target/sev/v1/...).

    Raises:
        subprocess.CalledProcessError: protoc or a plug-in failed.
    """
    files = sorted((PROTOS / "sev" / "v1").glob("*.proto"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *map(str, files)]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL)
    for file in files:
        if "\nservice " not in file.read_text():
            for suffix in (".py", ".pyi"):
                (target / "sev" / "v1" / f"{file.stem}_pb2_grpc{suffix}").unlink()
            continue
        types = target / "sev" / "v1" / f"{file.stem}_pb2_grpc.pyi"
        types.write_text(_CONSTRAINTS.sub(r"\1\2", types.read_text()))


if __name__ == "__main__":
    generate(ROOT / "client")
    # In a process of its own: it imports what was just made.
    subprocess.run(
        [sys.executable, "-m", "tests.api_goldens"],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "client")},
    )
