"""The 17 public verification vectors, each with the verdict and the class of error that its code stands for."""

from __future__ import annotations

import json
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any

import pytest

from sev.attestation import Collateral, Policy, Roots, appraise, errors, verify
from tests.support.data import DATA

VECTORS = sorted((DATA / "vectors").glob("*.json"))

GENUINE: dict[str, tuple[type[Exception], ...]] = {
    "WRONG_REPORT_VERSION": (errors.ReportVersionUnsupported,),
    "REPORT_FORMAT_UNSUPPORTED": (errors.ReportMalformed,),
    "REPORT_SIGNATURE_INVALID": (errors.ReportSignatureInvalid,),
    "VCEK_CHAIN_INVALID": (errors.LeafSignatureInvalid,),
    "VCEK_EXPIRED": (errors.CertificateExpired,),
    "VCEK_HWID_MISMATCH": (errors.ChipIdMismatch, errors.LeafIncomplete),
    "VCEK_TCB_MISMATCH": (errors.TcbMismatch,),
}
"""Class by the publisher's code, where it says that the evidence is not genuine."""

WANTED = {
    "MEASUREMENT_MISMATCH": "measurement",
    "REPORT_DATA_MISMATCH": "report_data",
    "AUTHOR_KEY_DIGEST_MISMATCH": "author_key_digest",
    "TCB_OUT_OF_DATE": "reported_tcb",
    "GUEST_POLICY_DEBUG_SET": "policy.debug",
    "GUEST_POLICY_RESERVED_BIT_SET": "policy.unknown",
}
"""Field that fails by the publisher's code, where it says that genuine evidence is not as wanted."""


def _policy(wanted: dict[str, Any]) -> Policy:
    rules: dict[str, object] = {}
    for key, value in wanted.items():
        if key == "min_tcb_bl_spl":
            rules["reported_tcb"] = {"min": {"bootloader": value}}
        elif key == "enforce_spec_defaults":
            rules["policy"] = {"debug": "forbidden", "unknown": "forbidden", "reserved_mbo": "required"}
        else:
            rules[key.removeprefix("expected_").removesuffix("_hex")] = value
    return Policy(**rules)


def test_all_seventeen_are_there() -> None:
    assert len(VECTORS) == 17


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: str(path.stem))
def test_vector(path: Any) -> None:
    vector = json.loads(path.read_text())
    roots = Roots.from_pem(vector["ark_pem"].encode()) if vector["ark_pem"] else None
    authorities = [vector["ask_pem"].encode()] if vector["ask_pem"] else []
    collateral = Collateral(b64decode(vector["vcek_der_b64"]), authorities)
    at = datetime.fromtimestamp(vector["now_unix"], UTC)
    codes = vector["expected"]["codes"]
    classes = tuple(one for code in codes for one in GENUINE.get(code, ()))
    if classes:
        with pytest.raises(classes):
            verify(bytes.fromhex(vector["report_hex"]), collateral, at=at, roots=roots)
        return
    verified = verify(bytes.fromhex(vector["report_hex"]), collateral, at=at, roots=roots)
    appraisal = appraise(verified, _policy(vector["policy"]))
    assert appraisal.accepted is vector["expected"]["accepted"]
    assert [check.field for check in appraisal.failed] == [WANTED[code] for code in codes]
    assert len([check for check in appraisal.checks if check.result == "passed"]) >= len(vector["policy"]) - len(codes)
