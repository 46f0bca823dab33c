"""configfs-tsm's report folder: attributes, when writes take effect, what reading answers."""

from __future__ import annotations

import errno
import os
import stat
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sev import status
from sev.abi import cert_table
from sev.attestation import Report
from sevd.simulator import Simulator
from sevd.simulator.errnos import FirmwareRefused
from sevd.simulator.fuse.nodes import Directory, FileNode
from sevd.simulator.guest_device import SevGuestDevice
from sevd.simulator.guest_ref import GuestRef
from sevd.simulator.svsm import VTPM_GUID
from sevd.simulator.tsm_nodes import MAX_ENTRIES, Entry, ReportFolder
from tests.support.guest_program import NONCE, GuestProgram, nowhere, running_guest
from tests.support.tsm_tree import ROOT, Tree

PLAIN = {"inblob": 0o200, "outblob": 0o444, "auxblob": 0o444, "provider": 0o444, "generation": 0o444}
PLAIN |= {"privlevel": 0o200, "privlevel_floor": 0o444}
OF_SVSM = {"manifestblob": 0o444, "service_provider": 0o200, "service_guid": 0o200, "service_manifest_version": 0o200}


@pytest.mark.parametrize(("fixture", "expected"), [("tree", PLAIN), ("under_svsm", PLAIN | OF_SVSM)])
def test_an_entry_has_its_attributes_at_once(
    request: pytest.FixtureRequest, fixture: str, expected: dict[str, int]
) -> None:
    tree: Tree = request.getfixturevalue(fixture)
    entry = tree.folder.lookup("e")
    assert isinstance(entry, Directory)
    assert stat.S_IMODE(entry.mode) == 0o755
    assert {name: stat.S_IMODE(tree.file(name).mode) for name in entry.names()} == expected
    assert entry.lookup("nothing") is None


def test_a_report_with_the_hosts_certificates(tree: Tree, table: bytes) -> None:
    tree.write("inblob", NONCE)
    report = Report.parse(tree.read("outblob"))
    assert (report.report_data, report.vmpl) == (NONCE, 0)
    assert tree.read("auxblob") == table
    assert len(cert_table.parse(tree.read("auxblob"))) == 3


def test_a_host_without_certificates_has_an_empty_auxblob(guest: GuestRef) -> None:
    tree = Tree(SevGuestDevice(guest, lambda: b""))
    tree.write("inblob", NONCE)
    assert tree.read("auxblob") == b""
    assert Report.parse(tree.read("outblob")).report_data == NONCE


def test_texts(tree: Tree, under_svsm: Tree) -> None:
    assert (tree.read("provider"), tree.read("privlevel_floor"), tree.read("generation")) == (
        b"sev_guest\n",
        b"0\n",
        b"0\n",
    )
    assert under_svsm.read("privlevel_floor") == b"2\n"


@pytest.mark.parametrize("name", ["outblob", "auxblob"])
def test_blobs_without_an_input_are_EINVAL(tree: Tree, name: str) -> None:
    assert tree.error(name) == "EINVAL"


@pytest.mark.parametrize("size", [1, 32, 63])
def test_a_short_input_is_accepted_and_refused_when_it_is_used(tree: Tree, size: int) -> None:
    tree.write("inblob", NONCE[:size])
    assert tree.generation == 1
    assert tree.error("outblob") == "EINVAL"
    tree.write("inblob", NONCE)
    assert tree.error("outblob") == "ok"


def test_more_than_64_bytes_are_EFBIG(tree: Tree) -> None:
    handle = tree.open("inblob", os.O_WRONLY)
    assert _errno(lambda: handle.write(0, bytes(65))) == "EFBIG"
    assert _errno(lambda: handle.write(64, b"x")) == "EFBIG"
    assert handle.write(0, NONCE[:32]) == 32
    assert _errno(lambda: handle.write(32, bytes(33))) == "EFBIG"
    assert handle.write(32, NONCE[32:]) == 32
    handle.flush()
    handle.release()
    assert Report.parse(tree.read("outblob")).report_data == NONCE


def test_the_input_takes_effect_when_the_file_is_closed(tree: Tree) -> None:
    handle = tree.open("inblob", os.O_WRONLY)
    handle.write(0, NONCE)
    assert (tree.generation, tree.error("outblob")) == (0, "EINVAL")
    handle.flush()
    assert tree.generation == 1
    handle.release()
    assert tree.generation == 1
    assert Report.parse(tree.read("outblob")).report_data == NONCE


def test_a_gap_in_the_input_is_zeros(tree: Tree) -> None:
    handle = tree.open("inblob", os.O_WRONLY)
    handle.write(60, b"tail")
    handle.flush()
    handle.release()
    assert Report.parse(tree.read("outblob")).report_data == bytes(60) + b"tail"


def test_closing_without_a_write_changes_nothing(tree: Tree) -> None:
    handle = tree.open("inblob", os.O_WRONLY)
    handle.flush()
    handle.release()
    assert tree.generation == 0


def test_every_write_counts_and_makes_the_report_anew(tree: Tree) -> None:
    tree.write("inblob", NONCE)
    first = tree.read("outblob")
    assert tree.read("outblob") == first
    tree.write("privlevel", b"2")
    assert tree.generation == 2
    assert Report.parse(tree.read("outblob")).vmpl == 2
    tree.write("inblob", NONCE)
    assert tree.generation == 3


def test_one_reading_is_one_report(tree: Tree, guest: GuestRef) -> None:
    tree.write("inblob", NONCE)
    before = guest.messages(0)
    tree.read("auxblob")
    tree.read("outblob")
    tree.read("outblob")
    assert guest.messages(0) == before + 2


def test_an_open_file_keeps_what_it_has_read(tree: Tree) -> None:
    tree.write("inblob", NONCE)
    handle = tree.open("outblob", os.O_RDONLY)
    first = handle.read(0, 100)
    tree.write("inblob", bytes(64))
    assert handle.read(0, 100) == first
    handle.release()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"0", "ok"), (b"3\n", "ok"), (b"+2", "ok"), (b"0x1\n", "ok"), (b"03", "ok"),
        (b"4", "EINVAL"), (b"-1", "EINVAL"), (b"", "EINVAL"), (b"two", "EINVAL"), (b"1 ", "EINVAL"), (b"08", "EINVAL"),
        (b"1\n\n", "EINVAL"), (b"4294967296", "ERANGE"), (b"0xffffffffffffffffffff", "ERANGE"), (b"1\x002", "ok"),
    ],
)  # fmt: skip
def test_privlevel(tree: Tree, text: bytes, expected: str) -> None:
    handle = tree.open("privlevel", os.O_WRONLY)
    assert _errno(lambda: handle.write(0, text)) == expected
    handle.release()
    assert tree.generation == int(expected == "ok")


def test_a_level_below_the_floor_is_EINVAL(under_svsm: Tree) -> None:
    assert under_svsm.error("privlevel", b"1") == "EINVAL"
    assert under_svsm.error("privlevel", b"2") == "ok"


def test_under_an_svsm_the_default_level_is_refused(under_svsm: Tree) -> None:
    under_svsm.write("inblob", NONCE)
    assert under_svsm.error("outblob") == "EINVAL"
    under_svsm.write("privlevel", b"3")
    assert Report.parse(under_svsm.read("outblob")).vmpl == 3
    assert under_svsm.read("manifestblob") == b""


@pytest.mark.parametrize("name", ["inblob", "privlevel"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_what_is_written_cannot_be_opened_for_reading(tree: Tree, name: str, flags: int) -> None:
    assert _errno(lambda: tree.open(name, flags)) == "EACCES"


@pytest.mark.parametrize("name", ["outblob", "auxblob", "generation", "provider", "privlevel_floor"])
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_what_is_read_cannot_be_opened_for_writing(tree: Tree, name: str, flags: int) -> None:
    assert _errno(lambda: tree.open(name, flags)) == "EACCES"


def test_a_count_that_would_wrap_onto_the_last_reading_is_EBUSY(tree: Tree) -> None:
    tree.write("inblob", NONCE)
    assert tree.error("outblob") == "ok"
    entry = tree.folder.lookup("e")
    assert isinstance(entry, Entry)
    entry.report._written = 0
    assert tree.error("privlevel", b"1") == "EBUSY"
    tree.write("inblob", bytes(64))  # which nobody is told
    assert tree.generation == 0
    assert tree.error("outblob") == "ok"
    assert tree.error("privlevel", b"1") == "ok"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(status.INVALID_PARAM, "EINVAL"), (status.INVALID_KEY, "EINVAL"), (status.UNSUPPORTED, "ENXIO")],
)
def test_a_status_in_the_response(tree: Tree, guest: GuestRef, code: int, expected: str) -> None:
    from sev.abi.guest_message import Header
    from sevd.simulator.guest_requests import seal

    device = tree.folder._device

    def answer(message: bytes) -> bytes:
        sent = Header.decode(message)
        header = Header(b"", sent.sequence + 1, sent.message_type + 1, 1, 32, 0)
        return seal(guest.vmpck(0), header, code.to_bytes(4, "little") + bytes(28))

    device.channel._host._guest = _With(guest, answer)  # type: ignore[assignment]
    tree.write("inblob", NONCE)
    assert tree.error("outblob") == expected


def test_a_driver_whose_key_was_given_up_says_so_to_both_faces(
    tree: Tree, device: SevGuestDevice, host: Simulator
) -> None:
    def faults(_command: str) -> None:
        raise _Refused

    tree.write("inblob", NONCE)
    host.faults = faults
    assert tree.error("outblob") == "EIO"
    host.faults = lambda _command: None
    assert tree.error("outblob") == "ENOTTY"
    assert GuestProgram(device).report().name == "ENOTTY"


def test_a_removed_entry_answers_open_files_with_ENOENT(tree: Tree) -> None:
    tree.write("inblob", NONCE)
    fresh = tree.open("outblob", os.O_RDONLY)
    begun = tree.open("outblob", os.O_RDONLY)
    first = begun.read(0, 10)
    writer = tree.open("privlevel", os.O_WRONLY)
    blob = tree.open("inblob", os.O_WRONLY)
    attribute = tree.file("provider")
    tree.folder.rmdir("e", ROOT)
    assert tree.folder.lookup("e") is None
    assert _errno(lambda: fresh.read(0, 10)) == "ENOENT"
    assert begun.read(0, 10) == first
    assert _errno(lambda: writer.write(0, b"1")) == "ENOENT"
    assert blob.write(0, NONCE) == 64
    blob.flush()
    assert _errno(lambda: attribute.open(os.O_RDONLY, ROOT)) == "ENOENT"


def test_names(tree: Tree) -> None:
    assert _errno(lambda: tree.mkdir("e")) == "EEXIST"
    assert _errno(lambda: tree.folder.rmdir("f", ROOT)) == "ENOENT"
    tree.mkdir("f")
    assert sorted(tree.folder.names()) == ["e", "f"]
    assert tree.folder.lookup("f") is tree.folder.lookup("f")


def test_nothing_can_be_made_or_removed_inside_an_entry(tree: Tree) -> None:
    entry = tree.folder.lookup("e")
    assert isinstance(entry, Directory)
    assert _errno(lambda: entry.mkdir("x", 0o755, ROOT)) == "EPERM"
    assert _errno(lambda: entry.rmdir("x", ROOT)) == "EPERM"
    assert _errno(lambda: entry.unlink("inblob", ROOT)) == "EPERM"
    assert _errno(lambda: tree.folder.unlink("e", ROOT)) == "EPERM"


def test_entries_are_independent(tree: Tree) -> None:
    tree.mkdir("f")
    tree.write("inblob", NONCE)
    assert tree.read("generation", "f") == b"0\n"
    tree.write("inblob", bytes(64), "f")
    assert Report.parse(tree.read("outblob")).report_data == NONCE
    assert Report.parse(tree.read("outblob", "f")).report_data == bytes(64)


def test_leaked_entries_make_room_longest_left_alone_first(tree: Tree) -> None:
    for number in range(MAX_ENTRIES - 1):
        tree.mkdir(f"n{number}")
    held = tree.open("generation", os.O_RDONLY, "n0")
    tree.read("generation", "e")
    tree.read("generation", "n1")
    tree.mkdir("one more")
    tree.mkdir("and another")
    names = tree.folder.names()
    assert len(names) == MAX_ENTRIES
    assert {"e", "n0", "n1"} <= set(names)
    assert not {"n2", "n3"} & set(names)
    held.release()


def test_entries_that_are_all_in_use_are_ENOSPC(device: SevGuestDevice) -> None:
    folder = ReportFolder(device, 1)
    entry = folder.mkdir("a", 0, ROOT)
    assert isinstance(entry, Entry)
    node = entry.lookup("provider")
    assert isinstance(node, FileNode)
    handle = node.open(os.O_RDONLY, ROOT)
    assert _errno(lambda: folder.mkdir("b", 0, ROOT)) == "ENOSPC"
    handle.release()
    folder.mkdir("b", 0, ROOT)
    assert folder.names() == ["b"]


def test_a_guest_that_has_ended(host: Simulator) -> None:
    with running_guest(host) as guest:
        tree = Tree(SevGuestDevice(guest, lambda: b""))
        tree.write("inblob", NONCE)
    assert tree.error("outblob") == "ENODEV"
    assert _errno(lambda: tree.mkdir("x")) == "ENXIO"


def test_vtpm_keys_belong_to_guests(host: Simulator) -> None:
    manifests = set()
    for _ in range(2):
        with running_guest(host) as guest:
            device = SevGuestDevice(guest, lambda: b"", svsm=True)
            assert device.svsm is not None
            manifests.add(device.svsm.attest(NONCE, VTPM_GUID.bytes_le, 0)[2])
    assert len(manifests) == 2


@settings(max_examples=100)
@given(text=st.binary(max_size=80), name=st.sampled_from(["privlevel", "service_guid", "service_manifest_version"]))
def test_hostile_texts(text: bytes, name: str) -> None:
    tree = Tree(nowhere(svsm=True))
    assert tree.error(name, text) in ("ok", "EINVAL", "ERANGE")


@settings(max_examples=50)
@given(guid=st.uuids())
def test_any_guid_is_taken(guid: UUID) -> None:
    assert Tree(nowhere(svsm=True)).error("service_guid", str(guid).encode()) == "ok"


class _Refused(FirmwareRefused):
    def __init__(self) -> None:
        super().__init__(errno.EIO, status.INVALID_PARAM)


class _With:
    """A guest whose messages are answered by a test."""

    def __init__(self, guest: GuestRef, answer: object) -> None:
        self.send = answer
        self.running = guest.running


def _errno(function: object) -> str:
    assert callable(function)
    try:
        function()
    except OSError as refused:
        return errno.errorcode[refused.errno or 0]
    return "ok"
