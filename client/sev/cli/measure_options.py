"""The options that describe an SNP launch, shared by the commands that measure one, and the plan they give."""

from __future__ import annotations

from sev.cli import values
from sev.cli.files import hash_file, read_file
from sev.cli.quick import Option
from sev.errors import UsageError
from sev.measurement.inputs import MAX_VCPUS
from sev.measurement.ovmf import MAX_IMAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from sev.cli.output import Output
    from sev.cli.quick import Arguments
    from sev.measurement.plan import LaunchPlan


FIRMWARE = Option("--ovmf", metavar="FILE", required=True, help="the firmware image (OVMF.fd, OVMF_CODE.fd)")

VCPUS = (
    Option("--vcpus", metavar="N", kind=values.integer(1, MAX_VCPUS), default=1, help="number of vCPUs (default 1)"),
    Option("--vcpu-type", metavar="TYPE", help="CPU model of the guest, as QEMU names it (EPYC-v4, EPYC-Milan, ...)"),
    Option("--vcpu-sig", metavar="N", kind=values.integer(0, 0xFFFFFFFF), help="CPUID signature instead of a type"),
    Option("--vcpu-family", metavar="N", kind=values.integer(0, 0x10E), help="CPU family; with model and stepping"),
    Option("--vcpu-model", metavar="N", kind=values.integer(0, 0xFF), help="CPU model number"),
    Option("--vcpu-stepping", metavar="N", kind=values.integer(0, 0xF), help="CPU stepping"),
    Option(
        "--vmm", "--vmm-type", metavar="VMM", default="qemu", help="qemu (default), ec2, gce, krun, ec2-2026, ec2-2023"
    ),
)
"""The vCPUs, and who starts them."""

KERNEL = (
    Option("--kernel", metavar="FILE", help="a kernel that is booted directly"),
    Option("--initrd", metavar="FILE", help="its initrd"),
    Option("--append", "--cmdline", metavar="TEXT", help="its command line"),
)

LAUNCH = (
    *VCPUS,
    *KERNEL,
    Option(
        "--guest-features",
        metavar="N",
        kind=values.integer(),
        default=1,
        help="SEV_FEATURES of the vCPUs (default 0x1)",
    ),
    Option(
        "--ovmf-hash",
        "--snp-ovmf-hash",
        metavar="HEX",
        kind=values.hex_bytes(48),
        help="result of `sev measure ovmf-hash`, if known",
    ),
    Option("--svsm", metavar="FILE", help="a coconut-svsm image that is started before the firmware"),
    Option("--vars-file", metavar="FILE", help="the variable store that goes with --svsm; its size counts"),
    Option("--vars-size", metavar="SIZE", kind=values.size(), help="the size itself"),
    Option(
        "--svsm-fcw",
        metavar="N",
        kind=values.integer(0, 0xFFFF),
        default=0,
        help="x87 control word with --svsm (default 0)",
    ),
)
"""Everything else that describes a launch: vCPUs, VMM, kernel, features, SVSM."""


def plan_of(args: Namespace | Arguments, out: Output) -> LaunchPlan:
    """Reads the files and makes the plan; warns about an image that QEMU would not launch.

    Raises:
        UsageError: An option is missing or contradicts another, or a file cannot be read.
        MalformedInput: An image contradicts itself, or lacks what the options need.
    """
    from sev.measurement.plan import snp_plan

    svsm = read_file(args.svsm, "the SVSM image", MAX_IMAGE) if args.svsm else None
    plan = snp_plan(
        read_file(args.ovmf, "the firmware image", MAX_IMAGE),
        args.vcpus,
        vcpu_type=args.vcpu_type,
        vcpu_signature=vcpu_signature(args),
        vmm=args.vmm,
        kernel_hashes=kernel_hashes(args),
        guest_features=args.guest_features,
        ovmf_hash=args.ovmf_hash,
        svsm=svsm,
        svsm_vars_size=_vars_size(args),
        svsm_fcw=args.svsm_fcw,
    )
    if not plan.has_metadata:
        out.note(
            f"sev: warning: {args.svsm or args.ovmf} has no SEV metadata and is measured as it is; "
            "QEMU would not launch an SNP guest with it"
        )
    if not args.guest_features & 1:
        out.note(
            f"sev: warning: guest features 0x{args.guest_features:x} lack bit 0, SNPActive; "
            "KVM sets it for every SNP guest, so no such guest has this digest"
        )
    return plan


def vcpu_signature(args: Namespace | Arguments) -> int | None:
    """The CPUID signature that the options give; None where they name a type or nothing.

    Raises:
        UsageError: Options exclude each other, or one is missing.
    """
    numbers = {
        "--vcpu-family": args.vcpu_family,
        "--vcpu-model": args.vcpu_model,
        "--vcpu-stepping": args.vcpu_stepping,
    }
    kinds = [bool(args.vcpu_type), args.vcpu_sig is not None, any(number is not None for number in numbers.values())]
    if sum(kinds) > 1:
        raise UsageError(
            "--vcpu-type, --vcpu-sig and --vcpu-family with model and stepping exclude each other", field="--vcpu-type"
        )
    return signature_of(numbers) if kinds[2] else args.vcpu_sig


def signature_of(numbers: dict[str, int | None]) -> int | None:
    """The CPUID signature of family, model and stepping, by the names of their options; None where none was given.

    Raises:
        UsageError: One is missing.
    """
    given = [name for name, number in numbers.items() if number is not None]
    if not given:
        return None
    missing = [name for name in numbers if name not in given]
    if missing:
        raise UsageError(f"{', '.join(given)} without {' and '.join(missing)}", field=missing[0])
    from sev.products import cpuid_signature

    return cpuid_signature(*(number or 0 for number in numbers.values()))


def kernel_hashes(args: Namespace | Arguments) -> bytes | None:
    """The table of kernel hashes, 176 bytes, that the options give; None without a kernel.

    Raises:
        UsageError: A part of a kernel without the kernel, or a file that cannot be read.
    """
    if args.kernel is None:
        for option in ("initrd", "append"):
            if getattr(args, option) is not None:
                raise UsageError(
                    f"--{option} without --kernel",
                    remedy="They are measured together with a kernel that is booted directly.",
                    field=f"--{option}",
                )
        return None
    from hashlib import sha256

    from sev.measurement.kernel_hashes import table_of

    initrd = hash_file(args.initrd, "the initrd") if args.initrd is not None else sha256().digest()
    return table_of(hash_file(args.kernel, "the kernel"), initrd, args.append)


def _vars_size(args: Namespace | Arguments) -> int:
    if args.vars_file is not None and args.vars_size is not None:
        raise UsageError("--vars-file and --vars-size were given: give one of them", field="--vars-size")
    if args.svsm is None:
        if args.vars_file is not None or args.vars_size is not None:
            raise UsageError(
                "--vars-file and --vars-size are for --svsm only",
                remedy="Without an SVSM the variable store is not measured and shifts nothing.",
                field="--vars-size",
            )
        return 0
    if args.vars_file is not None:
        return len(read_file(args.vars_file, "the variable store", MAX_IMAGE))
    if args.vars_size is None:
        raise UsageError("--svsm without --vars-file or --vars-size", field="--vars-size")
    size: int = args.vars_size
    return size


def dump_vmsas(pages: list[bytes], directory: str, out: Output) -> None:
    """Writes each vCPU's page to DIR/vmsaN.bin."""
    import os

    os.makedirs(directory, exist_ok=True)
    for number, page in enumerate(pages):
        out.write_file(os.path.join(directory, f"vmsa{number}.bin"), page)
