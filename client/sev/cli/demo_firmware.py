"""The firmware image of the demonstration: an installed OVMF with SEV metadata, else one that is built on the spot."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

INSTALLED = (
    "/usr/share/ovmf/OVMF.fd",
    "/usr/share/ovmf/OVMF.amdsev.fd",
    "/usr/share/OVMF/OVMF.fd",
    "/usr/share/OVMF/OVMF.amdsev.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/edk2/ovmf/OVMF.amdsev.fd",
    "/usr/share/edk2/x64/OVMF.amdsev.fd",
    "/usr/share/edk2/x64/OVMF.4m.fd",
    "/usr/share/edk2-ovmf/x64/OVMF.fd",
    "/usr/share/qemu/OVMF.fd",
)
"""Where distributions put it, best first."""

LIMIT = 16 << 20


class Image:
    """A firmware image: its bytes, and the path it came from (empty if it was built)."""

    __slots__ = ("data", "path")

    def __init__(self, data: bytes, path: str) -> None:
        self.data = data
        self.path = path


def find(asked: str | None, paths: Iterable[str] = INSTALLED) -> Image:
    """The image asked for, else the first installed one that has SEV metadata, else a sample.

    Raises:
        UsageError: The image asked for cannot be read.
        MalformedInput: It is no firmware image, or has no SEV metadata.
    """
    from sev.cli.files import read_file
    from sev.errors import MalformedInput, SevError
    from sev.measurement import ovmf

    if asked is not None:
        data = read_file(asked, "the firmware image", LIMIT)
        if not ovmf.Image(data).has_metadata:
            raise MalformedInput(f"{asked}: has no SEV metadata, so it cannot be launched", field=asked)
        return Image(data, asked)
    for path in paths:
        if not os.path.isfile(path):
            continue
        try:
            data = read_file(path, "the firmware image", LIMIT)
            if ovmf.Image(data).has_metadata:
                return Image(data, path)
        except SevError:
            continue
    from sev.measurement.sample import sample_firmware

    return Image(sample_firmware(), "")
