"""Finding the report in what people have: files, device buffers, cloud blobs, text.

Forms, by content and never by name:

| form | what |
|---|---|
| `raw` | the 1184 bytes; also what configfs-tsm's `outblob` holds |
| `raw+certificates` | the report and the host's certificate table right behind it |
| `response` | the buffer of SNP_GET_REPORT: status u32, size u32, 24 reserved bytes, the report, zeros |
| `azure-hcl` | the blob in Azure's vTPM NV index 0x01400001: "HCLA", 32 bytes of header, the report, runtime data |

Each also as text: hexadecimal or base64 (white space ignored), shown as `hex:raw` or `base64:response`. Bytes that fit
none of these, trailing ones included, are refused.
"""

from __future__ import annotations

from sev.abi import cert_table
from sev.abi.report import SIZE, Report
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.products import Product

MAX_SIZE = 4 << 20
"""Larger inputs are refused, in bytes."""

RESPONSE_HEADER = 32
HCL_MAGIC = b"HCLA"
HCL_HEADER = 32
HCL_RUNTIME_AT = HCL_HEADER + SIZE
HCL_RUNTIME_HEADER = 20
HCL_REPORT_SNP, HCL_HASH_SHA256 = 2, 1

_HEX = frozenset(b"0123456789abcdefABCDEF")
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=")
_SPACE = b" \t\r\n\v\f"


class Evidence:
    """A report and what came with it.

    Attributes:
        report: The report.
        form: Which form it came in; see the module.
        certificate_table: The host's certificate table, where the form has one.
        runtime_data: Azure's runtime data (JSON), which the report data binds by its SHA-256.
    """

    __slots__ = ("certificate_table", "form", "report", "runtime_data")

    def __init__(
        self, report: Report, form: str, certificate_table: bytes | None = None, runtime_data: bytes | None = None
    ) -> None:
        self.report = report
        self.form = form
        self.certificate_table = certificate_table
        self.runtime_data = runtime_data

    def check_binding(self) -> bool:
        """Whether the runtime data is what the report data binds; False if there is none to check.

        Raises:
            RuntimeDataMismatch: report_data is not the SHA-256 of the runtime data and 32 zero bytes.
        """
        if self.runtime_data is None:
            return False
        from hashlib import sha256
        from hmac import compare_digest

        from sev.attestation.errors import RuntimeDataMismatch

        if not compare_digest(self.report.report_data, sha256(self.runtime_data).digest() + bytes(32)):
            raise RuntimeDataMismatch(
                "report_data is not the SHA-256 of the runtime data that came with the report", field="report_data"
            )
        return True

    def __repr__(self) -> str:
        return f"<Evidence {self.form}, {self.report!r}>"


def recognise(data: bytes | bytearray | memoryview, product: Product | None = None) -> Evidence:
    """The report in any of the forms above.

    Args:
        data: What a file or a device gave, at most 4 MiB.
        product: Processor line to read TCB versions by, where the report does not tell (version 2).

    Raises:
        MalformedInput: It fits no form; says what it looked like and what is wrong with that.
    """
    content = bytes(data)
    if len(content) > MAX_SIZE:
        raise MalformedInput(f"evidence: {len(content)} bytes, expected at most {MAX_SIZE}", field="report")
    if not content:
        raise MalformedInput("evidence: empty, expected an attestation report", field="report")
    text, encoding = _from_text(content)
    found = _binary(text if text is not None else content, product)
    if encoding:
        found.form = f"{encoding}:{found.form}"
    return found


def _from_text(content: bytes) -> tuple[bytes | None, str]:
    """Bytes behind hexadecimal or base64 text, and which of the two; (None, "") for anything else."""
    from binascii import Error, a2b_base64, unhexlify

    # A report has zero bytes from its fourth on; text has none.
    if 0 in content[:64]:
        return None, ""
    plain = content.translate(None, _SPACE)
    used = set(plain)
    if not used or not used <= _BASE64:
        return None, ""
    if plain[:2] in (b"0x", b"0X") and set(plain[2:]) <= _HEX:
        plain = plain[2:]
        used = set(plain)
    if used <= _HEX:
        if len(plain) % 2:
            raise MalformedInput(f"evidence: {len(plain)} hexadecimal digits, expected an even number", field="report")
        return unhexlify(plain), "hex"
    plain = plain.replace(b"-", b"+").replace(b"_", b"/")
    try:
        return a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True), "base64"
    except Error as error:
        raise MalformedInput(f"evidence: looks like base64, but is not ({error})", field="report") from None


def _binary(data: bytes, product: Product | None) -> Evidence:
    size = len(data)
    if size == SIZE:
        return Evidence(Report(data, product), "raw")
    if data[:4] == HCL_MAGIC:
        return _hcl(data, product)
    if size < SIZE:
        raise MalformedInput(f"evidence: {size} bytes, a report has {SIZE} (truncated)", field="report")
    # No report looks so: bit 17 of its policy, at byte 10, is one.
    if int.from_bytes(data[4:8], "little") == SIZE and not any(data[8:32]):
        return _response(data, product)
    try:
        table = cert_table.parse(data[SIZE:])
    except MalformedInput as error:
        raise MalformedInput(
            f"evidence: {size} bytes, of which {size - SIZE} follow a report and are no certificate table "
            f"({error.message})",
            field="report",
        ) from None
    if not table:
        raise MalformedInput(f"evidence: {size - SIZE} bytes left over behind the report", field="report")
    return Evidence(Report(data[:SIZE], product), "raw+certificates", certificate_table=data[SIZE:])


def _response(data: bytes, product: Product | None) -> Evidence:
    status = int.from_bytes(data[:4], "little")
    if status:
        raise MalformedInput(
            f"evidence: an SNP_GET_REPORT response with firmware status {status:#x}, so it holds no report",
            field="status",
        )
    end = RESPONSE_HEADER + SIZE
    if len(data) < end:
        raise MalformedInput(f"evidence: an SNP_GET_REPORT response of {len(data)} bytes, expected {end} (truncated)")
    if any(data[end:]):
        raise MalformedInput(f"evidence: bytes other than zero behind the report in the response at {end}")
    return Evidence(Report(data[RESPONSE_HEADER:end], product), "response")


def _hcl(data: bytes, product: Product | None) -> Evidence:
    start = HCL_RUNTIME_AT + HCL_RUNTIME_HEADER
    if len(data) < start:
        raise MalformedInput(f"evidence: an Azure HCL blob of {len(data)} bytes, expected {start} or more (truncated)")
    size, _, report_type, hash_type, length = (
        int.from_bytes(data[at : at + 4], "little") for at in range(HCL_RUNTIME_AT, start, 4)
    )
    if report_type != HCL_REPORT_SNP:
        raise MalformedInput(f"evidence: an Azure HCL blob with report type {report_type}, expected 2 (SNP)")
    if hash_type != HCL_HASH_SHA256:
        raise MalformedInput(f"evidence: an Azure HCL blob with hash type {hash_type}, expected 1 (SHA-256)")
    end = start + length
    if size != HCL_RUNTIME_HEADER + length or end > len(data):
        raise MalformedInput(
            f"evidence: an Azure HCL blob whose runtime data has {length} bytes by its header, "
            f"{len(data) - start} are there, and whose size says {size}"
        )
    if any(data[end:]):
        raise MalformedInput(f"evidence: bytes other than zero behind the runtime data at {end}")
    report = Report(data[HCL_HEADER:HCL_RUNTIME_AT], product)
    return Evidence(report, "azure-hcl", runtime_data=data[start:end])
