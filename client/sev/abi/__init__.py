"""Byte layouts, one module per interface: nothing here does anything but pack and unpack."""
