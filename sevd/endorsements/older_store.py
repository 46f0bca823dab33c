"""The store as it was before contents had digests for names: read once, taken over, and gone.

DIRECTORY/genoa/ark.der, ask.der, asvk.der, crl.der
DIRECTORY/genoa/vlek-TCB.der
DIRECTORY/genoa/CHIP/vcek-TCB.der
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sev.errors import MalformedInput, SevError
from sev.records import replace
from sevd import durable
from sevd.endorsements.entries import MAX_FILE, Stored, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

FILES_MAX = 4096
"""Files looked at; chips and TCBs of one machine are few."""

_NAME = re.compile(r"(ark|ask|asvk|crl|vlek-[0-9a-f]{16}|vcek-[0-9a-f]{16})\.der")
_FOLDER = re.compile(r"[a-z]{2,20}")


def take_over(
    directory: Path, report: Callable[[str], None], products: Collection[str] | None
) -> list[tuple[Stored, Path]]:
    """What lies there in the older layout, with the file of each; what is damaged is set aside and reported."""
    out = []
    for path in _files(directory, report, products):
        try:
            out.append((_read(directory, path), path))
        except SevError as error:
            set_aside(path, error.message, report)
        except OSError as error:
            report(f"{path} cannot be read: {error.strerror}.")
    return out


def set_aside(path: Path, why: str, report: Callable[[str], None], then: str = "import it again") -> None:
    """Renames a file that is not what it should be, and reports it; `then` says what becomes of it."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    try:
        durable.disk.rename(path, aside)
    except OSError as error:
        report(f"{path} is damaged ({why}) and cannot be renamed: {error.strerror}.")
    else:
        report(f"{path} is damaged ({why}); it was set aside as {aside.name}: {then}.")


def tidy(directory: Path) -> None:
    """Removes the folders of the older layout that are empty."""
    for folder in _folders(directory, None):
        for inside in [*(path for path in folder.iterdir() if path.is_dir()), folder]:
            with contextlib.suppress(OSError):
                inside.rmdir()


def _folders(directory: Path, products: Collection[str] | None) -> Iterator[Path]:
    if directory.is_dir():
        for folder in sorted(directory.iterdir()):
            known = _FOLDER.fullmatch(folder.name) and folder.name not in ("objects", "index")
            if known and folder.is_dir() and (products is None or folder.name in products):
                yield folder


def _files(directory: Path, report: Callable[[str], None], products: Collection[str] | None) -> Iterator[Path]:
    count = 0
    for top in _folders(directory, products):
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                count += 1
                if count > FILES_MAX:
                    report(f"{directory} holds more than {FILES_MAX} files; the others are not looked at.")
                    return
                if _NAME.fullmatch(name):
                    yield Path(folder, name)


def _read(directory: Path, path: Path) -> Stored:
    with path.open("rb") as file:
        moment = os.fstat(file.fileno()).st_mtime
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise MalformedInput(f"more than {MAX_FILE} bytes")
    name = path.relative_to(directory).with_suffix("").as_posix()
    stored = parse(data, name=name)
    if stored.name != name:
        raise MalformedInput(f"it holds what belongs to {stored.name}")
    return replace(stored, fetched=datetime.fromtimestamp(int(moment), UTC))
