"""`sev vmsa`: the save area of an SEV-ES vCPU, as measured: built, changed, shown."""

from __future__ import annotations

from sev.cli import values
from sev.cli.parser import examples, lazy
from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from sev.cli.output import Output

_LIMIT = 1 << 16
_SEGMENT_PARTS = ("selector", "attributes", "limit", "base")


def build(parser: ArgumentParser) -> None:
    """Adds the verbs."""
    parser.description = (
        "A VMSA is the page, 4096 bytes, that holds a vCPU's registers. The firmware measures the first one of every\n"
        "vCPU, so a wrong register makes a wrong measurement."
    )
    verbs = parser.add_subparsers()
    lazy(verbs.add_parser("build", help="make the page of a vCPU at reset"), _build_build)
    lazy(verbs.add_parser("update", help="set registers of a page"), _build_update)
    lazy(verbs.add_parser("show", help="the registers of a page"), _build_show)


def _model(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("vCPU")
    group.add_argument("--cpu", metavar="N", type=values.integer(0, 4095), default=0, help="its number (default 0)")
    group.add_argument("--userspace", "--vmm", choices=("qemu", "krun"), default="qemu", help="who starts it")
    group.add_argument("--vcpu-type", metavar="TYPE", help="CPU model, as QEMU names it (EPYC-v4, EPYC-Milan, ...)")
    group.add_argument("--family", metavar="N", type=values.integer(0, 0x10E), help="CPU family, instead of a type")
    group.add_argument("--model", metavar="N", type=values.integer(0, 0xFF), help="CPU model number")
    group.add_argument("--stepping", metavar="N", type=values.integer(0, 0xF), help="CPU stepping")
    group.add_argument(
        "--vm-type",
        choices=("legacy", "sev-es"),
        default="legacy",
        help="legacy: KVM_SEV_ES_INIT (default, as sevctl); sev-es: KVM_SEV_INIT2, with x87 and SSE state",
    )
    group.add_argument(
        "--firmware", "--ovmf", metavar="FILE", help="firmware image: says where vCPUs after the first start"
    )


def _build_build(parser: ArgumentParser) -> None:
    parser.description = (
        "Writes the VMSA page that KVM measures for an SEV-ES vCPU at reset. Where a VMM uses KVM_SEV_INIT2 (Linux\n"
        "6.10 and later), --vm-type sev-es is right, which is what `sev measure sev-es` assumes."
    )
    parser.add_argument("file", metavar="FILE", help="where to write the page")
    _model(parser)
    parser.set_defaults(run=_build)
    examples(
        parser,
        ("sev vmsa build vmsa0.bin --vcpu-type EPYC-v4", "the first vCPU of a QEMU guest"),
        ("sev vmsa build vmsa1.bin --cpu 1 --vcpu-type EPYC-v4 --firmware OVMF.fd", "every other one"),
    )


def _build_update(parser: ArgumentParser) -> None:
    parser.description = (
        "Sets registers of a VMSA page in place: those of a vCPU model, and any named one. What is not named stays."
    )
    parser.add_argument("file", metavar="FILE", help="the page")
    _model(parser)
    parser.add_argument(
        "--set", metavar="REGISTER=N", action="append", default=[], help="a register, such as rdx=0x800f12; repeatable"
    )
    parser.set_defaults(run=_update)
    examples(
        parser,
        ("sev vmsa update vmsa0.bin --family 23 --model 49 --stepping 0", "another CPU model"),
        ("sev vmsa update vmsa0.bin --set sev_features=0x20", "with debug swap"),
    )


def _build_show(parser: ArgumentParser) -> None:
    parser.description = (
        "Shows every register of a VMSA page that is not zero; the page may come from sev vmsa build, sevctl or\n"
        "--dump-vmsa of sev measure."
    )
    parser.add_argument("file", metavar="FILE", help="the page")
    parser.add_argument(
        "--form",
        choices=("registers", "sevctl"),
        default="registers",
        help="registers: those that are not zero (default); sevctl: the JSON text of sevctl vmsa show",
    )
    parser.set_defaults(run=_show)
    examples(
        parser,
        ("sev vmsa show vmsa0.bin", "what would be measured"),
        ("sev vmsa show vmsa0.bin --form sevctl", "for scripts that read sevctl's"),
    )


def _build(args: Namespace, out: Output) -> int:
    page = _page(args, out)
    out.write_file(args.file, page)
    if args.file != "-":
        out.result({"file": args.file, "sha256": _sha256(page)}, f"Wrote {args.file}")
    return 0


def _update(args: Namespace, out: Output) -> int:
    from sev.abi import vmsa

    page = bytearray(_read(args.file))
    signature = _signature(args)
    if signature is not None:
        vmsa.store(page, "rdx", signature)
    if args.cpu and args.firmware is not None:
        address = _reset_address(args)
        vmsa.store(page, "rip", address & 0xFFFF)
        vmsa.store(page, "cs.base", address & 0xFFFF0000)
    for word in args.set:
        name, equals, text = word.partition("=")
        try:
            number = int(text, 0) if equals else -1
        except ValueError:
            number = -1
        if number < 0:
            raise UsageError(f"--set {word!r}: expected REGISTER=NUMBER", field="--set")
        vmsa.store(page, name, number)
    if bytes(page) == _read(args.file):
        out.note("sev: nothing changed")
    out.write_file(args.file, bytes(page))
    out.result({"file": args.file, "sha256": _sha256(bytes(page))}, f"Updated {args.file}")
    return 0


def _show(args: Namespace, out: Output) -> int:
    from sev.abi import vmsa

    page = _read(args.file)
    if args.form == "sevctl":
        from json import dumps

        from sev.cli import vmsa_sevctl

        fields = vmsa_sevctl.document(page)
        out.result(fields, dumps(fields, indent=2))
        return 0
    document: dict[str, object] = {}
    lines = []
    for name, value in vmsa.parse(page).items():
        if isinstance(value, tuple):
            parts = dict(zip(_SEGMENT_PARTS, value, strict=True))
            document[name] = parts
            shown = "  ".join(f"{part} {number:#x}" for part, number in parts.items())
        else:
            document[name] = value
            shown = f"{value:#x}"
        lines.append(f"{name:<16}{shown}")
    out.result(document, "\n".join(lines) or "every register is zero")
    return 0


def _page(args: Namespace, out: Output) -> bytes:
    from sev.measurement.vmsa_pages import sev_es_page

    signature = _signature(args)
    if signature is None:
        out.note("sev: no CPU model was given: RDX is 0, where a guest of QEMU has its signature")
    address = _reset_address(args) if args.cpu and args.userspace == "qemu" else 0
    return sev_es_page(args.userspace, args.cpu, signature or 0, address, x87=args.vm_type == "sev-es")


def _signature(args: Namespace) -> int | None:
    from sev.cli.measure_options import signature_of

    numbers = {"--family": args.family, "--model": args.model, "--stepping": args.stepping}
    if args.vcpu_type is None:
        return signature_of(numbers)
    given = [name for name, number in numbers.items() if number is not None]
    if given:
        raise UsageError(f"--vcpu-type and {given[0]} exclude each other", field="--vcpu-type")
    from sev.measurement.vcpu_types import signature

    return signature(args.vcpu_type)


def _reset_address(args: Namespace) -> int:
    from sev.cli.files import read_file
    from sev.measurement import ovmf
    from sev.measurement.inputs import needs_reset

    if args.firmware is None:
        raise UsageError(
            f"vCPU {args.cpu} starts where the firmware image says", remedy="Give --firmware.", field="--firmware"
        )
    return needs_reset(ovmf.Image(read_file(args.firmware, "the firmware image", ovmf.MAX_IMAGE)))


def _read(path: str) -> bytes:
    from sev.abi import vmsa
    from sev.cli.files import read_file

    page = read_file(path, "the VMSA page", _LIMIT)
    vmsa.parse(page)
    return page


def _sha256(page: bytes) -> str:
    from hashlib import sha256

    return sha256(page).hexdigest()
