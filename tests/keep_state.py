"""Keeps the state directory of a daemon of an earlier commit: `python -m tests.keep_state COMMIT`.

Builds the wheel of the commit, runs its daemon on a simulated host, asks a few things of it, and packs what it leaves:
tests/goldens/state/COMMIT.tar.gz, and beside it COMMIT.json with what a later daemon must still know. Where the commit
has workers and this machine has KVM, the card of a worker's guest is packed too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from tests.support.wheels import wheel_of

KEPT = Path(__file__).resolve().parent / "goldens/state"

IDS = {
    "done": "11111111-1111-4111-8111-111111111111",
    "refused": "22222222-2222-4222-8222-222222222222",
}
"""Request ids of a call that was done, and of one that failed."""

_ASK = """
import json, sys
import grpc
from sev.v1 import snp_platform_pb2 as snp, guest_pb2 as guest
target, ids = sys.argv[1], json.loads(sys.argv[2])
with grpc.insecure_channel(target) as channel:
    def call(method, request, answer):
        made = channel.unary_unary("/sev.v1." + method, type(request).SerializeToString, answer.FromString)
        return made(request, timeout=30, wait_for_ready=True)
    done = call("SnpPlatformService/CommitSnp", snp.CommitSnpRequest(confirm=True, request_id=ids["done"]),
                snp.CommitSnpResponse)
    try:
        call("GuestService/DeleteGuest", guest.DeleteGuestRequest(guest_id="no-such-guest", confirm=True, request_id=ids["refused"]),
             guest.DeleteGuestResponse)
        raise SystemExit("a guest that does not exist was deleted")
    except grpc.RpcError as error:
        refused = error.code().name
    try:
        call("SnpPlatformService/CommitSnp", snp.CommitSnpRequest(), snp.CommitSnpResponse)
        raise SystemExit("a commit without confirmation was done")
    except grpc.RpcError:
        pass
print(json.dumps({"done": done.SerializeToString().hex(), "refused": refused}))
"""


def main() -> None:
    """Packs the state of each commit that is named."""
    for commit in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            _keep(commit, Path(folder))


def _keep(commit: str, folder: Path) -> None:
    site = folder / "site"
    with zipfile.ZipFile(wheel_of(commit, folder)) as packed:
        packed.extractall(site)
    state = folder / "state"
    with _daemon(site, folder, state, "--simulate=genoa", "--seed=7") as process:
        told = json.loads(_python(site, _ASK, f"unix:{folder}/s", json.dumps(IDS)))
        _python(site, "from sev.cli.main import entry; entry()", "--socket", f"{folder}/s", "certs", "export",
                "--out", f"{folder}/certs")  # fmt: skip
        for name in ("vcek.pem", "ark.pem", "ask.pem"):
            told[name] = (folder / "certs" / name).read_text()
        pems = [f"{folder}/certs/{name}" for name in ("ark.pem", "ask.pem", "vcek.pem")]
        _python(site, "from sev.cli.main import entry; entry()", "--socket", f"{folder}/s", "certs", "import", *pems)
        process.terminate()
        process.wait(30)
    told["guest"] = ""
    if (site / "sevd/worker").is_dir() and Path("/dev/kvm").exists():
        told["guest"] = _worker(site, folder, state)
    KEPT.mkdir(parents=True, exist_ok=True)
    with tarfile.open(KEPT / f"{commit}.tar.gz", "w:gz") as archive:
        archive.add(state, "state", filter=_plain)
    (KEPT / f"{commit}.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{KEPT / commit}\n")


def _worker(site: Path, folder: Path, state: Path) -> str:
    """Has a worker write its guest's card, and keeps a copy of its folder without the worker."""
    other = folder / "other"
    (folder / "sevd.toml").write_text("[guests]\nplain = true\n")
    (folder / "image").write_bytes(b"\xf4" * 4096)
    with _daemon(site, folder, other, f"--config={folder}/sevd.toml") as process:
        entry = "from sev.cli.main import entry; entry()"
        words = ("launch", "--type", "plain", "--firmware", f"{folder}/image", "--memory", "8MiB")
        launched = json.loads(_python(site, entry, "--socket", f"{folder}/s", "--json", "guest", *words))
        (card,) = (other / "workers").glob("*/guest.json")
        kept = state / "workers" / card.parent.name
        kept.mkdir(mode=0o700, parents=True)
        (kept / "guest.json").write_bytes(card.read_bytes())
        guest = str(launched["guest_id"])
        _python(site, entry, "--socket", f"{folder}/s", "--yes", "guest", "delete", guest)
        process.terminate()
        process.wait(30)
    return guest


def _daemon(site: Path, folder: Path, state: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sevd", "--socket", f"{folder}/s", "--state-dir", str(state), *options]
    process = subprocess.Popen(command, env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"}, cwd=folder)
    until = time.monotonic() + 60
    while not Path(f"{folder}/s").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return process


def _python(site: Path, program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": "/"},
        cwd=site,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Whose they are does not matter; sockets do not last."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member if member.isfile() or member.isdir() else None


if __name__ == "__main__":
    main()
