"""Values of options, and files that are read and written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.cli import values
from sev.cli.files import hash_file, read_file, write_file
from sev.errors import UsageError

GOOD: dict[str, tuple[Callable[[str], object], str, object]] = {
    "decimal": (values.integer(), "12", 12),
    "leading zero": (values.integer(), "010", 10),
    "hex": (values.integer(), "0x1F", 31),
    "binary": (values.integer(), "0b101", 5),
    "negative": (values.integer(-5, 5), "-3", -3),
    "features": (values.hex_integer(), "21", 0x21),
    "features with 0x": (values.hex_integer(), "0x21", 0x21),
    "bytes": (values.size(), "540672", 540672),
    "hex bytes": (values.size(), "0x84000", 0x84000),
    "MiB": (values.size(), "64MiB", 64 << 20),
    "G": (values.size(), "2g", 2 << 30),
    "MB": (values.size(), "1 MB", 1_000_000),
    "hexadecimal": (values.hex_bytes(2), "0xABcd", b"\xab\xcd"),
    "colons": (values.hex_bytes(2), "ab:cd", b"\xab\xcd"),
    "at most": (values.hex_bytes(maximum=4), "ab", b"\xab"),
    "none": (values.hex_bytes(), "", b""),
}

BAD: dict[str, tuple[Callable[[str], object], str, str]] = {
    "word": (values.integer(), "four", "expected a whole number"),
    "fraction": (values.integer(), "1.5", "expected a whole number"),
    "nothing": (values.integer(), "", "expected a whole number"),
    "above": (values.integer(0, 8), "9", "expected a number from 0 to 8"),
    "below": (values.integer(1, 8), "0", "expected a number from 1 to 8"),
    "far above": (values.integer(), "9" * 10000, "expected a whole number"),
    "no hex": (values.hex_integer(), "0xg", "expected a hexadecimal number"),
    "hex above": (values.hex_integer(0xFF), "100", "expected a number from 0x0 to 0xff"),
    "hex below": (values.hex_integer(), "-1", "expected a number"),
    "unit": (values.size(), "5parsecs", "expected a size"),
    "no number": (values.size(), "MiB", "expected a size"),
    "large": (values.size(maximum=10), "11", "expected a size from 0 to 10"),
    "odd digits": (values.hex_bytes(), "abc", "expected hexadecimal digits"),
    "not hex": (values.hex_bytes(), "zz" * 40, "..."),
    "short": (values.hex_bytes(16), "ab", "expected 16 bytes (32 hexadecimal digits), not 1 bytes"),
    "long": (values.hex_bytes(maximum=1), "abcd", "expected at most 1 bytes"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_values(name: str) -> None:
    kind, text, expected = GOOD[name]
    assert kind(text) == expected


@pytest.mark.parametrize("name", BAD)
def test_bad_values(name: str) -> None:
    kind, text, message = BAD[name]
    with pytest.raises(ArgumentTypeError) as caught:
        kind(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200 or len(text) > 1000


@given(
    st.text(max_size=30), st.sampled_from([values.integer(), values.hex_integer(), values.size(), values.hex_bytes()])
)
def test_any_text_is_a_value_or_refused(text: str, kind: Callable[[str], object]) -> None:
    try:
        kind(text)
    except ArgumentTypeError as error:
        message = str(error)
    else:
        message = "expected nothing else"
    assert "expected" in message


@given(st.integers(0, 2**64 - 1))
def test_numbers_read_back(number: int) -> None:
    assert (
        values.integer()(str(number)) == values.integer()(hex(number)) == values.hex_integer()(f"{number:x}") == number
    )


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    assert read_file(str(path), "the file", 5000) == b"x" * 5000
    assert hash_file(str(path), "the file") == sha256(b"x" * 5000).digest()
    (tmp_path / "empty").touch()
    assert read_file(str(tmp_path / "empty"), "the file", 10) == b""
    assert hash_file(str(tmp_path / "empty"), "the file") == sha256(b"").digest()


UNREADABLE = {
    "missing": "/nonexistent/file",
    "directory": "/",
    "NUL in the name": "a\0b",
    "empty name": "",
    "name too long": "n" * 5000,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read(name: str) -> None:
    with pytest.raises(UsageError, match="cannot read the thing"):
        read_file(UNREADABLE[name], "the thing", 10)
    with pytest.raises(UsageError, match="cannot read the thing"):
        hash_file(UNREADABLE[name], "the thing")


def test_limits_hold_for_files_and_for_devices(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 11)
    with pytest.raises(UsageError, match="larger than 10 bytes"):
        read_file(str(path), "the file", 10)
    with pytest.raises(UsageError, match="larger than 3000000 bytes"):
        read_file("/dev/zero", "the file", 3_000_000)
    os.truncate(path, 1 << 40)  # sparse
    with pytest.raises(UsageError, match="larger than 10 bytes"):
        read_file(str(path), "the file", 10)


def test_stdin() -> None:
    code = "from sev.cli.files import *; print(read_file('-', 'x', 9), hash_file('-', 'x').hex())"
    done = subprocess.run([sys.executable, "-c", code], input=b"abc", capture_output=True, check=True)
    assert done.stdout.decode().split() == ["b'abc'", sha256(b"").hexdigest()]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_writing_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(str(path), b"one")
    assert path.read_bytes() == b"one"
    assert _mode(path) == 0o666 & ~_umask()
    before = path.stat().st_ino
    write_file(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_ino != before
    assert os.listdir(tmp_path) == ["file"]


def test_secrets_are_for_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_file(str(path), b"secret", secret=True)
    assert (path.read_bytes(), _mode(path)) == (b"secret", 0o600)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="not a regular file"):
        write_file(str(link), b"secret", secret=True)
    with pytest.raises(UsageError, match="not a regular file"):
        write_file("/dev/null", b"secret", secret=True)
    assert not (tmp_path / "elsewhere").exists()


def test_links_and_devices_are_written_through(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    write_file(str(link), b"data")
    assert link.is_symlink()
    assert (tmp_path / "target").read_bytes() == b"data"
    write_file("/dev/null", b"data")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("path", ["/nonexistent/folder/file", "/", "a\0b", ""])
def test_what_cannot_be_written(path: str) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        write_file(path, b"data")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
