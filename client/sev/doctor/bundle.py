"""The bundle: one compressed archive with a document for each section, and a page that says what is in it."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sev.doctor.gather import Section

FOLDER = "sev-doctor"
"""The folder that the archive unpacks to."""


def files(sections: Sequence[Section], *, names: bool) -> list[tuple[str, str, bytes]]:
    """Name, meaning and content of every file."""
    out = [
        (f"{one.name}.json", one.what, json.dumps(one.content, indent=2, default=str).encode() + b"\n")
        for one in sections
    ]
    return [("README.txt", "what is in here", _readme(out, names=names)), *out]


def pack(contents: Sequence[tuple[str, str, bytes]], now: float) -> bytes:
    """The archive (tar, gzip) of these files; nobody's name is in it."""
    import gzip
    import tarfile

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, _, data in contents:
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o644, int(now)
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), mtime=int(now))


def _readme(contents: Sequence[tuple[str, str, bytes]], *, names: bool) -> bytes:
    lines = ["Made by `sev doctor` for a report of a bug. Please look through it before you send it.", ""]
    lines += [f"{name:<22}{what}" for name, what, _ in contents]
    lines += [
        "",
        "Left out: keys, certificates, tokens, launch secrets and measurements, the content of guests and of state",
        "files, and every long run of hexadecimal digits or base64 wherever it stood.",
    ]
    if names:
        lines.append("Names of users, groups, guests, this machine and its network addresses are in it.")
    else:
        lines.append("Names of users, groups, guests, this machine and network addresses are replaced by stand-ins.")
    return ("\n".join(lines) + "\n").encode()
