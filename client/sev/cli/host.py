"""`sev host`: what a host is, and what keeps it from running guests."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.model import HostInfo
    from sev.snp_model import DesiredPlatform

_SHOW = """\
Asks the daemon what this host is: processor line, firmware, kernel, ASIDs in use,
which guests can be launched, and what is missing where they cannot; what the
configuration wants of the platform, and how the platform deviates from it.

ASIDs are the host's numbers for protected guests. SEV-ES and SEV-SNP guests share
one range; when it is full, no more of them can be launched.
"""

_CHECK = """\
Looks at this machine check by check: processor, BIOS, kernel, KVM, devices, firmware,
SNP, resources, features; says what keeps it from running guests, why, and what to do.

Works without a daemon, as any user, and changes nothing. What this user may not look
at is skipped, and said. With --socket the daemon there looks at its own host instead.

A host is able if no check that the technology requires failed, and every check that
decides passed: skipped is not passed. Those that decide can be looked at by everybody.
"""

TECHNOLOGIES = {"sev": "SEV", "sev-es": "SEV-ES", "sev-snp": "SEV-SNP"}


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    verbs = parser.add_subparsers()
    show = verbs.add_parser("show", help="product, firmware, kernel, ASIDs", description=_SHOW)
    examples(
        show,
        ("sev host show", "what this host is"),
        ("sev host show --json | jq .asids.sev_es", "how many SEV-ES and SEV-SNP guests fit"),
        notes="JSON: product, simulated, firmware, api_version, kernel, asids {sev, sev_es: {total, in_use}},\n"
        "chip_id, technologies, missing, device_health, guest_count, cpu,\n"
        "desired_platform {reported_tcb, mask_chip_id, mask_chip_key, vlek, actual_…, drift, apply_time},\n"
        "daemon_version; null if not known.",
    )
    show.set_defaults(run=_show)
    check = verbs.add_parser("check", help="what keeps it from running guests, and what to do", description=_CHECK)
    check.add_argument("--for", dest="technology", choices=("snp", "sev-es", "sev"), help="only what these guests need")
    examples(
        check,
        ("sev host check", "whether this machine can run protected guests at all"),
        ("sev host check --for snp", "whether it can run SEV-SNP guests; as root it looks at more"),
        ("sev host check --json | jq '.checks[] | select(.result == \"failed\") | .id'", "what is wrong, for a script"),
        notes="Exit code: 0 if the host can run what was asked for (without --for: anything), 4 if it cannot.\n"
        "JSON: able, for, simulated, technologies {sev, sev-es, sev-snp: {able, blocked_by}},\n"
        "checks [{id, group, title, result, reason, remedy, decides, required}].",
    )
    check.set_defaults(run=_check)


def _show(args: Namespace, out: Output) -> int:
    from sev.cli.connection import connected, mark_simulated

    with connected(args, out, mark=False) as host:
        info = host.host()
    mark_simulated(out, info.simulated)
    out.result(info.document(), text(info))
    return 0


def _check(args: Namespace, out: Output) -> int:
    from sev.cli.host_check import look, text

    checked = look(args, out, {"snp": "sev-snp"}.get(args.technology, args.technology or ""))
    out.result(checked.document(), text(checked, everything=out.verbose))
    return 0 if checked.able else 4


def _wanted(wanted: DesiredPlatform | None) -> str:
    """What the daemon's configuration wants of the platform; empty for nothing."""
    if wanted is None:
        return ""
    parts = [f"reported TCB {wanted.reported_tcb}"] if wanted.reported_tcb else []
    for name, mask in (("chip id", wanted.mask_chip_id), ("chip key", wanted.mask_chip_key)):
        if mask is not None:
            parts.append(f"{name} {'' if mask else 'not '}masked")
    if wanted.vlek:
        parts.append(f"VLEK of {wanted.vlek}")
    return "\n".join(parts)


def text(info: HostInfo) -> str:
    """The host for people."""
    from sev.cli.tables import facts

    chip_id = info.chip_id.hex()
    able = ", ".join(TECHNOLOGIES.get(name, name) for name in info.technologies)
    return facts(
        (
            ("product", (info.product.capitalize() or "unknown") + (" (simulated)" if info.simulated else "")),
            ("CPU", f"family {info.cpu_family}, model {info.cpu_model}, stepping {info.cpu_stepping}"),
            ("firmware", f"{info.firmware} (API {info.api_version})" if info.firmware else "unknown"),
            ("kernel", info.kernel + (f" (interface of {info.kernel_interface})" if info.kernel_interface else "")),
            ("KVM VM types", ", ".join(info.kvm_vm_types)),
            ("can launch", able or "nothing"),
            ("guests", info.guest_count),
            ("SEV ASIDs", f"{info.sev_asids.in_use} of {info.sev_asids.total} in use"),
            ("SEV-ES/SNP ASIDs", f"{info.sev_es_asids.in_use} of {info.sev_es_asids.total} in use"),
            ("chip id", "\n".join(chip_id[at : at + 64] for at in range(0, len(chip_id), 64)) or "unknown"),
            ("device", info.device_health),
            ("missing", "\n".join(info.missing)),
            ("wanted", _wanted(info.desired_platform)),
            ("drift", "\n".join(info.desired_platform.drift) if info.desired_platform else ""),
            ("daemon", f"sevd {info.daemon_version}"),
        )
    )
