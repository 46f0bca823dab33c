"""A disk that remembers what was asked of it, and every state in which a power cut may leave it.

    with recording(folder) as disk:
        ...                              # the work, on the real file system below `folder`
    for cut in disk.cuts():
        cut.lay_out(tmp)                 # the folder as it may be after the cut

What counts is what POSIX promises, and no more: the content of a file outlives a cut when the file was synced, a name
when its folder was. Everything else may be there or not. At every operation each of these is tried: nothing of what was
not synced, all of it, the names without the content, names with half of the content or with zeros for it, and of
several names in one folder only the first.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sevd import durable


@dataclass
class File:
    """Content that would outlive a cut, and content as it is read now."""

    safe: bytes = b""
    now: bytes = b""


@dataclass
class Folder:
    """Names that would outlive a cut, and changes of names in their order that may not."""

    safe: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    pending: list[tuple[str, int | None]] = field(default_factory=list)

    def change(self, name: str, node: int | None) -> None:
        """Gives a name to a node, or takes it away."""
        self.pending.append((name, node))
        _apply(self.now, name, node)


def _apply(names: dict[str, int], name: str, node: int | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


State = dict[int, File | Folder]


@dataclass
class Cut:
    """One state after a cut.

    Attributes:
        at: After how many operations.
        what: The operation that was the last, and what of it is there.
        files: Content by path below the folder; None for a folder.
    """

    at: int
    what: str
    files: dict[str, bytes | None]

    def lay_out(self, target: Path) -> None:
        """Makes the files below a new folder."""
        target.mkdir(parents=True)
        for path, content in self.files.items():
            if content is None:
                (target / path).mkdir(parents=True, exist_ok=True)
            else:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                (target / path).write_bytes(content)


class Recorder(durable.Disk):
    """The disk. Operations happen on the real one too; those outside of the folder are not remembered.

    Args:
        base: The folder; what lies there counts as safe.

    Attributes:
        done: How many operations there were.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._open: dict[int, int] = {}
        self._nodes: State = {}
        self._next = 0
        self._history: list[tuple[str, State]] = []
        self._root = self._read(base)
        self._remember("begin")

    @property
    def done(self) -> int:
        """How many operations there were."""
        return len(self._history) - 1

    def create(self, path: Path, mode: int) -> int:
        descriptor = super().create(path, mode)
        self._open[descriptor] = self._new(File())
        self._name(path, self._open[descriptor], f"create {path.name}")
        return descriptor

    def append(self, path: Path, mode: int) -> int:
        there = path.exists()
        descriptor = super().append(path, mode)
        folder = self._folder(path.parent)
        if folder is not None:
            if there:
                self._open[descriptor] = folder.now[path.name]
            else:
                self._open[descriptor] = self._new(File())
                self._name(path, self._open[descriptor], f"append {path.name}")
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        done = super().write(descriptor, data)
        self._file(descriptor).now += bytes(data[:done])
        self._remember("write")
        return done

    def truncate(self, descriptor: int, size: int) -> None:
        super().truncate(descriptor, size)
        node = self._file(descriptor)
        node.now = node.now[:size]
        self._remember("truncate")

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        node = self._file(descriptor)
        node.safe = node.now
        self._remember("sync")

    def sync_data(self, descriptor: int) -> None:
        self.sync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        folder = self._folder(old.parent)
        if folder is not None:
            assert old.parent == new.parent, "renames stay in their folder"
            node = folder.now[old.name]
            # One change for the journal of a file system: never both names, never neither.
            folder.change(new.name, node)
            folder.pending[-1] = (f"{old.name}\0{new.name}", node)
            folder.now.pop(old.name)
            self._remember(f"rename {new.name}")

    def link(self, old: Path, new: Path) -> None:
        super().link(old, new)
        folder = self._folder(old.parent)
        if folder is not None:
            self._name(new, folder.now[old.name], f"link {new.name}")

    def remove(self, path: Path) -> None:
        super().remove(path)
        folder = self._folder(path.parent)
        if folder is not None:
            folder.change(path.name, None)
            self._remember(f"remove {path.name}")

    def make_directory(self, path: Path, mode: int) -> None:
        super().make_directory(path, mode)
        if self._folder(path.parent) is not None:
            self._name(path, self._new(Folder()), f"mkdir {path.name}")

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        folder = self._folder(path)
        if folder is not None:
            folder.safe, folder.pending = dict(folder.now), []
            self._remember(f"sync folder {path.name}")

    def cuts(self) -> Iterator[Cut]:
        """Every state that differs from those before it."""
        seen: set[tuple[tuple[str, bytes | None], ...]] = set()
        for at, (what, state) in enumerate(self._history):
            for kept, names, content in _VARIANTS:
                files: dict[str, bytes | None] = {}
                self._lay(state, self._root, "", names, content, files)
                key = tuple(sorted(files.items()))
                if key not in seen:
                    seen.add(key)
                    yield Cut(at, f"{what}: {kept}", files)

    def _lay(
        self, state: State, number: int, path: str, names: int, content: str, files: dict[str, bytes | None]
    ) -> None:
        node = state[number]
        if isinstance(node, File):
            files[path] = _content(node, content)
            return
        if path:
            files[path] = None
        for name, below in _names(node, names).items():
            self._lay(state, below, f"{path}/{name}" if path else name, names, content, files)

    def _remember(self, what: str) -> None:
        self._history.append((what, copy.deepcopy(self._nodes)))

    def _new(self, node: File | Folder) -> int:
        self._next += 1
        self._nodes[self._next] = node
        return self._next

    def _name(self, path: Path, node: int, what: str) -> None:
        folder = self._folder(path.parent)
        if folder is not None:
            folder.change(path.name, node)
            self._remember(what)

    def _file(self, descriptor: int) -> File:
        node = self._nodes[self._open[descriptor]]
        assert isinstance(node, File)
        return node

    def _folder(self, path: Path) -> Folder | None:
        """The folder of a path; None outside of the base."""
        if path != self._base and self._base not in path.parents:
            return None
        node = self._nodes[self._root]
        for part in path.relative_to(self._base).parts:
            assert isinstance(node, Folder)
            node = self._nodes[node.now[part]]
        assert isinstance(node, Folder)
        return node

    def _read(self, path: Path) -> int:
        """What lies there by now."""
        if not path.is_dir():
            content = path.read_bytes()
            return self._new(File(content, content))
        names = {one.name: self._read(one) for one in path.iterdir() if one.is_dir() or one.is_file()}
        return self._new(Folder(dict(names), dict(names)))


def _names(folder: Folder, count: int) -> dict[str, int]:
    """The names if so many of the pending changes are there; a rename is one change of two names."""
    names = dict(folder.safe)
    for name, node in folder.pending[:count]:
        old, renamed, new = name.partition("\0")
        if renamed:
            names.pop(old, None)
            _apply(names, new, node)
        else:
            _apply(names, name, node)
    return names


def _content(file: File, kept: str) -> bytes:
    grown = file.now.startswith(file.safe)
    added = file.now[len(file.safe) :] if grown else file.now
    base = file.safe if grown else b""
    return {
        "safe": file.safe,
        "all": file.now,
        "half": base + added[: len(added) // 2],
        "zeros": base + bytes(len(added)),
    }[kept]


_ALL = 1 << 30
_VARIANTS = (
    ("nothing that was not synced", 0, "safe"),
    ("everything", _ALL, "all"),
    ("names without content", _ALL, "safe"),
    ("half of the content", _ALL, "half"),
    ("zeros for content", _ALL, "zeros"),
    ("the first name", 1, "all"),
    ("the first name without content", 1, "safe"),
)


@contextmanager
def recording(base: Path) -> Iterator[Recorder]:
    """Remembers what is done below a folder."""
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(base)
        patch.setattr(durable, "disk", recorder)
        yield recorder


def tree(base: Path) -> dict[str, bytes]:
    """Files below a folder."""
    return {os.fspath(path.relative_to(base)): path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()}
