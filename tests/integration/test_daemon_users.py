"""Other users of this machine and the real daemon: the role matrix, isolation, socket modes. For root only."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevd.access.roles import Role
from tests.support.running import copy_state, running
from tests.support.serving import METHODS

USERS = {Role.VIEWER: 61011, Role.LAUNCHER: 61012, Role.ADMIN: 61013, None: 61014}
OTHER_LAUNCHER = 61015

CLIENT = """
import json, os, sys, time
import grpc
uid, target, calls = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
grpc.insecure_channel("unix:/nonexistent").close()  # loads what a user without rights in this place could not
os.setgroups([]); os.setgid(uid); os.setuid(uid)
out = []
with grpc.insecure_channel(target) as channel:
    for path, shape, request in calls:
        call = getattr(channel, shape)(path)
        try:
            data = bytes.fromhex(request)
            answer = call(iter([data]) if shape.startswith("stream") else data, timeout=10)
            if shape.endswith("stream"):
                answer.initial_metadata()  # comes with the stream, or when it has ended
                until = time.monotonic() + 0.5
                while answer.is_active() and time.monotonic() < until:
                    time.sleep(0.01)
                if not answer.is_active():
                    out.append([answer.code().name, answer.details()])
                    continue
                answer.cancel()
                answer = b""
            out.append(["OK", answer.hex()])
        except grpc.RpcError as error:
            out.append([error.code().name, error.details()])
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def target(simulated_state: Path) -> Iterator[str]:
    """A daemon on a socket that everybody may open: what is refused is refused by identity."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("other users can be tried as root only, and this is the run that must try them")
        pytest.skip("other users can be tried as root only")
    with tempfile.TemporaryDirectory(prefix="sevd-users-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        copy_state(simulated_state, folder)
        roles = {f"{role.text}_users": [str(uid)] for role, uid in USERS.items() if role is not None}
        roles["launcher_users"].append(str(OTHER_LAUNCHER))
        lines = [f"{key} = {json.dumps(value)}" for key, value in roles.items()]
        (folder / "c.toml").write_text("[access]\n" + "\n".join(lines) + "\n")
        with running(folder, "--simulate=genoa", "--config", f"{folder}/c.toml") as daemon:
            (folder / "s").chmod(0o666)
            yield daemon.target


def as_user(uid: int, target: str, calls: list[tuple[str, str, bytes]]) -> list[list[str]]:
    """(status name, answer in hex or sentence) of calls made by another user."""
    encoded = json.dumps([(path, shape, request.hex()) for path, shape, request in calls])
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(uid), target, encoded],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=True,
    )
    out: list[list[str]] = json.loads(done.stdout)
    return out


def shape_of(method: Any) -> str:
    return f"{'stream' if method.uploads else 'unary'}_{'stream' if method.streams else 'unary'}"


@pytest.mark.root
@pytest.mark.parametrize(
    "role", [Role.VIEWER, Role.LAUNCHER, Role.ADMIN, None], ids=lambda r: r.text if r else "nobody"
)
def test_every_method_from_every_role_as_another_user(target: str, role: Role | None) -> None:
    calls = [(method.path, shape_of(method), b"") for method in METHODS]
    answers = as_user(USERS[role], target, calls)
    for method, (status, _) in zip(METHODS, answers, strict=True):
        if role is None:
            assert status == "UNAVAILABLE", method.name
        elif role < method.role:
            assert status == "PERMISSION_DENIED", method.name
        else:
            # Let in: what an empty request then lacks is the logic's to say.
            assert status in ("OK", "INVALID_ARGUMENT", "NOT_FOUND"), (method.name, status)


@pytest.mark.root
def test_another_launcher_cannot_tell_a_foreign_guest_from_none(target: str) -> None:
    from sev.v1 import guest_pb2, simulator_pb2

    def words(guest: str) -> list[tuple[str, str, bytes]]:
        service = "/sev.v1.GuestService"
        return [
            (f"{service}/GetGuest", "unary_unary", guest_pb2.GetGuestRequest(guest_id=guest).SerializeToString()),
            (
                f"{service}/DeleteGuest",
                "unary_unary",
                guest_pb2.DeleteGuestRequest(guest_id=guest, confirm=True).SerializeToString(),
            ),
            (
                f"{service}/StartGuestLaunch",
                "unary_unary",
                guest_pb2.StartGuestLaunchRequest(guest_id=guest, policy=0x30000).SerializeToString(),
            ),
            (
                f"{service}/LoadGuestMemory",
                "stream_unary",
                guest_pb2.LoadGuestMemoryRequest(guest_id=guest, data=b"x").SerializeToString(),
            ),
            (
                "/sev.v1.SimulatorService/RequestGuestReport",
                "unary_unary",
                simulator_pb2.RequestGuestReportRequest(guest_id=guest, report_data=bytes(64)).SerializeToString(),
            ),
        ]

    request = guest_pb2.CreateGuestRequest(
        type=guest_pb2.GUEST_TYPE_SNP,
        guest_id="guest-private",
        memory_bytes=1 << 20,
        firmware_bytes=1 << 16,
        vcpu_count=1,
        cpuid_signature=0x00A10F11,
    )
    create = [("/sev.v1.GuestService/CreateGuest", "unary_unary", request.SerializeToString())]
    assert as_user(USERS[Role.LAUNCHER], target, create)[0][0] == "OK"
    foreign = as_user(OTHER_LAUNCHER, target, words("guest-private"))
    absent = as_user(OTHER_LAUNCHER, target, words("guest-nothing"))
    assert [status for status, _ in foreign] == ["NOT_FOUND"] * len(foreign)
    assert [(status, text.replace("guest-nothing", "guest-private")) for status, text in absent] == [
        (status, text) for status, text in foreign
    ]
    listing = [("/sev.v1.GuestService/ListGuests", "unary_unary", b"")]
    (status, answer), *_ = as_user(OTHER_LAUNCHER, target, listing)
    assert status == "OK"
    assert not guest_pb2.ListGuestsResponse.FromString(bytes.fromhex(answer)).guests
    for uid in (USERS[Role.LAUNCHER], USERS[Role.ADMIN]):
        assert as_user(uid, target, words("guest-private")[:1])[0][0] == "OK"
    deleted = as_user(USERS[Role.LAUNCHER], target, words("guest-private")[1:2])
    assert deleted[0][0] == "OK"


@pytest.mark.root
def test_a_socket_of_root_belongs_to_the_group_if_there_is_one(
    simulated_state: Path, tmp_path: Path, target: str
) -> None:
    copy_state(simulated_state, tmp_path)
    config = tmp_path / "c.toml"
    config.write_text('[daemon]\nsocket_group = "daemon"\n')
    with running(tmp_path, "--simulate=genoa", "--config", str(config)):
        found = os.stat(tmp_path / "s")
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, _gid("daemon"))
    config.write_text('[daemon]\nsocket_group = "no-such-group-here"\n')
    with running(tmp_path, "--simulate=genoa", "--config", str(config)):
        assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o600


def _gid(name: str) -> int:
    import grp

    return grp.getgrnam(name).gr_gid
