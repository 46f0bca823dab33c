"""Files served over FUSE by this process, without any library: the raw protocol of /dev/fuse (linux/fuse.h, 7.x).

    server = FileServer(Path("/run/x/.files"), root)     # root: a Directory (sevd.simulator.fuse.nodes)
    server.start()                                       # mounted, answered by threads
    …
    server.close()                                       # unmounted

Nothing is cached by the kernel, so that trees may change at any time; permissions are the kernel's to check
(`default_permissions`). An ioctl reaches its handle with the address that the caller gave: what it points to is read
and written in the caller's memory (sevd.simulator.remote).
"""
