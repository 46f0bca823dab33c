"""Programs of others, unmodified, from their own registries: found, or built once and kept.

They are looked for in the folder that SEVD_PEERS names, then in the user's cache. What is missing there is built if its
toolchain is here: Go programs at once, Rust programs only with SEVD_BUILD_PEERS=1, for they take minutes. Otherwise the
test is skipped with the reason.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.needs import lacking

CRATES = {"snpguest": "0.11.0", "snphost": "0.9.0", "sevctl": "0.6.2"}
GO_SEV_GUEST = "0.15.0"
GO_TOOLS = ("attest", "check")

_GO = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go")


def peer(name: str) -> Path:
    """Path of a program: snpguest, snphost, sevctl, or go-sev-guest's attest or check."""
    for folder in (os.environ.get("SEVD_PEERS"), _cache()):
        found = Path(folder) / name if folder else None
        if found is not None and found.is_file():
            return found
    return _build(name)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sevd-peers" / "bin"


def _build(name: str) -> Path:
    folder = _cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name).is_file():
            command, environment = _go(name, folder) if name in GO_TOOLS else _cargo(name, folder)
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
            )
            if done.returncode:
                lacking(f"{name} cannot be built: {done.stderr.strip().splitlines()[-1:]}")
    return folder / name


def _go(name: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    go = shutil.which("go") or next((path for path in _GO if os.access(path, os.X_OK)), None)
    if go is None:
        lacking(f"needs {name} of go-sev-guest, or Go to build it")
    package = f"github.com/google/go-sev-guest/tools/{name}@v{GO_SEV_GUEST}"
    return [go, "install", package], {"GOBIN": str(folder)}


def _cargo(name: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    cargo = shutil.which("cargo")
    if cargo is None or os.environ.get("SEVD_BUILD_PEERS") != "1":
        lacking(f"needs {name} in SEVD_PEERS, or SEVD_BUILD_PEERS=1 and cargo to build it (minutes)")
    target = folder.parent / "target"
    install = [cargo, "install", "--root", str(folder.parent), "--version", f"={CRATES[name]}", name]
    # The system's libssl will do; building OpenSSL takes most of the time.
    return install, {"CARGO_TARGET_DIR": str(target), "OPENSSL_NO_VENDOR": "1"}
