"""This folder's tests may be coroutines, and run guests of their own on the real KVM."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from sev.launch.linux import LinuxKernel
from sev.launch.plain import Plain
from sev.launch.vcpu import allow_interrupts
from sev.v1 import guest_pb2 as pb
from sevd.worker import run_link, run_wire
from sevd.worker.vcpus import Vcpus
from tests.support import real_mode
from tests.support.aio import pytest_pyfunc_call
from tests.support.needs import need_kvm

__all__ = ["Client", "Guest", "pytest_pyfunc_call"]


class Client:
    """The other side of a run connection: what a daemon and its client are together."""

    def __init__(self, sock: socket.socket, posted_writes: int) -> None:
        self.sock = sock
        sock.settimeout(10)
        sock.send(run_wire.START + posted_writes.to_bytes(4, "little"))

    def next(self) -> pb.GuestExit | tuple[str, str, bool] | str:
        """An exit, a state, or an error; "" at the end."""
        packet = self.sock.recv(1 << 17)
        if not packet:
            return ""
        if packet[:1] == run_wire.EXITS:
            (found,) = pb.RunGuestResponse.FromString(packet[1:]).exits
            return found
        body = json.loads(packet[1:])
        if packet[:1] == run_wire.STATE:
            return body["state"], body["reason"], body["failed"]
        return str(body["message"])

    def exit(self) -> pb.GuestExit:
        """The next thing, which is an exit."""
        found = self.next()
        assert isinstance(found, pb.GuestExit), found
        return found

    def quiet(self, seconds: float = 0.1) -> bool:
        """Whether nothing comes for a while."""
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(10)
        return False

    def done(self, found: pb.GuestExit, data: bytes = b"") -> None:
        completion = pb.ExitCompletion(vcpu=found.vcpu, sequence=found.sequence, data=data)
        self.ask(pb.RunGuestRequest(completions=[completion]))

    def control(self, word: pb.RunControl.ValueType) -> None:
        self.ask(pb.RunGuestRequest(control=word))

    def ask(self, request: pb.RunGuestRequest) -> None:
        self.sock.send(run_wire.REQUEST + request.SerializeToString())


class Guest:
    """A plain guest with running vCPUs."""

    def __init__(self, program: bytes, vcpus: int = 1, others: bytes = real_mode.HLT) -> None:
        allow_interrupts()
        self.kernel = LinuxKernel()
        self.vm = Plain(self.kernel)
        self.vm.create(1 << 20, real_mode.RAM, vcpus, ap_reset_address=0x2000 if vcpus > 1 else 0)
        self.vm.memory(0xFFFF0000, real_mode.RAM)[:] = real_mode.firmware(program)
        # The others start in the segment 0xf000 with the address's base: at 0x2000.
        self.vm.memory(0x2000, len(others))[:] = others
        self.vm.start()
        self.vm.finish()
        self.vcpus = Vcpus(self.kernel, self.vm.machine)
        self.clients: list[Client] = []

    def connect(self, posted_writes: int = 0) -> Client:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        run_link.start(theirs, self.vcpus)
        self.clients.append(Client(ours, posted_writes))
        return self.clients[-1]

    def close(self) -> None:
        self.vcpus.close()
        for client in self.clients:
            client.sock.close()
        for thread in threading.enumerate():
            if thread.name == "run":
                thread.join(10)
        self.vm.close()
        self.kernel.exit()


@pytest.fixture
def make() -> Iterator[Callable[..., Guest]]:
    """Makes guests; checks that they leave no descriptor and no thread behind."""
    need_kvm()
    made: list[Guest] = []

    def guest(*pieces: bytes, vcpus: int = 1, others: bytes = real_mode.HLT) -> Guest:
        made.append(Guest(b"".join(pieces), vcpus, others))
        return made[-1]

    yield guest
    for each in made:
        each.close()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("vcpu-")]
    assert left == []
