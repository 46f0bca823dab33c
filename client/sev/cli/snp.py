"""`sev snp`: the SNP platform's status, commit, configuration and VLEK."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.snp_model import SnpStatus

_STATUS = """\
Shows SNP_PLATFORM_STATUS with the TCB versions side by side:

  current    what runs now
  reported   what reports show and what the VCEK is derived from
  committed  the floor: nothing older may ever run again

The firmware's status does not contain the committed TCB; it is known once a report
has told it, and shown as dashes until then.
"""

_COMMIT = """\
SNP_COMMIT: makes the running firmware the oldest that may ever run on this chip. The
committed TCB becomes the current one, and an older firmware is refused from then on.
There is no way back. Asks for confirmation; --yes answers it.
"""

_SET = """\
SNP_SET_CONFIG: sets the reported TCB and the masks. What is not named keeps its
value. The reported TCB may be at most the committed one; a lower one lets reports
keep the old VCEK while new certificates are still on their way.

All values can also be given in order, as snphost has them:
BOOTLOADER TEE SNP MICROCODE MASK [FMC], with MASK 0 to 3: bit 0 masks the chip id,
bit 1 the chip key. FMC exists on Turin and later, and is needed there.

The configuration lasts until a commit, another configuration, or a restart of the host.
"""

_RESET = """\
SNP_SET_CONFIG with zeros: the reported TCB follows the committed one again, and both
masks are off.
"""

_VLEK = """\
SNP_VLEK_LOAD: loads a wrapped VLEK hash stick (432 bytes), as AMD's key distribution
service hands it out to cloud providers. Reports are signed with the VLEK from then on,
unless a guest asks for the VCEK. Loading another one replaces it; only a shutdown of
SNP unloads it.

A hash stick is for one chip and one reported TCB. Another reported TCB (config set,
commit) leaves the VLEK loaded, but no certificate fits what it signs then: load the
one for that TCB.
"""

_JSON = "JSON: state, guest_count, current_tcb, reported_tcb, committed_tcb (null if not known), mask_chip_id,\n\
mask_chip_key, vlek_loaded, vlek {tcb, hashstick_sha256, load_time}, firmware, api_version and further bits."

_COMPONENTS = ("bootloader", "tee", "snp", "microcode", "fmc")


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    verbs = parser.add_subparsers()
    status = verbs.add_parser("status", help="state, TCBs side by side, masks, VLEK", description=_STATUS)
    examples(status, ("sev snp status", "the three TCBs side by side"), notes=_JSON)
    status.set_defaults(run=_status)
    commit = verbs.add_parser("commit", help="make the running firmware the oldest allowed", description=_COMMIT)
    examples(commit, ("sev snp commit --yes", "commit without being asked"), notes=_JSON)
    commit.set_defaults(run=_commit)
    config = verbs.add_parser("config", help="reported TCB and masks", description="Sets or resets SNP_CONFIG.")
    _build_config(config)
    vlek = verbs.add_parser("vlek", help="load a VLEK", description="Handles the versioned loaded endorsement key.")
    load = vlek.add_subparsers().add_parser("load", help="load a wrapped hash stick", description=_VLEK)
    load.add_argument("file", metavar="FILE", help="the wrapped hash stick, 432 bytes; - for stdin")
    examples(load, ("sev snp vlek load hashstick.bin", "sign reports with a VLEK from now on"), notes=_JSON)
    load.set_defaults(run=_load)


def _build_config(parser: ArgumentParser) -> None:
    from argparse import BooleanOptionalAction

    from sev.cli.values import integer

    verbs = parser.add_subparsers()
    chosen = verbs.add_parser("set", help="set what is named, keep the rest", description=_SET)
    chosen.add_argument(
        "values", nargs="*", type=integer(0, 255), metavar="N", help="BOOTLOADER TEE SNP MICROCODE MASK [FMC]"
    )
    for name in _COMPONENTS:
        chosen.add_argument(f"--{name}", type=integer(0, 255), metavar="N", help=f"{name} component, 0 to 255")
    chosen.add_argument("--mask-chip-id", action=BooleanOptionalAction, help="CHIP_ID in reports is zero")
    chosen.add_argument("--mask-chip-key", action=BooleanOptionalAction, help="the VCEK may not sign")
    examples(
        chosen,
        ("sev snp config set --snp 20", "report an older SNP component, keep everything else"),
        ("sev snp config set --mask-chip-id", "hide the chip's identity"),
        ("sev snp config set 9 0 23 72 0", "everything at once, as snphost has it"),
        notes=_JSON,
    )
    chosen.set_defaults(run=_set)
    reset = verbs.add_parser("reset", help="follow the committed TCB again, masks off", description=_RESET)
    examples(reset, ("sev snp config reset", "undo every sev snp config set"), notes=_JSON)
    reset.set_defaults(run=_reset)


def _status(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected

    with connected(args, out) as host:
        status = host.snp_status()
    _print(out, status)
    return 0


def _commit(args: Namespace, out: Output) -> int:
    from sev.cli.confirm import confirm
    from sev.cli.connection import connected

    what = "SNP_COMMIT makes the running firmware the oldest that may ever run on this chip; it cannot be undone."
    confirm(args, what)
    with connected(args, out) as host:
        status = host.snp_commit(confirm=True)
    out.note(f"sev: committed firmware {status.firmware}")
    _print(out, status)
    return 0


def _set(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected
    from sev.errors import UsageError

    named = {name: getattr(args, name) for name in _COMPONENTS if getattr(args, name) is not None}
    masks = {"mask_chip_id": args.mask_chip_id, "mask_chip_key": args.mask_chip_key}
    if args.values:
        if named or any(value is not None for value in masks.values()):
            raise UsageError("give the values in order or by name, not both", remedy="See: sev snp config set --help")
        if len(args.values) not in (5, 6):
            raise UsageError(
                f"{len(args.values)} values, expected 5 or 6: BOOTLOADER TEE SNP MICROCODE MASK [FMC]",
                remedy="Or name what is to change, such as --snp 20; the rest keeps its value.",
            )
        bootloader, tee, snp, microcode, mask, *fmc = args.values
        if mask > 3:
            raise UsageError(f"MASK is {mask}, expected 0 to 3: bit 0 masks the chip id, bit 1 the chip key")
        named = {"bootloader": bootloader, "tee": tee, "snp": snp, "microcode": microcode}
        if fmc:
            named["fmc"] = fmc[0]
        masks = {"mask_chip_id": bool(mask & 1), "mask_chip_key": bool(mask & 2)}
    elif not named and all(value is None for value in masks.values()):
        raise UsageError("nothing to set", remedy="Name what is to change, such as --snp 20 or --mask-chip-id.")
    with connected(args, out) as host:
        status = host.snp_set_config(reported_tcb=named or None, **masks)
    _print(out, status)
    return 0


def _reset(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected

    with connected(args, out) as host:
        status = host.snp_reset_config()
    _print(out, status)
    return 0


def _load(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected
    from sev.cli.files import read_file

    hashstick = read_file(args.file, "the hash stick", 64 << 10)
    with connected(args, out) as host:
        before = host.snp_status()
        status = host.vlek_load(hashstick)
    done = "replaced the VLEK by one" if before.vlek_loaded else "loaded a VLEK"
    out.note(f"sev: {done} for {status.reported_tcb}")
    _print(out, status)
    return 0


def _print(out: Output, status: SnpStatus) -> None:
    out.result(status.document(), text(status))


def _vlek(status: SnpStatus) -> str:
    """Which VLEK is loaded, and whether certificates fit what it signs."""
    loaded = status.vlek
    if not status.vlek_loaded or loaded is None:
        return "loaded" if status.vlek_loaded else "not loaded"
    when = f"\nloaded {loaded.load_time:%Y-%m-%d %H:%M:%S} UTC" if loaded.load_time else "\nloaded by another program"
    which = f", hash stick {loaded.hashstick_sha256[:16]}…" if loaded.hashstick_sha256 else ""
    fits = "" if loaded.tcb == status.reported_tcb else "\nno certificate fits: another TCB is reported"
    return f"for {loaded.tcb}{when}{which}{fits}"


def text(status: SnpStatus) -> str:
    """The status for people."""
    from sev.cli.tables import facts, tcbs

    flags = {
        "RMP initialised": status.rmp_initialized,
        "alias check complete": status.alias_check_complete,
        "feature info": status.feature_info,
        "RAPL disabled": status.rapl_dis,
        "ciphertext hiding possible": status.ciphertext_hiding_cap,
        "ciphertext hiding on": status.ciphertext_hiding_en,
    }
    shown = facts(
        (
            ("state", {"init": "initialised", "uninit": "not initialised"}.get(status.state, status.state)),
            ("firmware", f"{status.firmware} (API {status.api_version})"),
            ("guests", status.guest_count),
            ("chip id", "masked" if status.mask_chip_id else "shown in reports"),
            ("chip key", "masked: the VCEK may not sign" if status.mask_chip_key else "signs reports"),
            ("VLEK", _vlek(status)),
            ("also", ", ".join(name for name, on in flags.items() if on)),
        )
    )
    columns = (
        ("current", status.current_tcb),
        ("reported", status.reported_tcb),
        ("committed", status.committed_tcb),
    )
    note = "" if status.committed_tcb else "\n\nThe committed TCB is known once a report of this host has told it."
    return f"{shown}\n\n{tcbs(columns)}{note}"
