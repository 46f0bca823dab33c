"""The documentation is true: its commands parse and run, its tables say what the code says, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sev
from sev import errors, products, status
from sev.attestation import Policy
from sev.attestation import errors as verification
from sev.attestation.policy import fields
from sev.attestation.steps import STEPS
from sev.cli import globals as global_options
from sev.cli.main import EXIT_CODES, NOUNS, build_parser
from sev.cli.parser import Parser, run_of, verb_names
from sev.host.result import TECHNOLOGIES
from sev.host.verdict import CHECKS
from sev.measurement import vcpu_types, vmm
from sev.measurement.sample import sample_firmware
from sev.v1 import endorsement_pb2, guest_pb2, host_pb2, sev_platform_pb2, simulator_pb2, snp_platform_pb2
from sevd import config
from sevd.__main__ import _parser as sevd_parser
from sevd.api.faults import code_of
from sevd.api.rules import FOREIGN, Method, methods_of
from sevd.simulator import versions
from tests.support import docs
from tests.support.daemon import Daemon
from tests.support.docs import Block, Command
from tests.support.served_guest import served_guest

SERVICES = [
    service
    for module in (endorsement_pb2, guest_pb2, host_pb2, sev_platform_pb2, simulator_pb2, snp_platform_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
BLOCKS = [block for page in docs.pages() for block in docs.blocks(page)]
COMMANDS = [
    pytest.param(command.text, id=f"{block.page.name}:{command.line}")
    for block in BLOCKS
    if block.language == "console"
    for command in block.commands()
]
RUNS = ("run", "host", "grpcurl", "guest")
APART = ("grpcurl", "guest")
"""Blocks that are run for themselves."""


def runs(block: Block) -> bool:
    """Whether a block is run, or writes a file that the page's commands use."""
    return bool(block.file) or any(word in RUNS for word in block.words)


# --- commands -------------------------------------------------------------------------------------------------------


def own_commands(line: str) -> Iterator[list[str]]:
    """The words of every `sev` and `sevd` command in a line of shell, redirections left out."""
    line = re.sub(r"\$\([^)]*\)|\$[A-Z_]+", "00" * 48, line)  # a digest for whatever the shell puts in
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();|&"):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[0] in ("sev", "sevd"):
                yield words
            words = []
        else:
            words.append(word)


def parses(words: list[str]) -> None:
    """Raises if a command line is not understood."""
    cut = next((at for at, word in enumerate(words) if set(word) <= set("<>")), len(words))
    words = words[:cut]
    if words[0] == "sevd":
        sevd_parser().parse_args(words[1:])
        return
    options, rest = global_options.split(words[1:])
    if options.problem is not None:
        raise options.problem
    if not rest or rest[0].startswith("-"):
        assert options.version or rest == ["--help"], f"no noun in {' '.join(words)}"
        return
    run_of(*build_parser(rest[0]).parse_known_args(rest[1:]))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    for inner in [line, *re.findall(r"\$\(([^)]*)\)", line)]:
        for words in own_commands(inner):
            if "--help" in words:
                continue
            try:
                parses(words)
            except (errors.SevError, SystemExit) as error:
                pytest.fail(f"{' '.join(words)}: {error}")


def leaves(parser: Parser, path: tuple[str, ...]) -> Iterator[str]:
    """Every command below a parser."""
    parser.ready()
    if parser.verbs is None:
        yield " ".join(path)
        return
    for name in verb_names(parser):
        yield from leaves(parser.verbs.choices[name], (*path, name))


def test_every_command_is_documented() -> None:
    written = "\n".join(page.read_text() for page in docs.pages())
    missing = [
        command for noun in NOUNS for command in leaves(build_parser(noun), ("sev", noun)) if command not in written
    ]
    assert not missing


def script(blocks: list[Block], folder: Path) -> tuple[str, list[tuple[str, Command]]]:
    """A shell program that runs a page's blocks in order, and the commands in it with where they stand."""
    lines: list[str] = []
    found: list[tuple[str, Command]] = []
    for block in blocks:
        if block.file:
            (folder / block.file).write_text(block.text)
        if block.language == "python" and any(word in RUNS for word in block.words):
            name = f"program{block.line}.py"
            (folder / name).write_text(block.text)
            commands = [Command(block.line, f"{shlex.quote(sys.executable)} {name}", ())]
        elif block.language == "console" and any(word in RUNS for word in block.words):
            commands = block.commands()
        else:
            continue
        for command in commands:
            number = len(found)
            found.append((f"{block.page.name}:{command.line}", command))
            lines.append(f"{{ {command.text}\n}} >.out{number} 2>&1; code=$?; echo $code >.code{number}; (exit $code)")
    return "\n".join(lines) + "\n", found


def check_page(
    blocks: list[Block], folder: Path, socket: str, inside: Callable[[list[str]], list[str]] = lambda command: command
) -> None:
    """Runs a page, `inside` of what that makes of the command, and compares what it did with what the page shows."""
    (folder / "OVMF.fd").write_bytes(sample_firmware())
    (folder / "bzImage").write_bytes(b"\x90kernel" * 999)
    (folder / "initrd.img").write_bytes(b"\x1finitrd" * 999)
    text, found = script(blocks, folder)
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    home = folder / ".home"
    home.mkdir()
    environ = {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "TMPDIR": str(folder), "SEVD_SOCKET": socket}
    subprocess.run(
        inside(["bash", "-c", text]), cwd=folder, env=environ, check=True, stdin=subprocess.DEVNULL, timeout=300
    )
    problems = []
    for number, (where, command) in enumerate(found):
        output = (folder / f".out{number}").read_text()
        code = int((folder / f".code{number}").read_text())
        following = found[number + 1][1] if number + 1 < len(found) else None
        wanted = int(following.shown[0]) if following is not None and following.text == "echo $?" else 0
        missing = docs.unmatched(command.shown, output)
        if code != wanted:
            problems.append(f"{where}: {command.text}: exit code {code}, expected {wanted}:\n{output}")
        elif missing is not None:
            problems.append(f"{where}: {command.text}: does not print {missing!r}:\n{output}")
        assert "Traceback" not in output, f"{where}: {output}"
    assert not problems, "\n\n".join(problems)


def running_pages(kind: Callable[[Block], bool]) -> list[object]:
    """Pages with blocks of a kind."""
    return [
        pytest.param(page, id=page.name) for page in docs.pages() if any(kind(block) for block in docs.blocks(page))
    ]


@pytest.mark.parametrize("page", running_pages(lambda block: "run" in block.words or "host" in block.words))
def test_pages_run(page: Path, tmp_path: Path, daemon: Daemon) -> None:
    chosen = [block for block in docs.blocks(page) if runs(block) and not any(word in APART for word in block.words)]
    check_page(chosen, tmp_path, daemon.socket)


@pytest.mark.parametrize("page", running_pages(lambda block: "guest" in block.words))
def test_pages_run_inside_a_guest(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    with served_guest(tmp_path / "host") as guest:
        check_page([block for block in docs.blocks(page) if "guest" in block.words], folder, "", guest.inside)


@pytest.mark.parametrize("page", running_pages(lambda block: "grpcurl" in block.words))
def test_grpcurl(page: Path, tmp_path: Path, daemon: Daemon) -> None:
    if shutil.which("grpcurl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("grpcurl is missing")
        pytest.skip("grpcurl is not installed")
    check_page([block for block in docs.blocks(page) if "grpcurl" in block.words], tmp_path, daemon.socket)


# --- files in the text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [pytest.param(one, id=one.where) for one in BLOCKS if "policy" in one.words])
def test_policies_load(block: Block) -> None:
    assert len(Policy.load(block.text, block.language))


@pytest.mark.parametrize("block", [pytest.param(one, id=one.where) for one in BLOCKS if "config" in one.words])
def test_configurations_load(block: Block) -> None:
    assert config.parse(block.text.encode(), block.where) != config.Settings()


# --- tables -----------------------------------------------------------------------------------------------------------


def default_of(setting: config.Setting) -> str:
    value = getattr(config.Settings(), setting.attribute)
    if value is None:
        return "see below" if setting.kind == "path" else "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{one}"' for one in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def range_of(setting: config.Setting) -> str:
    if setting.kind != "number":
        return ", ".join(f'"{word}"' for word in setting.words) or {
            "path": "path",
            "texts": "list",
            "switch": "true, false",
        }.get(setting.kind, "text")
    most = "" if setting.most == 1 << 62 else f" to {setting.most}"
    return f"{setting.least}{most or ' and more'}{' ' + setting.unit if setting.unit else ''}"


def test_settings() -> None:
    expected = [
        (one.name, default_of(one), range_of(one), "reload" if one.live else "restart", one.meaning, one.risk)
        for one in config.SETTINGS
    ]
    assert docs.rows("daemon.md", "setting", "default", "values", "takes a", "what it does", "risk") == expected


def test_daemon_options() -> None:
    text = (docs.DOCS / "daemon.md").read_text()
    options = [option for action in sevd_parser()._actions for option in action.option_strings if option[:2] == "--"]
    assert [option for option in options if f"`{option}" not in text] == []


def test_policy_keys() -> None:
    named = [row[0] for row in docs.rows("verify-a-report.md", "key", "what stands there", "what it is")]
    assert sorted(named) == sorted(name for name in fields() if "." not in name)
    bits = docs.rows("verify-a-report.md", "table", "key", "what it is")
    assert sorted(f"{row[0]}.{row[1]}" for row in bits) == sorted(name for name in fields() if "." in name)


def test_steps() -> None:
    expected = [(str(number), name, text) for number, (name, text) in enumerate(STEPS.items(), 1)]
    assert [row[:3] for row in docs.rows("verify-a-report.md", "step", "id", "passes if", "fails as")] == expected


def test_failures_of_verification() -> None:
    classes = [getattr(verification, name) for name in verification.__all__]
    expected = {(one.reason, str(one.exit_code)) for one in classes if "reason" in vars(one)}
    listed = docs.rows("verify-a-report.md", "reason", "exit", "what it means")
    assert {row[:2] for row in listed} == expected
    assert len(listed) == len(expected)


def subclasses(cls: type[errors.SevError]) -> Iterator[type[errors.SevError]]:
    for one in cls.__subclasses__():
        if one.__module__ == "sev.errors":
            yield one
            yield from subclasses(one)


def one_of(cls: type[errors.SevError]) -> errors.SevError:
    """An error of a class."""
    numbered: dict[type[errors.SevError], errors.SevError] = {
        errors.FirmwareError: errors.FirmwareError(7),
        errors.KernelError: errors.KernelError(22),
    }
    return numbered.get(cls) or cls("it failed")


def test_reasons() -> None:
    expected = {
        (one.reason, one.kind, str(one.exit_code), code_of(one_of(one)).name) for one in subclasses(errors.SevError)
    }
    listed = docs.rows("api.md", "reason", "kind", "exit", "code", "when")
    assert {tuple(cell.strip("`") for cell in row[:4]) for row in listed} == expected


def test_exit_codes() -> None:
    kinds = {(str(one.exit_code), one.kind) for one in subclasses(errors.SevError)}
    listed = docs.rows("exit-codes.md", "code", "kind", "meaning")
    assert {row[0] for row in listed} == {str(code) for code, _ in EXIT_CODES}
    assert {row[:2] for row in listed if row[1]} == kinds | {("130", "interrupted")}
    text = (docs.DOCS / "exit-codes.md").read_text()
    shown = {int(code) for code in re.findall(r"^\$ echo \$\?\n(\d+)$", text, re.MULTILINE)}
    assert shown >= {code for code, _ in EXIT_CODES} - {0, 1}


def described(method: Method) -> tuple[str, ...]:
    marks = {
        "idempotent": method.idempotent,
        "destructive": method.destructive,
        "needs the device": method.needs_device,
    }
    return method.name, method.role.text, ", ".join(name for name, set_ in marks.items() if set_)


def test_roles() -> None:
    expected = [described(method) for method in methods_of(SERVICES)]
    listed = docs.rows("api.md", "method", "role", "options", "what it does")
    assert sorted(row[:3] for row in listed) == sorted(expected)
    foreign = docs.rows("api.md", "method of others", "role")
    assert sorted(foreign) == sorted(
        (name.removeprefix("/"), role.text if role is not None else "any that may connect")
        for name, role in FOREIGN.items()
    )


def test_firmware_versions() -> None:
    expected = []
    for name, releases in versions.RELEASES.items():
        product = products.by_name(name)
        for one in releases:
            tcb = sev.TcbVersion.decode(one.tcb, product)
            levels = " ".join(f"{part} {level}" for part, level in tcb.components().items())
            default = "default" if one.version == versions.default(product) else ""
            expected.append((name, versions.text(one.version), f"v{one.report_version}", levels, default))
    assert docs.rows("simulator.md", "product", "firmware", "reports", "TCB", "") == expected


def test_vmms_and_processors() -> None:
    assert [row[0] for row in docs.rows("measure-a-guest.md", "name", "since", "what differs")] == list(vmm.NAMES)
    text = (docs.DOCS / "measure-a-guest.md").read_text()
    assert [name for name in vcpu_types.NAMES if f"`{re.sub('-v[0-9]+$', '', name)}`" not in text] == []


def test_statuses() -> None:
    for code, name, *_ in docs.rows("troubleshooting.md", "code", "status", "where people meet it", "what to do"):
        assert status.name(int(code, 16)) == name


def test_host_checks() -> None:
    def names(technologies: tuple[str, ...]) -> str:
        return "all" if technologies == TECHNOLOGIES else ", ".join(technologies)

    expected = [(one.id, one.group, one.title, names(one.decides), names(one.required)) for one in CHECKS]
    assert docs.rows("host.md", "id", "group", "it looks for", "decides for", "required for") == expected


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in docs.pages()])
def test_links(page: Path) -> None:
    for target in docs.links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in docs.anchors(file), f"{page.name}: {target}"


def test_index_names_every_page() -> None:
    linked = {(docs.DOCS / target.partition("#")[0]).resolve() for target in docs.links(docs.DOCS / "README.md")}
    assert [page.name for page in docs.pages() if page not in linked and page.name != "README.md"] == []
