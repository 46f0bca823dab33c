"""What `sev attest check` looks at and how it shows it."""

from __future__ import annotations

import os

from sev.cli.check_lines import lines
from sev.guest import device as sev_guest
from sev.guest import tsm as configfs
from sev.guest.checks import GuestCheck, check_guest
from sev.host.linux import MSR_PATH, LinuxReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def look(args: Namespace) -> GuestCheck:
    """This machine, with the files that the options name in place of its own."""
    reader = LinuxReader(msr_path=args.msr or MSR_PATH)
    device, tsm = args.device or sev_guest.PATH, args.tsm or configfs.PATH

    def ask() -> str:
        from sev.guest.choice import choose
        from sev.guest.model import ReportRequest

        chosen = {"tsm": args.tsm} if args.tsm is not None and args.device is None else {"device": args.device}
        with choose(**chosen) as platform:
            answer = platform.report(ReportRequest(os.urandom(64)))
        return f"{platform.name} answered with a report of VMPL {answer.vmpl} that repeats what was sent"

    def probe() -> None:
        sev_guest.SevGuestDevice(device, vmpl=0).close()

    return check_guest(reader, device=device, tsm=tsm, probe=probe, request=ask if args.attempt else None)


def text(checked: GuestCheck, *, everything: bool) -> str:
    """The checks by group, and what they add up to.

    Args:
        checked: The machine.
        everything: Also checks that were not looked at because another one did not pass.
    """
    return "\n".join([*lines(checked.checks, everything=everything), checked.summary])
