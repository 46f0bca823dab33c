"""Programs of others, unmodified, from their own registries: found, or built once and kept in the user's cache.

    python -m tests.support.peers          builds all that is missing, and names what cannot be built

A test that needs one which is not there builds it if that takes seconds (Go), or minutes and SEVD_BUILD_PEERS=1 says so
(Rust); otherwise it is skipped with the reason, or fails with CI=true. SEVD_PEERS names a folder that is looked into
first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

CRATES = {"snpguest": "0.11.0", "snphost": "0.9.0", "sevctl": "0.6.2"}
GO_SEV_GUEST = "0.15.0"
GO_TOOLS = ("attest", "check")

_GO = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go")


class NotBuilt(Exception):
    """A program is not there and cannot be built; says why."""


def peer(name: str) -> Path:
    """Path of a program: snpguest, snphost, sevctl, or go-sev-guest's attest or check. Skips where it is not."""
    from tests.support.needs import lacking

    folder = os.environ.get("SEVD_PEERS")
    if folder and (Path(folder) / name).is_file():
        return Path(folder) / name
    path = _path(name)
    if path.is_file():
        return path
    if name in CRATES and os.environ.get("SEVD_BUILD_PEERS") != "1":
        lacking(
            f"needs {name}: build it with `python -m tests.support.peers` (minutes), or name a folder in SEVD_PEERS"
        )
    try:
        return build(name)
    except NotBuilt as error:
        lacking(str(error))


def build(name: str) -> Path:
    """Builds a program that is not there yet.

    Raises:
        NotBuilt: The toolchain is missing, or fails.
    """
    path = _path(name)
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            (_go if name in GO_TOOLS else _cargo)(name, path)
    return path


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sevd-ci" / "peers"


def _path(name: str) -> Path:
    """Where a program of the wanted version is kept."""
    origin = f"go-sev-guest-{GO_SEV_GUEST}" if name in GO_TOOLS else f"{name}-{CRATES[name]}"
    return _cache() / origin / "bin" / name


def _go(name: str, path: Path) -> None:
    go = shutil.which("go") or next((found for found in _GO if os.access(found, os.X_OK)), None)
    if go is None:
        raise NotBuilt(f"needs Go to build {name} of go-sev-guest")
    package = f"github.com/google/go-sev-guest/tools/{name}@v{GO_SEV_GUEST}"
    _run([go, "install", package], {"GOBIN": str(path.parent)})


def _cargo(name: str, path: Path) -> None:
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if cargo is None:
        raise NotBuilt(f"needs cargo to build {name}")
    install = [cargo, "install", "--root", str(path.parents[1]), "--version", f"={CRATES[name]}", name]
    # The system's libssl will do: building OpenSSL takes most of the time. The three share most of what they are of.
    environment = {"CARGO_TARGET_DIR": str(_cache() / "target"), "OPENSSL_NO_VENDOR": "1"}
    try:
        _run(install, environment)
    except NotBuilt:
        # A newer dependency that does not fit: those it was published with.
        _run([*install, "--locked"], environment)


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise NotBuilt(f"{' '.join(command[:2])} … {command[-1]} fails: {said}")


def main() -> int:
    """Builds what is missing; 1 if something cannot be built."""
    failed = 0
    for name in (*CRATES, *GO_TOOLS):
        try:
            sys.stdout.write(f"{build(name)}\n")
        except NotBuilt as error:
            failed = 1
            sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
    if not failed:
        shutil.rmtree(_cache() / "target", ignore_errors=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
