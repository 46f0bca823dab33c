"""The frame of `sev`: help, usage errors, exit codes, and what happens when things go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from sev import errors
from sev.cli import main as frame
from sev.cli.main import EXIT_CODES, NOUNS
from sev.cli.parser import Parser, examples, lazy
from tests.support.cli import sev

Action = Callable[[Any, Any], int]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Action], None]:
    """A noun `fake` with the verbs `do` (runs the given function), `mode on|off` and the nested `deep er`."""
    action: list[Action] = [lambda args, out: 0]

    def run(args: Any, out: Any) -> int:
        return action[0](args, out)

    def build(parser: Parser) -> None:
        verbs = parser.add_subparsers()
        do = verbs.add_parser("do", aliases=["perform"], help="does it")
        do.add_argument("--count", type=int, default=1, metavar="N")
        do.add_argument("--mode", choices=["on", "off"])
        do.add_argument("word", nargs="?")
        do.set_defaults(run=run)
        examples(do, ("sev fake do", "do it"), notes="Some notes.")
        deep = verbs.add_parser("deep", help="goes on").add_subparsers()
        lazy(deep.add_parser("er"), lambda parser: parser.set_defaults(run=lambda args, out: 7))

    module = ModuleType("sev.cli.fake")
    vars(module)["build"] = build
    monkeypatch.setitem(sys.modules, "sev.cli.fake", module)
    monkeypatch.setitem(NOUNS, "fake", "a noun of this test")
    return lambda wanted: action.__setitem__(0, wanted)


def test_help_without_a_noun() -> None:
    done = sev("--help")
    assert (done.code, done.err) == (0, "")
    assert all(noun in done.out for noun in NOUNS)
    assert all(text in done.out for _, text in EXIT_CODES)
    assert sev("-h").out == sev("help").out == done.out


def test_no_noun_prints_the_help_on_stderr() -> None:
    done = sev()
    assert (done.code, done.out) == (2, "")
    assert done.err == sev("--help").out


def test_version() -> None:
    from sev import __version__

    assert sev("--version").out == f"sev {__version__}\n"
    assert sev("measure", "snp", "--version").out == f"sev {__version__}\n"
    assert sev("--json", "--version").json() == {"version": __version__}


USAGE: dict[str, tuple[list[str], str]] = {
    "unknown noun": (["measrue"], "Did you mean measure?"),
    "nothing like it": (["qqqqq"], "It is one of: demo, host"),
    "unknown option before the noun": (["--jsn", "host"], "Did you mean --json?"),
    "unknown verb": (["fake", "ddo"], "Did you mean do?"),
    "verb missing": (["fake"], "It is one of: do, deep."),
    "nested verb missing": (["fake", "deep"], "It is one of: er."),
    "unknown option": (["fake", "do", "--cuont", "1"], "Did you mean --count?"),
    "unknown option, global meant": (["fake", "do", "--jsn"], "Did you mean --json?"),
    "unknown short option": (["fake", "do", "-x"], "-x: no such option"),
    "one word too many": (["fake", "do", "a", "b"], "'b': one word too many"),
    "not a number": (["fake", "do", "--count", "x"], "--count: invalid int value: 'x'"),
    "value missing": (["fake", "do", "--count"], "--count: expected one argument"),
    "not a choice": (["fake", "do", "--mode", "onn"], "Did you mean on?"),
    "global value missing": (["fake", "do", "--socket"], "--socket: a value is missing"),
    "bad timeout": (["fake", "do", "--timeout", "x"], "--timeout: expected seconds"),
}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", USAGE)
def test_usage_errors(name: str) -> None:
    words, message = USAGE[name]
    done = sev(*words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    as_json = sev("--json", *words)
    error = as_json.json()["error"]
    assert as_json.code == 2
    assert error["kind"] == "usage"
    assert message in f"{error['message']} {error['remedy']}"


@pytest.mark.usefixtures("fake")
def test_a_missing_verb_shows_the_usage() -> None:
    assert "usage: sev fake" in sev("fake").err
    assert "usage: sev fake deep" in sev("fake", "deep").err


@pytest.mark.usefixtures("fake")
def test_help_of_nouns_and_verbs() -> None:
    noun = sev("fake", "--help")
    assert (noun.code, noun.err) == (0, "")
    assert "does it" in noun.out
    verb = sev("fake", "do", "--help")
    assert "--count N" in verb.out
    assert "examples:\n  # do it\n  sev fake do\n\nSome notes." in verb.out
    assert sev("help", "fake", "do").out == verb.out
    assert "None" not in noun.out + verb.out


def test_verbs_aliases_and_nested_verbs_run(fake: Callable[[Action], None]) -> None:
    seen: list[Any] = []

    def remember(args: Any, out: Any) -> int:
        seen.append(args)
        return 0

    fake(remember)
    assert sev("--socket", "s", "fake", "-v", "perform", "w", "--count", "3", "--timeout=2").code == 0
    (args,) = seen
    assert (args.count, args.word, args.socket, args.timeout, args.verbose, args.json) == (
        3,
        "w",
        "s",
        2.0,
        True,
        False,
    )
    assert sev("fake", "deep", "er").code == 7


RAISED: dict[str, tuple[Exception, int, str]] = {
    "usage": (errors.UsageError("no"), 2, "usage"),
    "verification": (errors.VerificationError("no"), 3, "verification"),
    "appraisal": (errors.AppraisalError("no"), 4, "appraisal"),
    "collateral": (errors.CollateralError("no"), 5, "undecided"),
    "kernel": (errors.KernelError(16), 6, "refused"),
    "firmware": (errors.FirmwareError(7), 6, "refused"),
    "not permitted": (errors.NotPermitted("no"), 7, "not_permitted"),
    "unreachable": (errors.Unreachable("no"), 8, "unreachable"),
    "malformed": (errors.MalformedInput("no"), 9, "malformed"),
    "not found": (errors.NotFound("no"), 10, "not_found"),
    "not now": (errors.NotNow("no"), 11, "not_now"),
    "file": (FileNotFoundError(2, "No such file or directory", "/x/y"), 2, "usage"),
    "rename": (OSError(18, "Invalid cross-device link", "/x", None, "/y"), 2, "usage"),
    "bug": (ZeroDivisionError("oops"), 1, "internal"),
}


@pytest.mark.parametrize("name", RAISED)
def test_every_error_has_its_exit_code_and_document(fake: Callable[[Action], None], name: str) -> None:
    error, code, kind = RAISED[name]

    def fail(args: object, out: object) -> int:
        raise error

    fake(fail)
    done = sev("fake", "do")
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("sev: ")
    as_json = sev("fake", "do", "--json")
    assert as_json.code == code
    assert as_json.json()["error"]["kind"] == kind
    assert set(as_json.json()["error"]) >= {"kind", "message", "remedy"}


def test_files_are_named(fake: Callable[[Action], None]) -> None:
    def fail(args: object, out: object) -> int:
        raise OSError(18, "Invalid cross-device link", "/x", None, "/y")

    fake(fail)
    assert "/x and /y: Invalid cross-device link" in sev("fake", "do").err


def test_a_bug_says_where_to_report_it_and_shows_no_trace(
    fake: Callable[[Action], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: object, out: object) -> int:
        raise ZeroDivisionError("oops")

    fake(fail)
    done = sev("fake", "do")
    assert "report it" in done.err
    assert "unexpected ZeroDivisionError: oops" in done.err
    assert "test_cli_frame.py" in sev("fake", "do", "-v").err
    monkeypatch.setenv("SEV_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        sev("fake", "do")


def test_interruption(fake: Callable[[Action], None]) -> None:
    def interrupted(args: object, out: object) -> int:
        raise KeyboardInterrupt

    fake(interrupted)
    done = sev("fake", "do")
    assert (done.code, done.err) == (130, "sev: interrupted\n")
    assert sev("fake", "do", "--json").json()["error"]["kind"] == "interrupted"


def test_readers_that_leave(fake: Callable[[Action], None]) -> None:
    def gone(args: object, out: object) -> int:
        raise BrokenPipeError

    fake(gone)
    done = sev("fake", "do")
    assert (done.code, done.data, done.err) == (0, b"", "")


def test_results_and_notes(fake: Callable[[Action], None]) -> None:
    def speak(args: object, out: Any) -> int:
        out.note("a note")
        out.detail("a detail")
        out.progress("work", 1, 2)
        out.result({"a": 1}, "text")
        return 4

    fake(speak)
    assert (sev("fake", "do").out, sev("fake", "do").err, sev("fake", "do").code) == ("text\n", "a note\n", 4)
    assert sev("fake", "do", "-q").err == ""
    assert sev("fake", "do", "-v").err == "a note\na detail\n"
    assert sev("fake", "do", "--json").json() == {"a": 1}


def test_exit_codes_are_those_of_the_errors() -> None:
    documented = {code for code, _ in EXIT_CODES}
    pending = [errors.SevError]
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        assert cls.exit_code in documented
    assert frame.main(["--help"]) == 0


SEV = [sys.executable, "-c", "from sev.cli.main import entry; entry()"]


def test_a_closed_pipe_is_silent() -> None:
    """The reader of a long help leaves after one line."""
    process = subprocess.Popen([*SEV, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (0, b"")


def test_a_full_disk_is_an_error() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        for words in (["--help"], ["measure", "snp", "--help"], ["--version"]):
            done = subprocess.run([*SEV, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert (done.returncode, done.stderr) == (2, "sev: No space left on device\n")


def test_ctrl_c_ends_a_command(tmp_path: Any) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = [*SEV, "--json", "measure", "snp", "--ovmf", str(fifo)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with open(fifo, "wb"):  # opened by both: it is reading now
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, json.loads(out)["error"]["kind"], err) == (130, "interrupted", "sev: interrupted\n")
