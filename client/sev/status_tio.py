"""Statuses of SEV-TIO commands (AMD 58271), 0x30 to 0x3F.

The rows behind sev.status: number, name, meaning, causes, remedy.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.status_table import Row

ROWS: tuple[Row, ...] = (
    (
        0x30,
        "INCORRECT_BUFFER_LENGTH",
        "SEV-TIO: a buffer has a wrong length.",
        ("the caller used sizes of another firmware version",),
        "Ask TIO_STATUS for the sizes and try again; the kernel's affair.",
    ),
    (
        0x31,
        "EXPAND_BUFFER_LENGTH_REQUEST",
        "SEV-TIO: the firmware needs a larger buffer to go on.",
        ("a device's certificates or measurements are longer than expected",),
        "Enlarge the buffer and issue the command again; the kernel does this by itself.",
    ),
    (
        0x32,
        "SPDM_REQUEST",
        "SEV-TIO: the firmware wants a message passed on to the device.",
        ("normal part of a conversation with a device",),
        "Pass the message on and continue the command; the kernel does this by itself.",
    ),
    (
        0x33,
        "SPDM_ERROR",
        "SEV-TIO: the secure session with the device failed.",
        ("the device answered with an error or out of order",),
        "Disconnect and connect the device again; update the device's firmware.",
    ),
    (
        0x35,
        "ERR_IN_DEV_CONN",
        "SEV-TIO: the connection to the device is in error.",
        ("the link or its encryption (IDE) failed",),
        "Disconnect and connect the device again.",
    ),
    (
        0x36,
        "INVALID_DEV_CTX",
        "SEV-TIO: the device context is not valid.",
        ("the context was never created, or already reclaimed",),
        "Create the device context first.",
    ),
    (
        0x37,
        "INVALID_TDI_CTX",
        "SEV-TIO: the device interface context is not valid.",
        ("the context was never created, or already reclaimed",),
        "Create the interface context first.",
    ),
    (
        0x38,
        "INVALID_TDI",
        "SEV-TIO: there is no such device interface.",
        ("the interface is not assigned to this guest",),
        "Assign the interface to the guest first.",
    ),
    (
        0x39,
        "RECLAIM_REQUIRED",
        "SEV-TIO: resources of an earlier use must be reclaimed first.",
        ("the device was disconnected without being reclaimed",),
        "Reclaim the device and try again.",
    ),
    (
        0x3A,
        "IN_USE",
        "SEV-TIO: the resource is in use.",
        ("the device or interface is bound to a guest",),
        "Unbind it from the guest first.",
    ),
    (
        0x3B,
        "INVALID_DEV_STATE",
        "SEV-TIO: the device is not in a state that allows this command.",
        ("connect and disconnect came out of order",),
        "Take the steps in order: create, connect, then the rest.",
    ),
    (
        0x3C,
        "INVALID_TDI_STATE",
        "SEV-TIO: the device interface is not in a state that allows this command.",
        ("bind, run and unbind came out of order",),
        "Take the steps in order: bind, then run.",
    ),
    (
        0x3D,
        "DEV_CERT_CHANGED",
        "SEV-TIO: the device's certificates changed since it was connected.",
        ("the device was updated or exchanged",),
        "Check the device, then connect it again.",
    ),
    (
        0x3E,
        "RESYNC_REQ",
        "SEV-TIO: the conversation with the device must be synchronised again.",
        ("a message was lost",),
        "Issue the command again from its start.",
    ),
    (
        0x3F,
        "RESPONSE_TOO_LARGE",
        "SEV-TIO: the device's response does not fit the buffer.",
        ("the device sends more than the firmware allows for",),
        "Enlarge the response buffer; update the device's firmware.",
    ),
)
