"""ioctl numbers as the kernel's _IO macros make them (asm-generic/ioctl.h, x86-64)."""

from __future__ import annotations


def io(kind: int, number: int) -> int:
    """_IO(kind, number)."""
    return kind << 8 | number


def iow(kind: int, number: int, size: int) -> int:
    """_IOW: the kernel reads `size` bytes from the argument."""
    return 1 << 30 | size << 16 | kind << 8 | number


def ior(kind: int, number: int, size: int) -> int:
    """_IOR: the kernel writes `size` bytes to the argument."""
    return 2 << 30 | size << 16 | kind << 8 | number


def iowr(kind: int, number: int, size: int) -> int:
    """_IOWR: the kernel reads and writes `size` bytes."""
    return 3 << 30 | size << 16 | kind << 8 | number
