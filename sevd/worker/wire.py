"""The messages between the daemon and a worker (sev.packets)."""

from __future__ import annotations

from sev.packets import (
    DESCRIPTORS,
    PACKET_BYTES,
    Closed,
    ask,
    call,
    close_all,
    error_document,
    error_from,
    octets,
    receive,
    runs,
    send,
    table,
    text,
    whole,
)

__all__ = [
    "DESCRIPTORS",
    "PACKET_BYTES",
    "Closed",
    "ask",
    "call",
    "close_all",
    "error_document",
    "error_from",
    "octets",
    "receive",
    "runs",
    "send",
    "table",
    "text",
    "whole",
]
