"""AMD's key distribution service (KDS): where it has what, how it is asked, and what is believed of its answers.

    sev.kds.urls           addresses, as pure functions
    sev.kds.service        HTTPS with bounds, patience and proxies: bytes, which prove nothing yet
    sev.kds.certificates   certificates and lists from there, each checked before it is answered

Only `service` touches the network, and nothing does by being imported.
"""
