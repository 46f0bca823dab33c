"""`sev measure sev` and `sev measure sev-es`: expected launch digests of the older generations."""

from __future__ import annotations

from sev.cli import values
from sev.cli.files import read_file
from sev.cli.measure_options import FIRMWARE, KERNEL, VCPUS, dump_vmsas, kernel_hashes, vcpu_signature
from sev.cli.parser import examples
from sev.cli.quick import Option, add
from sev.measurement.legacy import LegacyPlan, sev_es_plan, sev_plan
from sev.measurement.ovmf import MAX_IMAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output

SEV_ES_VCPUS = (
    *VCPUS,
    Option(
        "--guest-features",
        metavar="N",
        kind=values.integer(),
        default=0,
        help="SEV_FEATURES of the vCPUs (default 0; 0x20 with debug swap)",
    ),
)
"""The vCPUs of an SEV-ES guest: an SEV guest's are not measured."""


def build_sev(parser: ArgumentParser, output: Option) -> None:
    """The options of `sev measure sev`."""
    parser.description = (
        "Prints the launch digest, 32 bytes, of an SEV guest: SHA-256 over the firmware image and, with a kernel that\n"
        "is booted directly, the table of its hashes. vCPUs are not measured."
    )
    add(parser, (FIRMWARE, *KERNEL, output))
    parser.set_defaults(run=_sev)
    examples(
        parser,
        ("sev measure sev --ovmf OVMF.fd", "a guest that boots from its disk"),
        ("sev measure sev --ovmf OVMF.fd --kernel bzImage --initrd initrd.img --append console=ttyS0", "direct boot"),
        notes="The measurement that the host answers also covers policy and firmware: see sev measurement check.",
    )


def build_sev_es(parser: ArgumentParser, output: Option) -> None:
    """The options of `sev measure sev-es`."""
    parser.description = (
        "Prints the launch digest, 32 bytes, of an SEV-ES guest: SHA-256 over the firmware image, the table of kernel\n"
        "hashes if a kernel is booted directly, and one VMSA page per vCPU."
    )
    dump = Option("--dump-vmsa", metavar="DIR", help="write each vCPU's VMSA page to DIR/vmsaN.bin")
    add(parser, (FIRMWARE, *SEV_ES_VCPUS, *KERNEL, dump, output))
    parser.set_defaults(run=_sev_es)
    examples(
        parser,
        ("sev measure sev-es --ovmf OVMF.fd --vcpus 4 --vcpu-type EPYC-v4", "a QEMU guest with four vCPUs"),
        notes="VMSA pages made elsewhere (sev vmsa build) can be compared with those of --dump-vmsa.",
    )


def _sev(args: Namespace, out: Output) -> int:
    plan = sev_plan(
        read_file(args.ovmf, "the firmware image", MAX_IMAGE),
        kernel_hashes=kernel_hashes(args),
    )
    return _print(plan, args, out)


def _sev_es(args: Namespace, out: Output) -> int:
    plan = sev_es_plan(
        read_file(args.ovmf, "the firmware image", MAX_IMAGE),
        args.vcpus,
        vcpu_type=args.vcpu_type,
        vcpu_signature=vcpu_signature(args),
        vmm=args.vmm,
        kernel_hashes=kernel_hashes(args),
        guest_features=args.guest_features,
    )
    if args.dump_vmsa is not None:
        dump_vmsas(plan.vmsas, args.dump_vmsa, out)
    return _print(plan, args, out)


def _print(plan: LegacyPlan, args: Namespace, out: Output) -> int:
    digest = plan.digest()
    if args.output == "json":
        out.json = True
    document = {
        "launch_digest": digest.hex(),
        "vcpus": len(plan.vmsas) or None,
        "firmware_gpa": f"{plan.firmware_gpa:#x}",
        "kernel_hashes_gpa": f"{plan.kernel_hashes_gpa:#x}" if plan.kernel_hashes else None,
        "secret_gpa": f"{plan.secret_gpa:#x}" if plan.secret_gpa else None,
        "secret_size": plan.secret_size or None,
    }
    text = digest.hex()
    if args.output == "base64":
        from base64 import b64encode

        text = b64encode(digest).decode()
    out.result(document, text)
    return 0
