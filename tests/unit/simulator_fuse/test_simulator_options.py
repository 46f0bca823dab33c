"""The command line of sevd-simulator, and what the documentation says of it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from sevd.simulator import faults, kernel_era
from sevd.simulator.main import PRODUCTS, _options, _parser

ROOT = Path(__file__).resolve().parents[3]
PAGES = [page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))]
NEEDED = ["--state-dir", "s", "--device-dir", "d"]


def parse(*options: str) -> argparse.Namespace:
    return _parser().parse_args([*NEEDED, *options])


def test_every_option_is_documented() -> None:
    text = "\n".join(PAGES)
    names = [action.option_strings[-1] for action in _parser()._actions if action.option_strings]
    missing = [name for name in names if name not in text and name not in ("--help", "--version", "--quiet")]
    assert missing == []


def test_faults_in_the_documentation_are_faults() -> None:
    page = (ROOT / "docs" / "simulator.md").read_text()
    table = page[page.index("| `--fault` |") :].partition("\n\n")[0]
    found = re.findall(r"`([A-Z_*]+:[a-z][^`]*)`", table)
    assert len(found) >= 5
    for spec in found:
        assert faults.parse(spec).command


def test_defaults() -> None:
    options = parse()
    assert (options.product, options.kernel_era, options.seed, options.kds) == ("genoa", kernel_era.DEFAULT, None, None)
    assert options.state_dir == Path("s").absolute(), "the folders do not depend on where the server stands later"
    assert _options(options).sev_mode == 0o600


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("era", sorted(kernel_era.ERAS))
def test_every_product_and_era_is_an_option(product: str, era: str) -> None:
    options = parse("--product", product, "--kernel-era", era)
    assert (options.product, options.kernel_era) == (product, era)


@pytest.mark.parametrize(
    ("text", "want"),
    [("127.0.0.1:8443", ("127.0.0.1", 8443)), ("[::1]:0", ("::1", 0)), ("localhost:1", ("localhost", 1))],
)
def test_addresses(text: str, want: tuple[str, int]) -> None:
    assert parse("--kds", text).kds == want


@pytest.mark.parametrize(
    "options",
    [
        ("--kds", "8443"),
        ("--kds", ":8443"),
        ("--kds", "h:65536"),
        ("--kds", "h:x"),
        ("--seed", "-1"),
        ("--seed", str(1 << 62)),
        ("--sev-mode", "1777"),
        ("--sev-mode", "rw"),
        ("--product", "venice"),
        ("--state", "s"),
        ("--device-dir", ""),
    ],
    ids=" ".join,
)
def test_wrong_values_end_with_two(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*options)
    assert ended.value.code == 2
    assert "usage: sevd-simulator" in capsys.readouterr().err
