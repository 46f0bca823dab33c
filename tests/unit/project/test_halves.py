"""Each half of the library with the other one absent: SEV without SNP, and the reverse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import half

ROOT = Path(__file__).resolve().parents[3]
LIBRARY = ROOT / "client" / "sev"

IMPORT_ALL = """
import importlib, json, sys
from tests.support import half
failed = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""

SUITES = {
    "sev": (
        "tests/unit/session", "tests/unit/sev_certificates", "tests/unit/certs/test_sev_chain.py",
        "tests/unit/certs/test_show_sev.py", "tests/conformance/test_sev_chains.py",
        "tests/conformance/test_sevctl_vectors.py", "tests/conformance/test_measure_legacy.py",
        "tests/integration/test_cli_sev_owner.py", "tests/integration/test_cli_report_legacy.py",
    ),
    "snp": (
        "tests/unit/attestation/test_report_command.py", "tests/unit/attestation/test_appraisal.py",
        "tests/unit/measurement/test_launch_plans.py", "tests/unit/measurement/test_id_blocks.py",
        "tests/unit/certs/test_certificate_files.py", "tests/conformance/test_reports_real.py",
        "tests/conformance/test_measure_vectors.py",
    ),
}  # fmt: skip
"""Tests of one half alone."""

SAMPLE = {
    "sev": ("tests/unit/session", "tests/conformance/test_sev_chains.py", "tests/conformance/test_sevctl_vectors.py"),
    "snp": (
        "tests/unit/attestation/test_appraisal.py", "tests/unit/measurement/test_launch_plans.py",
        "tests/conformance/test_measure_vectors.py",
    ),
}  # fmt: skip
"""Some of them."""

OF_BOTH = (
    "tests/integration/test_cli_sev_owner.py::test_x509_beside_it",
    "tests/unit/certs/test_show_sev.py::test_the_command",
    "tests/integration/test_cli_sev_owner.py::test_two_platforms_and_junk",
    "tests/integration/test_cli_report_legacy.py::test_without_a_chain",
)
"""Tests among them that also look at something of the other half."""


def modules() -> list[str]:
    names = (".".join(("sev", *file.relative_to(LIBRARY).with_suffix("").parts)) for file in LIBRARY.rglob("*.py"))
    return sorted(name.removesuffix(".__init__") for name in names)


def run(here: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SEVD_HALF": here, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def test_what_is_taken_away_is_there_otherwise() -> None:
    known = modules()
    assert [name for name in (*half.SEV, *half.SNP) if name not in known] == []
    assert not set(half.SEV) & set(half.SNP)


@pytest.mark.parametrize("here", half.ABSENT)
def test_every_module_loads_only_what_it_uses(here: str) -> None:
    import json

    wanted = [name for name in modules() if not half.is_absent(name, half.ABSENT[here])]
    done = run(here, "-c", IMPORT_ALL, json.dumps(wanted))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}
    assert len(wanted) > 100


@pytest.mark.parametrize("here", half.ABSENT)
def test_some_of_its_tests_pass(here: str) -> None:
    passes(here, SAMPLE[here], 60)


@pytest.mark.long
@pytest.mark.parametrize("here", half.ABSENT)
def test_its_tests_pass(here: str) -> None:
    passes(here, SUITES[here], 200)


def passes(here: str, files: tuple[str, ...], least: int) -> None:
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "tests.support.half", "-m", "not peer"]
    done = run(here, "-m", "pytest", *options, *(f"--deselect={test}" for test in OF_BOTH), *files)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(done.stdout.strip().splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed > least


def test_without_the_plugin_nothing_is_absent() -> None:
    done = run("", "-c", "import tests.support.half, sev.session, sev.attestation.verification")
    assert done.returncode == 0, done.stderr
