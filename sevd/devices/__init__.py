"""The seam below the daemon: what the kernel offers (open, ioctl), its Linux form, facts of the host, the scheduler."""
