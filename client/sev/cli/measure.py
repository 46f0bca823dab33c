"""`sev measure`: expected launch digests."""

from __future__ import annotations

from sev.cli.measure_options import FIRMWARE, LAUNCH, dump_vmsas, plan_of
from sev.cli.quick import Option, add, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence

    from sev.cli.output import Output
    from sev.cli.quick import Arguments
    from sev.measurement.plan import LaunchPlan, Step

_FORMAT = Option(
    "--output",
    "--output-format",
    metavar="FORMAT",
    choices=("hex", "base64", "json"),
    help="hex (default), base64 or json",
)
_SNP = (
    FIRMWARE,
    *LAUNCH,
    Option("--dump-vmsa", metavar="DIR", help="write each vCPU's VMSA page to DIR/vmsaN.bin"),
    Option("--explain", help="list every measured page: address, type, name, digest after it"),
    _FORMAT,
)
_OVMF_HASH = (FIRMWARE, _FORMAT)
_SNP_NAMES = ("snp", "snp:svsm")
_OVMF_HASH_NAMES = ("ovmf-hash", "snp:ovmf-hash")


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    parser.description = (
        "Predicts what an attestation report will show as the guest's measurement, from the files it is started with."
    )
    from sev.cli.parser import lazy

    verbs = parser.add_subparsers()
    snp = verbs.add_parser(_SNP_NAMES[0], aliases=_SNP_NAMES[1:], help="the launch digest of an SEV-SNP guest")
    lazy(snp, _build_snp)
    lazy(verbs.add_parser("sev-es", aliases=("seves",), help="the launch digest of an SEV-ES guest"), _build_sev_es)
    lazy(verbs.add_parser("sev", help="the launch digest of an SEV guest"), _build_sev)
    ovmf_hash = verbs.add_parser(
        _OVMF_HASH_NAMES[0],
        aliases=_OVMF_HASH_NAMES[1:],
        help="the digest after the firmware image alone, for --ovmf-hash",
    )
    lazy(ovmf_hash, _build_ovmf_hash)


def quick(words: Sequence[str]) -> tuple[Arguments, Callable[..., int]] | None:
    """The arguments and the function of a plain command; None where argparse has to look."""
    for names, options, run in ((_SNP_NAMES, _SNP, _snp), (_OVMF_HASH_NAMES, _OVMF_HASH, _ovmf_hash)):
        if words and words[0] in names:
            args = parse(options, words[1:])
            return None if args is None else (args, run)
    return None


def _build_snp(parser: ArgumentParser) -> None:
    from sev.cli.parser import examples

    parser.description = (
        "Prints the launch digest, 48 bytes, of an SEV-SNP guest: what its report must show as measurement.\n"
        "It depends on the firmware image, the number and model of the vCPUs, the VMM, the guest features, and\n"
        "on kernel, initrd and command line if they are booted directly. One wrong value changes all of it;\n"
        "--explain lists every measured page."
    )
    add(parser, _SNP)
    parser.set_defaults(run=_snp)
    examples(
        parser,
        ("sev measure snp --ovmf OVMF.fd --vcpus 4 --vcpu-type EPYC-v4", "a QEMU guest with four vCPUs"),
        (
            "sev measure snp --ovmf OVMF.fd --vcpu-type EPYC-Genoa --kernel bzImage --append console=ttyS0",
            "measured direct boot",
        ),
        ("sev measure snp --ovmf ovmf_img.fd --vcpus 2 --vmm ec2", "an Amazon EC2 instance"),
        (
            "sev measure snp --ovmf OVMF.fd --svsm svsm.bin --vars-file OVMF_VARS.fd --vcpu-type EPYC-v4",
            "with coconut-svsm below the firmware",
        ),
        notes=(
            "Guest features are SEV_FEATURES as the host's KVM sets them: 0x1, or 0x21 with debug swap (Linux 6.6 and\n"
            "6.7). For EC2 two behaviours are published: ec2 (= ec2-2026) has RDX 0x600 in the VMSA, ec2-2023 has 0.\n"
            "An image without SEV metadata is measured as it is, with a warning: QEMU would not launch it."
        ),
    )


def _build_sev(parser: ArgumentParser) -> None:
    from sev.cli.measure_legacy import build_sev

    build_sev(parser, _FORMAT)


def _build_sev_es(parser: ArgumentParser) -> None:
    from sev.cli.measure_legacy import build_sev_es

    build_sev_es(parser, _FORMAT)


def _build_ovmf_hash(parser: ArgumentParser) -> None:
    from sev.cli.parser import examples

    parser.description = (
        "Prints the launch digest, 48 bytes, after the firmware image alone. `sev measure snp --ovmf-hash` takes it\n"
        "and does not hash the image again; the image's tables are still read from the file."
    )
    add(parser, _OVMF_HASH)
    parser.set_defaults(run=_ovmf_hash)
    examples(parser, ("sev measure ovmf-hash --ovmf OVMF.fd", "hash the image once"))


def _snp(args: Namespace | Arguments, out: Output) -> int:
    plan = plan_of(args, out)
    if args.dump_vmsa is not None:
        dump_vmsas(plan.vmsas, args.dump_vmsa, out)
    as_json = _wants_json(args, out)
    if not args.explain:
        digest = plan.digest()
        _print(digest, {"launch_digest": digest.hex(), **_facts(plan)} if as_json else {}, args, out)
        return 0
    steps = list(plan.explain())
    digest = steps[-1].digest
    if as_json:
        pages = [_step_document(step) for step in steps]
        _print(digest, {"launch_digest": digest.hex(), **_facts(plan), "pages": pages}, args, out)
        return 0
    write = out.text if args.output is None else out.note  # a format asked for leaves stdout to the digest alone
    write("\n".join(_step_line(step) for step in steps))
    _print(digest, {}, args, out)
    return 0


def _ovmf_hash(args: Namespace | Arguments, out: Output) -> int:
    from sev.cli.files import read_file
    from sev.measurement.ovmf import MAX_IMAGE
    from sev.measurement.plan import snp_ovmf_hash

    digest = snp_ovmf_hash(read_file(args.ovmf, "the firmware image", MAX_IMAGE))
    _print(digest, {"ovmf_hash": digest.hex()}, args, out)
    return 0


def _wants_json(args: Namespace | Arguments, out: Output) -> bool:
    if args.output == "json":
        out.json = True
    return out.json


def _print(digest: bytes, document: dict[str, object], args: Namespace | Arguments, out: Output) -> None:
    if _wants_json(args, out):
        out.result(document, "")
    elif args.output == "base64":
        from base64 import b64encode

        out.text(b64encode(digest).decode())
    else:
        out.text(digest.hex())


def _facts(plan: LaunchPlan) -> dict[str, object]:
    return {
        "vcpus": len(plan.vmsas),
        "firmware_gpa": f"{plan.firmware_gpa:#x}",
        "ap_reset_address": f"{plan.ap_reset_address:#x}",
        "has_metadata": plan.has_metadata,
    }


def _step_document(step: Step) -> dict[str, object]:
    from sev.abi.page_info import PAGE_TYPES

    return {
        "name": step.name,
        "gpa": f"{step.gpa:#x}",
        "page_type": PAGE_TYPES[step.page_type],
        "pages": step.pages,
        "launch_digest": step.digest.hex(),
    }


def _step_line(step: Step) -> str:
    from sev.abi.page_info import PAGE_TYPES

    count = f" x {step.pages}" if step.pages > 1 else ""
    return f"{step.gpa:#014x}  {PAGE_TYPES[step.page_type]:<10}  {step.name:<14}  {step.digest.hex()}{count}"
