"""The one part that touches the network: it asks key distribution services, for a daemon that may not.

    sevd.fetch.rules     which addresses are asked, whoever wants it
    sevd.fetch.server    answers questions on a Unix socket
    sevd.fetch.main      the program `sevd-fetch`
    sevd.fetch.client    the daemon's side: over a socket, or with a child process of its own

Nothing is believed here, and nothing kept: what comes back is checked by the daemon.
"""
