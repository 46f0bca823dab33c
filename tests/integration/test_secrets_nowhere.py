"""Where the secrets of SEV are not: a guest owner's keys and secret, and a platform owner's key, through a whole launch.

All that the programs said and wrote is searched, in every spelling that a log would have, also of what they refused.
Files that hold a secret are their owner's alone from the moment at which they exist.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import sev
from sev.session import secret
from tests.support.device_files import ROOT, command
from tests.support.needs import need_fuse
from tests.support.tiny_firmware import tiny_firmware

SECRET = b"Rosebud? 47 sleighs, all of them burnt; nobody is told."
SECRET_AT = 0x6000
PUBLIC = {
    "sim/log", "daemon/log", "daemon/sevd.toml", "daemon/state/certs.bin",
    *(f"sim/state/simulator/rome/{name}" for name in ("ark.der", "ask.der", "cek.cert", "legacy-ca.cert")),
    *(f"sim/state/simulator/rome/{name}" for name in ("authority.json", "platform.json")),
}  # fmt: skip
"""What others may read in the programs' folders: certificates, what this test made, the chip's versions and TCB."""


def spellings(value: bytes) -> set[bytes]:
    """A value in the forms in which it might be written down."""
    found = {value, value[::-1], repr(value)[2:-1].encode(), str(list(value))[1:-1].encode()}
    found |= {str(int.from_bytes(value, order)).encode() for order in ("big", "little")}
    for one in (value, value[::-1]):
        found |= {one.hex().encode(), one.hex().upper().encode(), one.hex(" ").encode(), one.hex(":").encode()}
        for shift in range(3):  # base64 of something that it lies in
            text = b64encode(bytes(shift) + one)
            found.add(text[(0, 2, 3)[shift] : -4])
    found.add("".join(f"\\u{byte:04x}" for byte in value).encode())
    return found


@pytest.mark.parametrize("shift", range(4))
def test_the_search_finds_what_is_there(shift: int) -> None:
    wanted = spellings(SECRET)
    around = bytes(range(shift)) + SECRET + b"\xff" * 5
    for text in (
        around,
        around.hex().encode(),
        b64encode(around),
        json.dumps(list(SECRET)).encode(),
        repr(around).encode(),
    ):
        assert any(one in text for one in wanted), text
    assert not any(one in b64encode(os.urandom(4096)) for one in wanted)


@dataclass
class Story:
    """Programs on one host, and everything that they said.

    Attributes:
        folder: Its folder: `sim` and `daemon` of the programs, `owner` of whoever has secrets.
        said: What commands printed.
    """

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)

    @property
    def owner(self) -> Path:
        return self.folder / "owner"

    @property
    def socket(self) -> str:
        return f"{self.folder}/daemon/s"

    def watched(self, name: str, module: str, *words: object) -> list[str]:
        log = self.folder / "watched" / name
        return [sys.executable, "-m", "tests.support.watched", str(log), module, *map(str, words)]

    def start(self, name: str, module: str, *words: object) -> None:
        with (self.folder / name / "log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(self.watched(name, module, *words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def sev(self, *words: object, fails: bool = False) -> bytes:
        """A command of an owner; what it prints."""
        program = self.watched(f"sev-{len(self.said)}", "sev.cli.main:main", "--socket", self.socket, "-v", *words)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            program, capture_output=True, cwd=self.owner, env=environment, stdin=subprocess.DEVNULL, check=False
        )
        assert bool(done.returncode) == fails, (words, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr
        self.said.append(" ".join(map(str, words)).encode() + b"\n" + done.stdout + done.stderr)
        return done.stdout

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """What can be searched: by name."""
        for number, text in enumerate(self.said):
            yield f"output {number}: {text[:40]!r}", text
        for part in ("sim", "daemon"):
            for path in files(self.folder / part):
                yield str(path.relative_to(self.folder)), path.read_bytes()

    def events(self, wanted: str) -> list[tuple[str, str, int]]:
        """What the programs did to files: (path, kind, mode)."""
        lines = [line for log in (self.folder / "watched").iterdir() for line in log.read_text().splitlines()]
        return [(name, kind, mode) for event, name, kind, mode in map(json.loads, lines) if event == wanted]


def files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        served = "/sim/dev/" in str(path)  # the simulated kernel's own files
        if not served and not path.is_symlink() and path.is_file():
            yield path


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    need_fuse()
    made = Story(tmp_path_factory.mktemp("story"))
    for name in ("owner", "watched", "sim", "daemon"):
        (made.folder / name).mkdir(mode=0o700)
    (made.folder / "daemon" / "sevd.toml").write_text('[daemon]\nlog_level = "debug"\n')
    try:
        module, *options = command(made.folder / "sim", product="rome")[2:]
        made.start("sim", module, *options)  # with a chip of its own, whose keys it makes
        until = time.monotonic() + 120
        while not (made.folder / "sim" / "dev" / "sev").exists():
            assert made.processes[0].poll() is None, (made.folder / "sim" / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        made.start(
            "daemon", "sevd", "--config", made.folder / "daemon" / "sevd.toml", "--simulator", made.folder / "sim" / "dev",
            "--socket", made.socket, "--state-dir", made.folder / "daemon" / "state",
        )  # fmt: skip
        while not os.path.exists(made.socket):
            assert made.processes[1].poll() is None, (made.folder / "daemon" / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield made
    finally:
        for process in reversed(made.processes):
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.fixture(scope="module")
def told(story: Story) -> Story:
    """The story from the platform's owner to the guest's secret, with a mistake at every step."""
    owner, run = story.owner, story.sev
    (owner / "image").write_bytes(tiny_firmware(b"\xf4"))
    (owner / "secret").write_bytes(SECRET)
    run("certs", "generate", "oca.cert", "oca.key")
    run("certs", "generate", "other.cert", "other.key")
    run("platform", "own", "--oca-cert", "oca.cert", "--oca-key", "other.key", "--yes", fails=True)
    run("platform", "own", "--oca-cert", "oca.cert", "--oca-key", "secret", "--yes", fails=True)
    run("platform", "own", "--oca-cert", "oca.cert", "--oca-key", "oca.key", "--yes")
    run("platform", "own", "--oca-cert", "oca.cert", "--oca-key", "oca.key", "--yes", fails=True)
    run("platform", "csr", "--out", "csr")
    run("certs", "sign", "csr", "--oca-cert", "other.cert", "--oca-key", "other.key", "--out", "pek")
    run("certs", "sign", "csr", "--oca-cert", "other.cert", "--oca-key", "oca.key", "--out", "pek", fails=True)
    run("platform", "export", "--out", "chain", "--ca-out", "ca")
    run("session", "create", "chain", "0", "--out", ".", fails=True)
    run("session", "create", "chain", "0", "--roots", "ca", "--out", ".")
    launch = ("guest", "launch", "--type", "sev", "--firmware", "image", "--vcpu-type", "EPYC-Rome", "--hold", "--json")
    run(*launch, "--session", ".", "--policy", 0x2, fails=True)
    launched = json.loads(run(*launch, "--session", ".", "--policy", 0))
    guest = launched["guest_id"]
    run("guest", "measure", guest, "--out", "blob")
    version = ("--api-major", 0, "--api-minor", 24, "--build-id", 20, "--policy", 0)
    digest = ("--launch-digest", launched["expected_digest"])
    run("measurement", "check", "blob", *version, "--tik", "vm_tik.bin", *digest)
    run("measurement", "check", "blob", *version, "--tik", "vm_tek.bin", *digest, fails=True)
    run("measurement", "check", "blob", *version, "--tik", "secret", *digest, fails=True)
    keys = ("--tik", "vm_tik.bin", "--launch-measure-blob", "blob", "--secret", f"{secret.DISK_PASSPHRASE}:secret")
    run("secret", "build", "header", "payload", "--tek", "vm_tek.bin", *keys)
    run("secret", "build", "header2", "payload2", "--tek", "secret", *keys, fails=True)
    (owner / "bad").write_bytes((owner / "payload").read_bytes()[::-1])
    run("secret", "inject", guest, "header", "bad", "--gpa", hex(SECRET_AT), fails=True)
    run("secret", "inject", guest, "header", "payload", "--gpa", hex(SECRET_AT))
    run("guest", "finish", guest)
    run("guest", "report", guest, "--out", "report")
    run("guest", "show", guest)
    run("platform", "pdh", "rotate", "--yes")
    with sev.connect(story.socket) as host:  # the secret is there, for whoever may debug the guest
        seen = host.read_guest_memory(guest, SECRET_AT, (owner / "payload").stat().st_size)
    assert secret.read_table(seen) == [(secret.DISK_PASSPHRASE, SECRET)]
    return story


def scalar(key: Path) -> bytes:
    """The number of a P-384 private key, 48 bytes."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    loaded = load_der_private_key(key.read_bytes(), None)
    assert isinstance(loaded, EllipticCurvePrivateKey)
    return loaded.private_numbers().private_value.to_bytes(48, "big")


def needles(told: Story) -> dict[str, bytes]:
    return {
        "the secret": SECRET,
        "TEK": (told.owner / "vm_tek.bin").read_bytes(),
        "TIK": (told.owner / "vm_tik.bin").read_bytes(),
        "the owner's key": scalar(told.owner / "oca.key"),
        "another owner's key": scalar(told.owner / "other.key"),
    }


def test_no_program_says_or_keeps_them(told: Story) -> None:
    places = list(told.everything())
    assert {"sim/log", "daemon/log", "daemon/state/audit.jsonl"} <= {name for name, _ in places}
    audit = dict(places)["daemon/state/audit.jsonl"]
    for method in ("ImportPek", "InjectGuestSecret", "FinishGuestLaunch"):
        assert method.encode() in audit, "the story is in the trail"
    for what, value in needles(told).items():
        wanted = spellings(value)
        assert [name for name, text in places if any(one in text for one in wanted)] == [], what


def test_no_process_shows_them_to_others(told: Story) -> None:
    """Neither on command lines nor in environments; and none of them would leave a core."""
    pids = [process.pid for process in told.processes]
    pids += [int(name) for name in os.listdir("/proc") if name.isdecimal() and parent(int(name)) in pids]
    assert len(pids) >= 3, "simulator, daemon, worker"
    for pid in pids:
        shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        for what, value in needles(told).items():
            assert not any(one in shown for one in spellings(value)), what
        (limit,) = (
            line.split()[4] for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in line
        )
        assert limit in ("0", "1"), "too little for a core"


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_what_is_secret_is_its_owners_from_the_beginning(told: Story) -> None:
    """Without a umask, and without a change of modes afterwards."""
    served = f"{told.folder}/sim/dev/"  # certificates and facts that anybody may read
    changed = [name for name, kind, _ in told.events("os.chmod") if kind == "file" and not name.startswith(served)]
    assert changed == []
    created = [name for name, _, _ in told.events("open")]
    assert any("/owner/vm_tek.bin." in name for name in created), "what was created is known"
    assert any("/daemon/state/" in name for name in created)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in files(told.folder)}
    for name in ("oca.key", "other.key", "vm_tek.bin", "vm_tik.bin"):
        assert modes[told.owner / name] == 0o600, name
    for name in ("oca.cert", "vm_session.b64", "payload"):
        assert modes[told.owner / name] == 0o666, "what is not secret is as the umask has it"
    programs = [path for part in ("sim", "daemon") for path in files(told.folder / part)]
    assert {str(path.relative_to(told.folder)) for path in programs if modes[path] & 0o077} == PUBLIC
    private = [path for path in programs if str(path.relative_to(told.folder)) not in PUBLIC]
    assert any(path.name == "flash.json" for path in private)
    assert {oct(modes[path]) for path in private} == {"0o600"}
