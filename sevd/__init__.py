"""The daemon: owns the devices, serialises what is done with them, serves sev.v1."""
