"""Whatever a program asks of /dev/sev, in any era: what holds always."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev import status
from sev.abi import sev_certificate
from sev.abi import sev_device as abi
from sevd.simulator import Simulator, kernel_era
from sevd.simulator.process import Process
from tests.support.caller import UNTOUCHED, Outcome, issue
from tests.support.legacy import Owner, check_chain
from tests.support.simulated import simulated_host

UNMAPPED = 0x1000
LENGTHS = (
    0,
    1,
    64,
    sev_certificate.SIZE - 1,
    sev_certificate.SIZE,
    sev_certificate.CHAIN_SIZE,
    0x4000,
    0x4001,
    1 << 31,
)
ERRNOS = {0, errno.EIO, errno.EPERM, errno.EFAULT, errno.EINVAL, errno.ENODEV, errno.ENOMEM}
BEFORE_THE_FIRMWARE = {errno.EPERM, errno.ENODEV, errno.ENOMEM}
OWNER = Owner()

address = st.sampled_from(("buffer", "none", "nowhere"))
length = st.sampled_from(LENGTHS)
ask = st.tuples(
    st.integers(0, 13),
    st.booleans(),
    st.sampled_from(("structure", "none", "nowhere", "noise")),
    st.tuples(address, length, address, length),
    st.binary(min_size=128, max_size=128),
)


@pytest.fixture(scope="module", params=kernel_era.ERAS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulated_host(tmp_path_factory.mktemp("random"), era=request.param) as made:
        yield made


class Program:
    """A program with one big buffer, whatever the structures point to."""

    def __init__(self, host: Simulator) -> None:
        self.process: Process = host.process()
        self.writer = self.process.open("/dev/sev", os.O_RDWR)
        self.reader = self.process.open("/dev/sev", os.O_RDONLY)
        self.places = {"buffer": self.process.memory.place(bytearray(0x8000)), "none": 0, "nowhere": UNMAPPED}

    def structure(self, command: int, fields: tuple[str, int, str, int], noise: bytes) -> bytes:
        first, first_length, second, second_length = fields
        pair = self.places[first], first_length, self.places[second], second_length
        if command in (abi.PEK_CSR, abi.GET_ID2):
            return abi.PekCsr(pair[0], pair[1]).encode()
        if command == abi.PDH_CERT_EXPORT:
            return abi.PdhCertExport(*pair).encode()
        if command == abi.PEK_CERT_IMPORT:
            return abi.PekCertImport(*pair).encode()
        if command == abi.SNP_VLEK_LOAD:
            return abi.SnpVlekLoad(16, 0, pair[0]).encode()
        return bytes(64) if command == abi.SNP_SET_CONFIG else noise

    def ask(self, command: int, writable: bool, data: str, fields: tuple[str, int, str, int], noise: bytes) -> Outcome:
        given_: dict[str, bytes | int] = {
            "none": 0,
            "nowhere": UNMAPPED,
            "noise": noise,
            "structure": self.structure(command, fields, noise),
        }
        return issue(self.process, self.writer if writable else self.reader, command, given_[data])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ask, min_size=1, max_size=25))
def test_what_holds_always(
    host: Simulator, asks: list[tuple[int, bool, str, tuple[str, int, str, int], bytes]]
) -> None:
    program = Program(host)
    ccp, firmware = host.ccp, host.firmware
    try:
        for command, writable, data, fields, noise in asks:
            outcome = program.ask(command, writable, data, fields, noise)
            assert outcome.errno in ERRNOS
            if outcome.errno == 0:
                assert outcome.error == 0
            elif outcome.errno == errno.EIO:
                assert outcome.error not in (0, UNTOUCHED)
                assert outcome.error & ~0xFFFF == 0
            elif outcome.errno in BEFORE_THE_FIRMWARE:
                assert outcome.error == UNTOUCHED
            if command == abi.COMMAND_MAX:
                assert (outcome.errno, outcome.error) == (errno.EINVAL, UNTOUCHED)
            if not writable and command in (0, 2, 3, 4, 6):
                assert outcome.errno == errno.EPERM
            # The driver's idea of the platform is right, and SEV and SNP stand in an order that the firmware allows.
            assert ccp.initialised == (firmware.platform_status()[2] != abi.STATE_UNINIT)
            assert ccp.snp_initialised == (firmware.snp_platform_status()[2] != abi.STATE_UNINIT)
    finally:
        program.process.exit()


def test_the_platform_is_whole_afterwards(host: Simulator) -> None:
    """Runs after the random programs on the same hosts."""
    program = Program(host)
    process = program.process
    assert issue(process, program.writer, abi.FACTORY_RESET).name == "ok"
    place = program.places["buffer"]
    request = abi.PdhCertExport(place, sev_certificate.SIZE, place + 0x4000, sev_certificate.CHAIN_SIZE).encode()
    csr = abi.PekCsr(place, sev_certificate.SIZE).encode()
    assert issue(process, program.writer, abi.PEK_CSR, csr).name == "ok"
    signed = OWNER.sign(process.memory.read(place, sev_certificate.SIZE))
    process.memory.write(place, signed + OWNER.oca)
    pair = (place, len(signed), place + len(signed), len(OWNER.oca))
    assert issue(process, program.writer, abi.PEK_CERT_IMPORT, abi.PekCertImport(*pair).encode()).name == "ok"
    again = issue(process, program.writer, abi.PEK_CERT_IMPORT, abi.PekCertImport(*pair).encode())
    assert again[:2] == (errno.EIO, status.ALREADY_OWNED)
    assert issue(process, program.writer, abi.PDH_CERT_EXPORT, request).name == "ok"
    pdh = process.memory.read(place, sev_certificate.SIZE)
    chain = check_chain(pdh, process.memory.read(place + 0x4000, sev_certificate.CHAIN_SIZE), host.firmware.ca)
    assert chain[2] == OWNER.certificate
    process.exit()
