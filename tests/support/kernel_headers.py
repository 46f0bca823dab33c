"""What the kernel's own headers say: sizes, offsets and constants, printed by a program that a C compiler made of them.

Every item is a line of its own in the program; a line that does not compile is an item that these headers do not have
(they are older than it), and is left out. So one program serves headers of any age.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

INCLUDES = (
    "stddef.h", "stdio.h", "string.h", "linux/kvm.h", "linux/kvm_para.h", "linux/psp-sev.h", "linux/sev-guest.h",
    "linux/version.h",
)  # fmt: skip

_PROLOGUE = (
    "".join(f"#include <{name}>\n" for name in INCLUDES)
    + """
static void number(const char *name, unsigned long long value) { printf("%s\\"%s\\": %llu", "", name, value); }
static void bytes(const char *name, const void *data, size_t size) {
    printf("\\"%s\\": \\"", name);
    for (size_t i = 0; i < size; i++) printf("%02x", ((const unsigned char *)data)[i]);
    printf("\\"");
}
"""
)
_TIMEOUT = 120


@dataclass(frozen=True)
class Item:
    """One thing to print.

    Attributes:
        name: What it is called in the answer.
        code: A statement that prints it by that name.
    """

    name: str
    code: str


def constant(name: str, expression: str) -> Item:
    """A number of at most 64 bits."""
    return Item(name, f'number("{name}", (unsigned long long)({expression}));')


def size(name: str, kind: str) -> Item:
    """Bytes of a type."""
    return constant(name, f"sizeof({kind})")


def member(name: str, kind: str, field: str) -> tuple[Item, Item]:
    """Offset and size of a member."""
    where = constant(f"{name}@", f"offsetof({kind}, {field})")
    return where, constant(f"{name}#", f"sizeof((({kind} *)0)->{field})")


def bit_field(name: str, kind: str, field: str) -> Item:
    """A structure of zeros in which one bit-field has all its bits set, in hex."""
    code = f'{{ {kind} x; memset(&x, 0, sizeof x); x.{field} = -1; bytes("{name}", &x, sizeof x); }}'
    return Item(name, code)


@dataclass(frozen=True)
class Headers:
    """One set of headers.

    Attributes:
        name: For people.
        folders: Where they are, searched before the compiler's own; none for the system's.
    """

    name: str
    folders: tuple[Path, ...] = ()


def available() -> list[Headers]:
    """The system's headers, and newer ones where $SEV_KERNEL_HEADERS or the package ziglang has them."""
    found = [Headers("system")]
    given = os.environ.get("SEV_KERNEL_HEADERS", "")
    if given:
        found.append(Headers("newer", tuple(Path(part) for part in given.split(os.pathsep))))
    elif spec := importlib.util.find_spec("ziglang"):
        base = Path(next(iter(spec.submodule_search_locations or ()))) / "lib" / "libc" / "include"
        found.append(Headers("newer", (base / "x86-linux-any", base / "any-linux-any")))
    return found


def compiler() -> str | None:
    """A C compiler; None if there is none, or it has no kernel headers."""
    path = shutil.which("cc") or shutil.which("gcc")
    if path is None:
        return None
    done = subprocess.run(
        [path, "-fsyntax-only", "-x", "c", "-"],
        input="#include <linux/kvm.h>\n#include <linux/psp-sev.h>\n", text=True, capture_output=True, check=False,
        timeout=_TIMEOUT,
    )  # fmt: skip
    return path if done.returncode == 0 else None


def ask(headers: Headers, items: list[Item], folder: Path, path: str) -> tuple[dict[str, int | str], set[str]]:
    """The values by name, and the names of the items that these headers do not have."""
    source, program = folder / "ask.c", folder / "ask"
    flags = [flag for one in headers.folders for flag in ("-I", str(one))]
    left = [constant("LINUX_VERSION_CODE", "LINUX_VERSION_CODE"), *items]
    names = {item.name for item in left}
    assert len(names) == len(left), "two items of one name"
    for _ in range(2):
        source.write_text(_program(left))
        done = subprocess.run(
            [path, "-w", "-fmax-errors=0", *flags, "-o", str(program), str(source)],
            capture_output=True, text=True, check=False, timeout=_TIMEOUT,
        )  # fmt: skip
        if done.returncode == 0:
            break
        broken = {int(line) for line in re.findall(rf"^{re.escape(str(source))}:(\d+):\d+: error", done.stderr, re.M)}
        first = _PROLOGUE.count("\n") + 1
        assert broken, done.stderr[-2000:]
        assert min(broken) >= first, done.stderr[-2000:]
        left = [item for number, item in enumerate(left, first) if number not in broken]
    else:
        raise AssertionError(done.stderr[-2000:])
    answer = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=_TIMEOUT).stdout
    values: dict[str, int | str] = json.loads(answer)
    return values, names - set(values)


def _program(items: list[Item]) -> str:
    lines = [f"static void item{number}(void) {{ {item.code} }}" for number, item in enumerate(items)]
    calls = ['printf("{");', *[f"item{number}();" + ' printf(",\\n");' for number in range(len(items))]]
    ending = 'printf("\\"end\\": 0}"); return 0; }'
    # Each item's function stands on one line of its own, behind the prologue.
    return _PROLOGUE + "\n".join(lines) + "\nint main(void) {\n" + "\n".join([*calls, ending]) + "\n"
