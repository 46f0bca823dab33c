"""What a host can and cannot do for SEV, looked at check by check over an injected reader; needs no daemon.

`sev.host.checks.run(reader)` answers every check; `sev.host.linux.LinuxReader` looks at this machine, and
`sev.host.cpuid` executes CPUID. Nothing here changes anything on the host.
"""

from __future__ import annotations
