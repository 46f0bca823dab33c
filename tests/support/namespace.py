"""Programs that open fixed paths and ask fixed hosts, run with others there: private mount and network namespaces, in
which nothing of the machine changes for anybody else. Needs root."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.needs import need_program, need_root

KDS_PORTS = (443, 444)
_NODES = ("null", "zero", "full", "random", "urandom", "tty")

# Arguments: pairs of a file and the path where it shall stand, "--", the command. sysfs and configfs take no new
# folders: a tmpfs hides what is there.
_SCRIPT = f"""
set -e
dev=$(mktemp -d)
mount -t tmpfs -o mode=755 none "$dev"
for node in {" ".join(_NODES)}; do : >"$dev/$node"; mount --bind "/dev/$node" "$dev/$node"; done
ln -s /proc/self/fd "$dev/fd"; ln -s fd/0 "$dev/stdin"; ln -s fd/1 "$dev/stdout"; ln -s fd/2 "$dev/stderr"
mkdir "$dev/shm"
while [ "$1" != -- ]; do
  case $2 in
    /dev/*) at=$dev/${{2#/dev/}} ;;
    /sys/kernel/*) [ -e "$2" ] || mount -t tmpfs none /sys/kernel; at=$2 ;;
    /sys/module/*) [ -e "$2" ] || mount -t tmpfs none /sys/module; at=$2 ;;
    *) at=$2 ;;
  esac
  if [ -d "$1" ]; then mkdir -p "$at"; elif [ ! -e "$at" ]; then mkdir -p "$(dirname "$at")"; : >"$at"; fi
  mount --bind "$1" "$at"
  shift 2
done
shift
mount --rbind "$dev" /dev
umount -l "$dev"; rmdir "$dev"
exec "$@"
"""


@dataclass(frozen=True)
class Network:
    """A network of its own, with one HTTPS server that is known by the name of AMD's.

    Attributes:
        descriptor: The network namespace, open in this process.
        hosts: What stands at /etc/hosts.
        trust: PEM file of whom to trust for the server.
    """

    descriptor: int
    hosts: Path
    trust: Path


def inside(files: Mapping[str, Path], command: Sequence[str], network: Network | None = None) -> list[str]:
    """A command line that runs a command with files at chosen paths.

    Args:
        files: What stands at a path. /dev holds nothing else but the usual nodes.
        command: The command.
        network: The network it sees, if not the machine's.
    """
    need_root()
    need_program("unshare")
    placed = dict(files)
    line = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "namespace"]
    if network is not None:
        placed["/etc/hosts"] = network.hosts
        line = [need_program("nsenter"), f"--net=/proc/{os.getpid()}/fd/{network.descriptor}", *line]
        command = ["env", f"SSL_CERT_FILE={network.trust}", *command]
    return [*line, *(part for path, file in placed.items() for part in (str(file), path)), "--", *command]


def run_inside(
    files: Mapping[str, Path], command: Sequence[str], *, network: Network | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs a command with files at chosen paths, see `inside`; what it says is text."""
    environment = {name: value for name, value in os.environ.items() if name != "RUST_BACKTRACE"}
    return subprocess.run(
        inside(files, command, network),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def kds_network(folder: Path, port: int, trust: Path) -> Iterator[Network]:
    """A network in which kdsintf.amd.com, ports 443 and 444 (for providers), is a server of this machine.

    Args:
        folder: For a file of host names.
        port: Where the server listens on 127.0.0.1.
        trust: PEM file of whom to trust for it.
    """
    need_root()
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost kdsintf.amd.com\n")
    descriptor, listening = _in_a_network_of_its_own(KDS_PORTS)
    with ExitStack() as relays:
        relays.callback(os.close, descriptor)
        for one in listening:
            relays.callback(_Relay(one, port).close)
        yield Network(descriptor, hosts, trust)


_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def _in_a_network_of_its_own(ports: Sequence[int]) -> tuple[int, list[socket.socket]]:
    """A new network namespace with listening sockets on ports of its loopback."""
    made: list[tuple[int, list[socket.socket]]] = []

    def make() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
        listening = [socket.create_server(("127.0.0.1", port)) for port in ports]
        made.append((os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), listening))

    # A thread's namespace is its own, and a socket stays in the one where it was made.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


class _Relay:
    """Passes every connection on to a port of 127.0.0.1 in the machine's own network."""

    def __init__(self, listening: socket.socket, port: int) -> None:
        self._listening = listening
        self._port = port
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with ExitStack() as connections:
            while True:
                try:
                    near, _ = self._listening.accept()
                except OSError:
                    break
                far = socket.create_connection(("127.0.0.1", self._port))
                for one, other in ((near, far), (far, near)):
                    thread = threading.Thread(target=_pass_on, args=(one, other))
                    connections.callback(thread.join)
                    connections.callback(one.close)
                    connections.callback(_shut, one)
                    thread.start()

    def close(self) -> None:
        """Ends it and every connection."""
        _shut(self._listening)
        self._thread.join()
        self._listening.close()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
