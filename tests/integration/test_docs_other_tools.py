"""The page for people who know sevctl and sev-tool: every command of theirs stands there, and ours exist."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from sev.cli.tree import Command, walk
from tests.support import docs

PAGE = "from-other-tools.md"
COMMANDS: dict[tuple[str, ...], Command] = {command.words: command for command in walk()}

SEVCTL = {
    *("export", "generate", "ok", "provision", "reset", "rotate", "session", "show flags", "show guests"),
    *("show identifier", "show version", "verify", "validate", "vmsa build", "vmsa update", "vmsa show"),
    *("measurement build", "secret build"),
}
SEV_TOOL = {
    *("factory_reset", "platform_status", "pek_gen", "pdh_gen", "pek_csr", "sign_pek_csr", "pek_cert_import"),
    *("pdh_cert_export", "get_id", "set_self_owned", "set_externally_owned", "generate_cek_ask", "get_ask_ark"),
    *("export_cert_chain", "export_cert_chain_vcek", "calc_measurement", "validate_cert_chain"),
    *("validate_cert_chain_vcek", "generate_launch_blob", "package_secret", "validate_attestation"),
    *("validate_guest_report", "--sys_info", "--test_all"),
}


@pytest.mark.parametrize(("tool", "known"), [("sevctl", SEVCTL), ("sev-tool", SEV_TOOL)], ids=["sevctl", "sev-tool"])
def test_every_command_of_theirs_is_there(tool: str, known: set[str]) -> None:
    named = {row[0] for row in docs.rows(PAGE, tool, "here", "different")}
    assert [one for one in sorted(known) if not any(row == one or row.startswith(f"{one} ") for row in named)] == []
    assert [row for row in sorted(named) if not any(row == one or row.startswith(f"{one} ") for one in known)] == []


def ours() -> list[str]:
    """What the page names of `sev`, one for each command."""
    text = docs.prose(docs.DOCS / PAGE)
    found = [one.replace("\\|", "|") for one in re.findall(r"`(sev [^`]*)`", text)]
    return sorted(set(found))


def whole() -> set[str]:
    """Those that stand in the place of a command of theirs, with all that they need."""
    rows = [row for tool in ("sevctl", "sev-tool") for row in docs.rows(PAGE, tool, "here", "different")]
    found = {one.replace("\\|", "|") for row in rows for one in re.findall(r"(sev [^,]+)", row[1])}
    return {one.replace("`", "").strip() for one in found if not one.rstrip("`").endswith("…")} | {
        one.replace("`", "").strip() for one in found if one.rstrip("`").endswith("FILE…")
    }


def spelled(words: list[str]) -> Iterator[list[str]]:
    """A line of the page as somebody would type it: of several values each in turn, of FILE… one."""
    values = next((word for word in words if "|" in word), "")
    for value in values.split("|"):
        yield [value if word == values else word.rstrip("…") for word in words]


@pytest.mark.parametrize("text", ours())
def test_what_is_named_here_exists(text: str) -> None:
    words = text.split()[1:]
    path = next(tuple(words[:count]) for count in range(len(words), 0, -1) if tuple(words[:count]) in COMMANDS)
    command = COMMANDS[path]
    options = {name for option in command.options for name in option.names}
    if command.is_leaf and text in whole():
        assert command.parser is not None
        for line in spelled(words[len(path) :]):
            command.parser.parse_args(line)  # SystemExit where it would be refused
    elif command.is_leaf:
        assert [word for word in words[len(path) :] if word.startswith("--") and word not in options] == []
    else:  # a noun as a whole, such as `sev snp`
        assert words == list(path)
