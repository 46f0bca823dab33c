"""`sev guest launch` against a real simulated daemon: what it takes, what is refused and by whom; nothing left behind."""

from __future__ import annotations

import base64
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sev.measurement import snp_launch_digest
from sev.measurement.sample import sample_firmware
from tests.support.cli import COMMAND, sev
from tests.support.daemon import Daemon
from tests.support.guest_commands import delete, launch


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_launch(daemons: Callable[[str], Daemon], firmware: Path, product: str) -> None:
    daemon = daemons(product)
    before = daemon.asids()
    done = launch(daemon, firmware, "--vcpus", 3, "--vcpu-type", "EPYC-v4")
    assert done.code == 0, done.err
    document = done.json()
    assert set(document) == {"guest_id", "type", "state", "launch_digest", "expected_digest"}
    assert (document["type"], document["state"]) == ("snp", "ready")
    wanted = snp_launch_digest(firmware.read_bytes(), 3, vcpu_type="EPYC-v4").hex()
    assert document["launch_digest"] == document["expected_digest"] == wanted
    assert "SIMULATED" in done.err
    assert daemon.asids() == before + 1
    delete(daemon, document["guest_id"])
    assert daemon.asids() == before


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--vcpu-sig", "0x00a10f11"),
        ("--vcpu-type", "EPYC-Genoa", "--vcpus", "16"),
        ("--guest-features", "0x21"),
        ("--memory", "256MiB"),
        ("--policy", "smt,single_socket"),
        ("--policy", "0x30000", "--host-data", "5a" * 32),
        ("--vcek-disabled",),
    ],
)
def test_launch_options(daemon: Daemon, firmware: Path, words: tuple[str, ...]) -> None:
    done = launch(daemon, firmware, *words)
    assert done.code == 0, done.err
    document = done.json()
    assert document["launch_digest"] == document["expected_digest"]
    shown = sev("--socket", daemon.socket, "guest", "show", document["guest_id"], "--json").json()
    if "--memory" in words:
        assert shown["memory_bytes"] == 256 << 20
    if words[:1] == ("--policy",):
        assert shown["policy"] == ("0x130000" if "single" in words[1] else "0x30000")
    delete(daemon, document["guest_id"])


def test_launch_with_a_kernel(daemon: Daemon, firmware: Path, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(os.urandom(5000))
    (tmp_path / "initrd").write_bytes(os.urandom(7000))
    words = ("--kernel", tmp_path / "kernel", "--initrd", tmp_path / "initrd", "--append", "console=ttyS0")
    done = launch(daemon, firmware, *words)
    assert done.code == 0, done.err
    document = done.json()
    assert document["launch_digest"] == document["expected_digest"]
    plain = snp_launch_digest(firmware.read_bytes(), 1, vcpu_type="EPYC-v4").hex()
    assert document["launch_digest"] != plain
    delete(daemon, document["guest_id"])


@pytest.mark.parametrize(("form", "author"), [("binary", False), ("base64", False), ("binary", True)])
def test_launch_with_an_id_block(daemon: Daemon, firmware: Path, tmp_path: Path, form: str, author: bool) -> None:
    digest = snp_launch_digest(firmware.read_bytes(), 1, vcpu_type="EPYC-v4").hex()
    made = id_block(tmp_path, digest, author=author)
    if form == "base64":
        for path in made:
            path.write_bytes(base64.encodebytes(path.read_bytes()))
    done = launch(daemon, firmware, "--id-block", made[0], "--id-auth", made[1])
    assert done.code == 0, done.err
    guest_id = done.json()["guest_id"]
    report = tmp_path / "report"
    assert sev("--socket", daemon.socket, "guest", "report", guest_id, "--out", report).code == 0
    shown = sev("report", "show", report, "--json").json()
    assert shown["id_key_digest"].strip("0")
    assert bool(shown["author_key_digest"].strip("0")) == author
    delete(daemon, guest_id)


def private_key(path: Path) -> Path:
    """A new P-384 key in a PEM file."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(key)
    return path


def id_block(folder: Path, digest: str, *, author: bool = False) -> tuple[Path, Path]:
    """An ID block for this digest and its authentication page, made by the command itself."""
    more = ("--author-key", private_key(folder / "author.pem")) if author else ()
    block, auth = folder / "id.bin", folder / "auth.bin"
    done = sev(
        "id-block", "create", "--measurement", digest, "--id-key", private_key(folder / "key.pem"),
        "--out", block, "--auth-out", auth, *more,
    )  # fmt: skip
    assert done.code == 0, done.err
    return block, auth


def test_a_wrong_id_block_is_refused_by_the_firmware_and_leaves_nothing(
    daemon: Daemon, firmware: Path, tmp_path: Path
) -> None:
    block, auth = id_block(tmp_path, "00" * 48)
    done = launch(daemon, firmware, "--id-block", block, "--id-auth", auth)
    assert done.code == 6
    error = done.json()["error"]
    assert error["firmware_status"]["name"] == "BAD_MEASUREMENT"
    block, auth = id_block(tmp_path, snp_launch_digest(firmware.read_bytes(), 1, vcpu_type="EPYC-v4").hex())
    changed = bytearray(auth.read_bytes())
    changed[0x40] ^= 1
    auth.write_bytes(changed)
    done = launch(daemon, firmware, "--id-block", block, "--id-auth", auth)
    assert done.code == 6
    assert done.json()["error"]["firmware_status"]["name"] == "BAD_SIGNATURE"
    assert sev("--socket", daemon.socket, "guest", "list", "--json").json() == {"guests": []}


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ("0x3ffff", 6),
        ("0x0", 6),
        ("0x30000,", 2),
        ("nonsense", 2),
        ("0x1" + "0" * 16, 2),
        ("smt,debug", 0),
        ("debug", 6),
    ],
)
def test_policies(daemon: Daemon, firmware: Path, policy: str, code: int) -> None:
    done = launch(daemon, firmware, "--policy", policy)
    assert done.code == code, done.err
    if code == 6:
        error = done.json()["error"]
        assert error["kind"] == "refused"
        if policy == "0x0":  # the kernel refuses it before the firmware is asked
            assert error["errno"] == errno.EINVAL
        else:
            assert error["firmware_status"] == {"code": 7, "name": "POLICY_FAILURE"}
        assert error["remedy"]
        assert "may be left" not in error["remedy"]
    if code == 0:
        delete(daemon, done.json()["guest_id"])


@pytest.mark.parametrize(
    ("what", "code"),
    [("absent", 2), ("junk", 9), ("empty", 9), ("zeros", 9), ("directory", 2), ("odd", 9), ("huge", 2)],
)
def test_firmware_that_is_none(daemon: Daemon, tmp_path: Path, what: str, code: int) -> None:
    path = tmp_path / what
    contents = {"junk": os.urandom(65536), "empty": b"", "zeros": bytes(65536), "odd": bytes(4097)}
    if what in contents:
        path.write_bytes(contents[what])
    elif what == "directory":
        path.mkdir()
    elif what == "huge":
        with path.open("wb") as file:
            file.truncate(17 << 20)
    done = launch(daemon, path)
    assert done.code == code, done.err
    assert done.json()["error"]["message"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--id-block", "junk"), 9),
        (("--id-auth", "page"), 2),
        (("--id-block", "block"), 2),
        (("--id-block", "absent", "--id-auth", "page"), 2),
        (("--id-block", "block", "--id-auth", "junk"), 9),
        (("--host-data", "00"), 2),
        (("--initrd", "junk"), 2),
        (("--append", "x"), 2),
        (("--kernel", "absent"), 2),
        (("--memory", "4097"), 2),
        (("--memory", "4096"), 2),
        (("--vcpus", "0"), 2),
        (("--vcpu-type", "Pentium"), 2),
        (("--guest-features", "0"), 2),
        (("--type", "tdx"), 2),
        (("--label", "x" * 65), 2),
        (("--vcpu-type", "EPYC-v4", "--vcpu-sig", "1"), 2),
    ],
)
def test_options_that_do_not_fit(
    daemon: Daemon, firmware: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size in (("junk", 100), ("block", 96), ("page", 4096)):
        (tmp_path / name).write_bytes(os.urandom(size))
    done = launch(daemon, firmware, *words)
    assert done.code == code, done.err


def test_an_interrupted_launch_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    image = tmp_path / "large.fd"
    image.write_bytes(sample_firmware(16 << 20))
    before = daemon.asids()
    with daemon.connect() as host:
        process = subprocess.Popen(
            [*COMMAND, "--socket", daemon.socket, "guest", "launch", "--firmware", image, "--vcpus", "64"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until = time.monotonic() + 20
        while not host.guests() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert "Traceback" not in err
        if process.returncode == 0:  # it was quicker than we were
            for guest in host.guests():
                host.delete_guest(guest.guest_id)
            pytest.skip("the launch was over before it could be interrupted")
        assert process.returncode == 130, err
        assert host.guests() == []
    assert daemon.asids() == before
