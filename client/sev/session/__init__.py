"""The guest owner's side of SEV and SEV-ES: keys, launch blob, measurement, secrets.

    session = Session.create(policy)                        # fresh TEK and TIK
    start = session.start(verified_chain)                   # what LAUNCH_START takes: owner certificate and launch blob
    …                                                       # the host launches and answers a measurement
    measure = measurement.check(session.keys.tik, blob, launch)   # refuses anything else
    packet = secret.seal(session.keys, data, measure)       # what LAUNCH_SECRET takes

Nothing here opens a device or a connection, and no key appears in an error or a representation.
"""

from __future__ import annotations

from sev.session.keys import TransportKeys
from sev.session.launch import LaunchStart, Session

__all__ = ["LaunchStart", "Session", "TransportKeys"]
