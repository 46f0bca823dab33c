"""`sev guest launch`: launches a guest through the daemon and predicts its digest."""

from __future__ import annotations

from sev.cli.parser import examples

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable

    from sev.cli.output import Output
    from sev.guest_model import LaunchedGuest
    from sev.guest_operations import Progress

_ABOUT = """\
Launches a guest through the daemon, an SEV-SNP guest unless --type says otherwise:
creates it, fills its memory, has the firmware measure it as QEMU would, and finishes the
launch. Predicts the launch digest from the same options before (as `sev measure snp
--vmm qemu` does) and compares the two. A launch that fails or is interrupted deletes the
guest again.

Needs no access to any device and no privilege but the daemon's permission.

If the firmware measured something else than was predicted, the exit code is 3: what
was launched is not what was asked for. The guest is kept and can be looked at.

--type sev and --type sev-es launch guests of the older generations. What their owner
made for this platform (sev session create) comes with --session; with --hold the guest
waits after its measurement for the owner's secrets.

--type plain launches an ordinary VM, for machines without SEV: nothing protects it and
nothing is measured, so options that only a protected guest has are refused. The daemon
must admit such guests (guests.plain).
"""

_EXIT_MISMATCH = 3

FIRMWARE_LIMIT = 16 << 20
KERNEL_LIMIT = 1 << 30
ID_LIMIT = 64 << 10

_PROTECTED_ONLY = (
    "policy", "kernel", "initrd", "append", "host_data", "id_block", "id_auth", "vcek_disabled", "vcpu_type",
)  # fmt: skip
"""Options that say something about a measurement, or about protection."""

_STEPS = {
    "create": "creating the guest",
    "load": "loading memory",
    "measure": "measuring",
    "finish": "finishing",
}


def build(parser: ArgumentParser) -> None:
    """Adds the options."""
    from sev.cli import guest_launch_sev
    from sev.cli.values import hex_bytes, integer, size

    parser.description = _ABOUT
    parser.add_argument(
        "--type",
        choices=("snp", "sev-es", "sev", "plain"),
        default="snp",
        help="technology (default snp); plain: none, unprotected",
    )
    parser.add_argument(
        "--firmware", required=True, metavar="FILE", help="OVMF image, for SNP with SEV metadata; - for stdin"
    )
    parser.add_argument("--vcpus", type=integer(1, 4096), default=1, metavar="N", help="number of vCPUs (default 1)")
    cpu = parser.add_mutually_exclusive_group()
    cpu.add_argument("--vcpu-type", metavar="TYPE", help="CPU model as QEMU names it (default EPYC-v4)")
    cpu.add_argument("--vcpu-sig", type=integer(0, (1 << 32) - 1), metavar="N", help="CPUID leaf 1 EAX instead")
    parser.add_argument(
        "--memory", type=size(4096), metavar="SIZE", help="memory (default 64MiB, or what the image's metadata needs)"
    )
    parser.add_argument(
        "--policy",
        default=None,
        metavar="POLICY",
        help="guest policy: a number or names (default 0x30000; sev 0x1, sev-es 0x5)",
    )
    parser.add_argument("--kernel", metavar="FILE", help="kernel for direct boot; its hash is measured")
    parser.add_argument("--initrd", metavar="FILE", help="initial RAM disk; needs --kernel")
    parser.add_argument("--append", metavar="TEXT", help="kernel command line; needs --kernel")
    parser.add_argument(
        "--guest-features",
        type=integer(),
        metavar="N",
        help="SEV_FEATURES of the vCPUs (default 0x1, sev-es 0)",
    )
    parser.add_argument("--host-data", type=hex_bytes(32), default=b"", metavar="HEX", help="32 bytes for reports")
    parser.add_argument("--id-block", metavar="FILE", help="ID block, binary or base64; needs --id-auth")
    parser.add_argument("--id-auth", metavar="FILE", help="ID authentication page, binary or base64")
    parser.add_argument("--vcek-disabled", action="store_true", help="the VCEK may not sign this guest's reports")
    parser.add_argument("--label", default="", metavar="TEXT", help="a label of yours, at most 64 characters")
    guest_launch_sev.add_options(parser)
    examples(
        parser,
        ("sev guest launch --firmware OVMF.fd --vcpus 2 --vcpu-type EPYC-v4", "launch with the default policy"),
        (
            "sev guest launch --firmware OVMF.amdsev.fd --kernel bzImage --initrd initrd.img --append console=ttyS0",
            "direct boot: kernel, initrd and command line are measured",
        ),
        ("sev guest launch --type plain --firmware image.bin", "an ordinary VM, on any machine with KVM"),
        ("sev guest launch --firmware OVMF.fd --id-block id.bin --id-auth auth.bin", "with an ID block"),
        (
            "sev guest launch --type sev --firmware OVMF.fd --session vm --hold",
            "an SEV guest that waits for its owner's secrets",
        ),
        notes='JSON: {"guest_id", "type", "state", "launch_digest", "expected_digest"}; of sev and sev-es also\n'
        '"measurement", and "secret_gpa" and "secret_size" as the firmware image names them.',
    )
    parser.set_defaults(run=run)


def run(args: Namespace, out: Output) -> int:
    """Launches the guest that the options describe."""
    from sev.abi.policy import SnpPolicy
    from sev.cli import guest_launch_sev
    from sev.cli.connection import connected, mark_simulated
    from sev.cli.files import read_file
    from sev.hosted import DEFAULT_POLICY

    firmware = read_file(args.firmware, "the firmware image", FIRMWARE_LIMIT)
    if args.type in ("sev", "sev-es"):
        return guest_launch_sev.run(args, firmware, out)
    refuse_options(args, guest_launch_sev.OPTIONS, "only SEV and SEV-ES guests have that")
    if args.type == "plain":
        return _plain(args, firmware, out)
    kernel = read_file(args.kernel, "the kernel", KERNEL_LIMIT) if args.kernel else None
    initrd = read_file(args.initrd, "the initrd", KERNEL_LIMIT) if args.initrd else None
    policy = SnpPolicy.parse(args.policy).raw if args.policy is not None else DEFAULT_POLICY
    id_block = _id_file(args.id_block, "id_block", 96)
    id_auth = _id_file(args.id_auth, "id_auth", 4096)
    with connected(args, out, mark=False) as host:
        launched = host.launch_snp(
            firmware,
            args.vcpus,
            vcpu_type=args.vcpu_type,
            vcpu_signature=args.vcpu_sig,
            kernel=kernel,
            initrd=initrd,
            append=args.append,
            guest_features=1 if args.guest_features is None else args.guest_features,
            memory_bytes=args.memory,
            policy=policy,
            id_block=id_block,
            id_auth=id_auth,
            vcek_disabled=args.vcek_disabled,
            host_data=args.host_data,
            label=args.label,
            progress=progress(out),
        )
    mark_simulated(out, launched.guest.simulated)
    return show_launched(launched, out)


def _plain(args: Namespace, firmware: bytes | memoryview, out: Output) -> int:
    """Launches a plain guest."""
    from sev.cli.connection import connected, mark_simulated, mark_unprotected

    refuse_options(args, _PROTECTED_ONLY, "a plain guest has nothing of the kind: it is neither measured nor protected")
    with connected(args, out, mark=False) as host:
        guest = host.launch_plain(
            firmware,
            args.vcpus,
            memory_bytes=args.memory,
            vcpu_signature=args.vcpu_sig or 0,
            label=args.label,
            progress=progress(out),
        )
    mark_simulated(out, guest.simulated)
    mark_unprotected(out, guest.type)
    from sev.cli.tables import facts

    document = {"guest_id": guest.guest_id, "type": guest.type, "state": guest.state}
    text = facts((("guest", guest.guest_id), ("type", guest.type), ("state", guest.state)))
    out.result({**document, "launch_digest": None, "expected_digest": None}, text)
    return 0


def refuse_options(args: Namespace, names: Iterable[str], why: str) -> None:
    """Raises UsageError if one of these options, which another type of guest has, was given."""
    from sev.errors import UsageError

    for name in names:
        if getattr(args, name):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option}: {why}", field=option)


def progress(out: Output) -> Progress:
    """A callback that shows the steps of a launch."""

    def show(step: str, done: int, total: int) -> None:
        out.progress(_STEPS.get(step, step), done, total)

    return show


def _id_file(path: str | None, name: str, size: int) -> bytes:
    """An ID block or its authentication page from a file, binary or base64.

    Raises:
        MalformedInput: Neither, or not of this size.
    """
    if path is None:
        return b""
    from binascii import Error, a2b_base64

    from sev.cli.files import read_file
    from sev.errors import MalformedInput

    data = read_file(path, "the ID block" if name == "id_block" else "the ID authentication page", ID_LIMIT)
    if len(data) == size:
        return data
    try:
        decoded = a2b_base64(bytes(data).translate(None, b" \t\r\n"), strict_mode=True)
    except Error:
        decoded = b""
    if len(decoded) != size:
        raise MalformedInput(
            f"{path}: {len(data)} bytes, expected {size} bytes or their base64",
            field=name,
            remedy="Make ID blocks with sev id-block create.",
        )
    return decoded


def show_launched(launched: LaunchedGuest, out: Output) -> int:
    """Prints a launched guest of any measured type, and what to do if it is not as predicted; answers the exit code."""
    from base64 import b64encode

    from sev.cli.tables import facts, size

    guest = launched.guest
    area = f"{launched.secret_gpa:#x}, {size(launched.secret_size)}" if launched.secret_gpa else ""
    out.result(
        launched.document(),
        facts(
            (
                ("guest", guest.guest_id),
                ("type", guest.type),
                ("state", guest.state),
                ("launch digest", guest.launch_digest.hex()),
                ("expected digest", launched.expected_digest.hex()),
                ("", "they agree" if launched.as_expected else "THEY DIFFER"),
                ("measurement", b64encode(guest.measurement).decode()),
                ("secrets go to", area if guest.state == "measured" else ""),
            )
        ),
    )
    if launched.as_expected:
        return 0
    advice = "Look at each measured page with sev measure snp --explain; end" if guest.type == "snp" else "End"
    out.note(
        "sev: the firmware measured something else than was predicted: this guest is not what was asked for.\n"
        f"     {advice} it with sev guest delete {guest.guest_id}."
    )
    return _EXIT_MISMATCH
