"""Where the real artefacts lie: beside the repository, never in it. Tests that need them skip where they are absent."""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def _folder(name: str) -> Path:
    path = _SHARED / name
    if not path.is_dir():
        pytest.skip(f"{name} of real hardware is not beside the repository", allow_module_level=True)
    return path


def __getattr__(name: str) -> Path:
    if name == "DATA":
        return _folder("data")
    if name == "FACTS":
        return _folder("facts")
    raise AttributeError(name)


DATA: Path
FACTS: Path
