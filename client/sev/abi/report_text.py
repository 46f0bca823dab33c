"""The attestation report for programs (JSON object) and for people (text)."""

from __future__ import annotations

from sev.abi.report import FIELDS, NEWEST_VERSION, PLATFORM_BITS, Report
from sev.abi.report_fields import Octets, Tcb, Version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_AFTER: dict[str, tuple[tuple[str, Callable[[Report], object]], ...]] = {
    "guest_svn": (("policy", lambda report: report.policy.document()),),
    "current_tcb": (("platform_info", lambda report: platform_document(report.platform_info)),),
    "key_info": (
        ("author_key_en", lambda report: report.author_key_en),
        ("mask_chip_key", lambda report: report.mask_chip_key),
        ("signing_key", lambda report: report.signing_key),
    ),
    "cpuid_step": (("product", lambda report: report.product.name if report.product else None),),
    "current_mit_vector": (
        ("provisional", lambda report: report.provisional),
        ("reserved", lambda report: report.reserved),
        ("signature", lambda report: {"r": f"{report.signature_r:096x}", "s": f"{report.signature_s:096x}"}),
    ),
}
"""What follows which field: values that are not a field of their own."""


def platform_document(value: int) -> dict[str, object]:
    """PLATFORM_INFO as a JSON object: every bit by name, `unknown` as a number, `raw` as 16 hexadecimal digits."""
    out: dict[str, object] = {name: bool(value >> bit & 1) for name, bit in PLATFORM_BITS.items()}
    known = sum(1 << bit for bit in PLATFORM_BITS.values())
    return {**out, "unknown": value & ~known, "raw": f"{value:016x}"}


def value(report: Report, name: str) -> object:
    """One field as it stands in the JSON object.

    Raises:
        KeyError: No field has this name.
    """
    field = FIELDS[name]
    found = field.read(report)
    if isinstance(field, Octets) and isinstance(found, bytes):
        return found.hex()
    if isinstance(field, Tcb):
        return tcb_document(report, name)
    if isinstance(field, Version) and isinstance(found, tuple):
        return version_text(found)
    return found


def tcb_document(report: Report, name: str) -> dict[str, object]:
    """A TCB field as a JSON object; only `raw` where the byte order is not known."""
    layout = report.tcb_layout
    raw = report.tcb_raw(name)
    if layout is None:
        return {"raw": f"{raw:016x}"}
    from sev.abi.tcb import TcbVersion

    return TcbVersion(raw, layout).document()


def version_text(version: tuple[int, ...]) -> str:
    """A firmware version as "major.minor.build"."""
    return ".".join(str(part) for part in version)


def document(report: Report) -> dict[str, object]:
    """The report as a JSON object: names of the ABI, in the order of their offsets, None where absent."""
    out: dict[str, object] = {}
    for name in FIELDS:
        out[name] = value(report, name)
        for extra, read in _AFTER.get(name, ()):
            out[extra] = read(report)
    for which, version in (("current", report.current_version), ("committed", report.committed_version)):
        out[f"{which}_major"], out[f"{which}_minor"], out[f"{which}_build"] = version
    return out


def text(report: Report) -> str:
    """The report for people, one field a line."""
    lines: list[str] = []
    for name, shown in document(report).items():
        if name in ("signature", "reserved", "key_info") or name.endswith(("_major", "_minor", "_build")):
            continue
        lines.append(f"{name + ':':22}{_shown(report, name, shown)}")
    for offset, content in report.reserved.items():
        lines.append(f"{'reserved ' + offset + ':':22}{content}")
    if report.key_info_unknown:
        lines.append(f"{'key_info, unknown:':22}{report.key_info_unknown:#x}")
    lines.append(f"{'signature r:':22}{report.signature_r:096x}")
    lines.append(f"{'signature s:':22}{report.signature_s:096x}")
    return "\n".join(lines)


def _shown(report: Report, name: str, shown: object) -> str:
    if name == "version":
        newer = f" (newer than {NEWEST_VERSION}, read as that)" if report.version > NEWEST_VERSION else ""
        return f"{shown}{newer}"
    if name == "policy":
        return str(report.policy)
    if name == "vmpl":
        return "none: asked for by the host" if report.vmpl == 0xFFFFFFFF else str(shown)
    if isinstance(shown, dict):
        return _shown_dict(shown)
    if shown is None:
        return "not in this version"
    if isinstance(shown, bool):
        return "yes" if shown else "no"
    if name.endswith("_mit_vector") and isinstance(shown, int):
        return f"{shown:#x}"
    return str(shown)


def _shown_dict(shown: dict[str, object]) -> str:
    raw = shown["raw"]
    if len(shown) == 1:
        return f"{raw} (byte order not known; name the product)"
    if "smt_en" in shown:
        words = [name for name, on in shown.items() if on is True]
        if shown["unknown"]:
            words.append(f"unknown {shown['unknown']:#x}")
        return f"0x{str(raw).lstrip('0') or '0'} ({', '.join(words) or 'nothing set'})"
    return ", ".join(f"{name} {part}" for name, part in shown.items() if name != "raw") + f" ({raw})"
