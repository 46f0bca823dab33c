"""`sev measurement`: what a host answers about an SEV or SEV-ES launch, made and checked."""

from __future__ import annotations

from sev.cli import values
from sev.cli.measure_legacy import SEV_ES_VCPUS
from sev.cli.measure_options import KERNEL
from sev.cli.parser import examples, lazy
from sev.cli.quick import Option, add
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output
    from sev.session.measurement import Launch

_VMSA_LIMIT = 1 << 16

_SAMPLE = "--api-major 1 --api-minor 55 --build-id 40 --policy 1 --tik tik.bin"

_FIRMWARE = Option("--firmware", "--ovmf", metavar="FILE", help="the firmware image, to measure instead of a digest")


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    parser.description = (
        "The measurement of an SEV or SEV-ES launch, 48 bytes: an HMAC that only the owner of the session's keys can\n"
        "compute, over policy, firmware version and launch digest, and the firmware's nonce."
    )
    verbs = parser.add_subparsers()
    lazy(verbs.add_parser("check", help="is this measurement that of the launch I expect?"), _build_check)
    lazy(verbs.add_parser("build", help="the measurement that a host would answer"), _build_build)


def _common(parser: ArgumentParser) -> None:
    number, byte = values.integer(0, 0xFFFFFFFF), values.integer(0, 0xFF)
    firmware = parser.add_argument_group("firmware of the host, as `sev platform status` tells it")
    firmware.add_argument("--api-major", metavar="N", type=byte, required=True, help="API major version")
    firmware.add_argument("--api-minor", metavar="N", type=byte, required=True, help="API minor version")
    firmware.add_argument("--build-id", "--build", metavar="N", type=byte, required=True, help="build")
    session = parser.add_argument_group("session")
    session.add_argument("--tik", metavar="FILE", required=True, help="transport integrity key: 16 bytes or base64")
    session.add_argument("--policy", metavar="P", required=True, help="guest policy: number or names (nodbg,es)")
    launch = parser.add_argument_group("launch")
    launch.add_argument("--launch-digest", metavar="DIGEST", help="32 bytes in hex or base64, instead of --firmware")
    add(launch, (_FIRMWARE, *KERNEL, *SEV_ES_VCPUS))
    launch.add_argument("--num-cpus", metavar="N", type=number, help="number of vCPUs, with VMSA pages from files")
    launch.add_argument("--vmsa-cpu0", metavar="FILE", help="VMSA page of the first vCPU")
    launch.add_argument("--vmsa-cpu1", metavar="FILE", help="VMSA page of every other vCPU")


def _build_check(parser: ArgumentParser) -> None:
    parser.description = (
        "Checks a measurement: 0 if it is that of the launch described, 3 if not. Do not hand out a secret on a 3."
    )
    parser.add_argument(
        "measurement", metavar="BLOB", help="what LAUNCH_MEASURE answered: 48 bytes in a file, or base64"
    )
    _common(parser)
    parser.set_defaults(run=_check)
    examples(
        parser,
        (
            f"sev measurement check BLOB {_SAMPLE} --firmware OVMF.fd",
            "before a secret is handed out",
        ),
    )


def _build_build(parser: ArgumentParser) -> None:
    parser.description = "Prints the measurement, 48 bytes in base64, that a host would answer for a launch."
    _common(parser)
    nonce = parser.add_argument_group("nonce, one of")
    nonce.add_argument("--nonce", metavar="NONCE", help="the firmware's nonce, 16 bytes: a file, hex or base64")
    nonce.add_argument("--launch-measure-blob", metavar="BLOB", help="take it from this measurement")
    parser.add_argument("--outfile", "--out", metavar="FILE", help="write it as bytes instead")
    parser.set_defaults(run=_build)
    examples(
        parser,
        (
            f"sev measurement build {_SAMPLE} --nonce N --firmware OVMF.fd",
            "what the host should have answered",
        ),
    )


def _check(args: Namespace, out: Output) -> int:
    from sev.cli.files import read_bytes
    from sev.session import measurement

    launch = _launch(args)
    blob = read_bytes(args.measurement, "the measurement", measurement.BLOB_SIZE)
    measurement.check(_key(args.tik), blob, launch)
    document = {"verified": True, "measure": blob[:32].hex(), "launch_digest": launch.digest.hex()}
    out.result(document, f"The measurement is that of launch digest {launch.digest.hex()}.")
    return 0


def _build(args: Namespace, out: Output) -> int:
    from base64 import b64encode

    from sev.cli.files import read_bytes
    from sev.session import measurement

    if (args.nonce is None) == (args.launch_measure_blob is None):
        raise UsageError("give one of --nonce and --launch-measure-blob", field="--nonce")
    launch = _launch(args)
    if args.nonce is not None:
        nonce = read_bytes(args.nonce, "the nonce", measurement.MNONCE_SIZE)
    else:
        _, nonce = measurement.split(read_bytes(args.launch_measure_blob, "the measurement", measurement.BLOB_SIZE))
    blob = measurement.build(_key(args.tik), launch, nonce)
    if args.outfile is not None:
        out.write_file(args.outfile, blob)
        if args.outfile != "-":
            out.result({"outfile": args.outfile}, f"Wrote {args.outfile}")
        return 0
    encoded = b64encode(blob).decode()
    out.result({"measurement": encoded, "launch_digest": launch.digest.hex()}, encoded)
    return 0


def _launch(args: Namespace) -> Launch:
    from sev.abi.sev_policy import SevPolicy
    from sev.session.measurement import Launch

    policy = SevPolicy.parse(args.policy)
    return Launch(_digest(args, es=policy.es), policy.raw, args.api_major, args.api_minor, args.build_id)


def _digest(args: Namespace, *, es: bool) -> bytes:
    """The launch digest, 32 bytes: given, or measured from files."""
    from sev.cli.files import read_bytes, read_file

    if (args.launch_digest is None) == (args.firmware is None):
        raise UsageError("give one of --launch-digest and --firmware", field="--firmware")
    if args.launch_digest is not None:
        return read_bytes(args.launch_digest, "the launch digest", 32, files=False)
    from sev.cli.measure_options import kernel_hashes, vcpu_signature
    from sev.measurement.legacy import sev_es_plan, sev_plan
    from sev.measurement.ovmf import MAX_IMAGE

    firmware, hashes = read_file(args.firmware, "the firmware image", MAX_IMAGE), kernel_hashes(args)
    if not es:
        return sev_plan(firmware, kernel_hashes=hashes).digest()
    if args.vmsa_cpu0 is None:
        plan = sev_es_plan(
            firmware,
            args.num_cpus or args.vcpus,
            vcpu_type=args.vcpu_type,
            vcpu_signature=vcpu_signature(args),
            vmm=args.vmm,
            kernel_hashes=hashes,
            guest_features=args.guest_features,
        )
        return plan.digest()
    plan = sev_plan(firmware, kernel_hashes=hashes)
    plan.vmsas = _pages(args)
    return plan.digest()


def _pages(args: Namespace) -> list[bytes]:
    """VMSA pages from files, as `sev vmsa build` writes them."""
    from sev.abi import vmsa
    from sev.cli.files import read_file

    count = args.num_cpus or args.vcpus
    names = [args.vmsa_cpu0, *([args.vmsa_cpu1] * (count - 1))]
    if None in names:
        raise UsageError(f"{count} vCPUs need --vmsa-cpu1 too", field="--vmsa-cpu1")
    pages = {name: read_file(name, "the VMSA page", _VMSA_LIMIT) for name in set(names)}
    for page in pages.values():
        vmsa.parse(page)
    return [pages[name] for name in names]


def _key(path: str) -> bytes:
    from sev.cli.files import read_bytes

    return read_bytes(path, "the transport integrity key", 16, secret=True)
