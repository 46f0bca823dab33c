"""Files are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sevd import durable


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    durable.write(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "write", "rename"])
def test_what_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        durable.write(path, b"new", 0o600)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_power_loss_left_growing_is_swept(tmp_path: Path) -> None:
    durable.temporary_name(tmp_path / "key").write_bytes(b"half")
    for name in ("key", ".key", ".key.0123", ".key.0123456789ag", "key.0123456789ab"):
        (tmp_path / name).touch()
    durable.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ("key", ".key", ".key.0123", ".key.0123456789ag", "key.0123456789ab")
    )


def test_folders_are_made_with_those_above_them(tmp_path: Path) -> None:
    durable.make_directories(tmp_path / "a" / "b", 0o700)
    durable.make_directories(tmp_path / "a" / "b", 0o700)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
