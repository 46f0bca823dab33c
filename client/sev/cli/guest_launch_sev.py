"""`sev guest launch --type sev|sev-es`: the owner's session, and stopping after the measurement."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.session import LaunchStart

_CERTIFICATE_BYTES = 2084
_SESSION_BYTES = 128
_SNP_ONLY = ("host_data", "id_block", "id_auth", "vcek_disabled")
"""Options that only an SNP guest has."""
OPTIONS = ("session", "dh_cert_file", "session_file", "hold")
"""Options that only SEV and SEV-ES guests have."""


def add_options(parser: ArgumentParser) -> None:
    """The options of these types."""
    group = parser.add_argument_group("SEV and SEV-ES guests that have an owner")
    group.add_argument(
        "--session", metavar="DIR", help="what the owner made: a folder with *_godh.b64 and *_session.b64"
    )
    group.add_argument("--dh-cert-file", metavar="FILE", help="the owner's certificate, 2084 bytes or base64")
    group.add_argument("--session-file", metavar="FILE", help="the owner's launch blob, 128 bytes or base64")
    group.add_argument(
        "--hold", action="store_true", help="stop after the measurement, for secrets: then sev guest inject, finish"
    )


def run(args: Namespace, firmware: bytes | memoryview, out: Output) -> int:
    """Launches the guest that the options describe."""
    from sev.cli.connection import connected, mark_simulated
    from sev.cli.files import read_file
    from sev.cli.guest_launch import KERNEL_LIMIT, progress, refuse_options, show_launched
    from sev.errors import UsageError

    refuse_options(args, _SNP_ONLY, "only an SNP guest has that")
    session = _session(args)
    options = {
        "vcpu_type": args.vcpu_type,
        "vcpu_signature": args.vcpu_sig,
        "kernel": read_file(args.kernel, "the kernel", KERNEL_LIMIT) if args.kernel else None,
        "initrd": read_file(args.initrd, "the initrd", KERNEL_LIMIT) if args.initrd else None,
        "append": args.append,
        "memory_bytes": args.memory,
        "policy": _policy(args),
        "session": session,
        "hold": args.hold,
        "label": args.label,
        "progress": progress(out),
    }
    if args.type == "sev" and args.guest_features:
        raise UsageError("--guest-features: an SEV guest has no VMSA", field="--guest-features")
    with connected(args, out, mark=False) as host:
        if args.type == "sev":
            launched = host.launch_sev(firmware, args.vcpus, **options)
        else:
            launched = host.launch_sev_es(firmware, args.vcpus, guest_features=args.guest_features or 0, **options)
    mark_simulated(out, launched.guest.simulated)
    return show_launched(launched, out)


def _policy(args: Namespace) -> int:
    from sev.abi.sev_policy import SevPolicy
    from sev.hosted_sev import SEV_ES_POLICY, SEV_POLICY

    if args.policy is not None:
        return SevPolicy.parse(args.policy).raw
    return SEV_ES_POLICY if args.type == "sev-es" else SEV_POLICY


def _session(args: Namespace) -> LaunchStart | None:
    """What the owner made, from a folder or from two files.

    Raises:
        UsageError: One file without the other, both ways at once, or a folder without exactly one session.
    """
    from sev.cli.files import read_bytes
    from sev.errors import UsageError
    from sev.session import LaunchStart

    certificate, session = args.dh_cert_file, args.session_file
    if args.session is not None:
        if certificate or session:
            raise UsageError("--session names a folder that holds both files: leave the others out", field="--session")
        certificate, session = _folder(args.session)
    if not certificate and not session:
        return None
    if not certificate or not session:
        missing = "--session-file" if certificate else "--dh-cert-file"
        raise UsageError(f"{missing}: the owner's certificate and the launch blob go together", field=missing)
    return LaunchStart(
        _policy(args),
        read_bytes(certificate, "the owner's certificate", _CERTIFICATE_BYTES),
        read_bytes(session, "the launch blob", _SESSION_BYTES),
    )


def _folder(path: str) -> tuple[str, str]:
    import os

    from sev.errors import UsageError

    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise UsageError(f"--session {path}: {error.strerror}", field="--session") from None
    found = [name.removesuffix("_godh.b64") for name in names if name.endswith("_godh.b64")]
    if len(found) != 1 or f"{found[0]}_session.b64" not in names:
        raise UsageError(
            f"--session {path}: expected one NAME_godh.b64 and its NAME_session.b64, as sev session create writes them",
            field="--session",
            remedy="Name the two files with --dh-cert-file and --session-file.",
        )
    return os.path.join(path, f"{found[0]}_godh.b64"), os.path.join(path, f"{found[0]}_session.b64")
