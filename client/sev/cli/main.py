"""Entry point of `sev`: finds the noun, builds only its parser, maps every error to an exit code."""

from __future__ import annotations

import sys

from sev.cli import globals as global_options
from sev.cli.output import Output
from sev.errors import InternalError, SevError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from sev.cli.parser import Parser

NOUNS: dict[str, str] = {
    "demo": "plays the whole story on a private simulated host",
    "host": "what this host is",
    "snp": "the SNP platform: status, commit, configuration, VLEK",
    "platform": "the platform of SEV and SEV-ES: status, reset, keys, owner, export",
    "certs": "certificates: export, import, show, verify, fetch, url, generate, sign",
    "guest": "hosted guests: launch, run, pause, list, show, watch, delete, report",
    "report": "attestation reports: show, verify, appraise",
    "attest": "inside a guest: report, certificates, key, check",
    "measure": "expected launch digests",
    "measurement": "the measurement of an SEV or SEV-ES launch: check, build",
    "session": "a guest owner's keys and launch blob for SEV and SEV-ES: create",
    "secret": "secrets for SEV and SEV-ES guests: build",
    "vmsa": "save areas of SEV-ES vCPUs: build, update, show",
    "id-block": "ID blocks: create, digest",
    "top": "a live table of a host and its guests",
    "events": "what happens on a host, as it happens",
    "audit": "who asked the daemon for what, and what came of it",
    "doctor": "what is wrong here, and a bundle for the report of a bug",
    "explain": "what a firmware status means and what to do",
    "completion": "completion for bash, zsh or fish",
}
"""Nouns with one line of help; the module is sev.cli.<noun>, hyphens as underscores."""

EXIT_CODES = (
    (0, "done; the answer is yes"),
    (1, "unexpected failure: a bug"),
    (2, "usage: unknown option, bad value, unreadable file, confirmation missing"),
    (3, "verification: no"),
    (4, "appraisal: genuine, but not what the policy asks for; check: not able"),
    (5, "cannot decide: certificates or revocation lists missing or unusable"),
    (6, "refused by firmware or kernel, or the device is absent"),
    (7, "not permitted for this caller"),
    (8, "no daemon answers"),
    (9, "malformed input"),
    (10, "not found"),
    (11, "not now: wrong state, busy, or a limit is reached"),
    (130, "interrupted"),
)
"""Every exit code with its meaning."""


def entry() -> NoReturn:
    """The process: runs the command and ends.

    Tearing the interpreter down costs a tenth of a short command and does nothing that the end of the process does
    not do, unless there are threads or their libraries' exit handlers: then it is left to the interpreter.
    """
    import gc
    import os

    gc.set_threshold(100_000)  # what a start allocates stays: collecting in between finds nothing
    code = main()
    if "threading" not in sys.modules:
        os._exit(code)
    sys.exit(code)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; answers its exit code. `argv` is without the program's name; by default the process's own."""
    options, words = global_options.split(list(sys.argv[1:] if argv is None else argv))
    out = Output(json=options.json, quiet=options.quiet, verbose=options.verbose)
    try:
        try:
            code = _run(options, words, out)
        except SystemExit as stop:  # argparse, after printing help
            code = stop.code if isinstance(stop.code, int) else 0
        out.flush()
        return code
    except KeyboardInterrupt:
        out.interrupted()
        return 130
    except SevError as error:
        out.error(error)
        return error.exit_code
    except BrokenPipeError:  # who read our stdout has seen enough
        out.silence()
        return 0
    except OSError as error:
        out.error(_file_error(error))
        return UsageError.exit_code
    except Exception as error:
        return _unexpected(error, out)


def build_parser(noun: str) -> Parser:
    """The parser of one noun, for parsing, completion and tests.

    Raises:
        KeyError: There is no such noun.
    """
    from sev.cli.parser import Parser

    parser = Parser(prog=f"sev {noun}", description=NOUNS[noun][0].upper() + NOUNS[noun][1:] + ".")
    _module(noun).build(parser)
    return parser


def _module(noun: str) -> Any:
    """The noun's module: `build(parser)`, and `quick(words)` where plain commands can do without a parser."""
    name = "sev.cli." + noun.replace("-", "_")
    __import__(name)
    return sys.modules[name]


def _run(options: global_options.GlobalOptions, words: list[str], out: Output) -> int:
    if options.version:
        from sev import __version__

        out.result({"version": __version__}, f"sev {__version__}")
        return 0
    if words and words[0] == "help":
        words = [*words[1:], "--help"]
    if words and words[0] in ("-h", "--help"):
        out.text(_help())
        return 0
    if options.problem is not None:
        raise options.problem
    if not words:
        if not out.json:
            sys.stderr.write(_help())
            return UsageError.exit_code
        raise UsageError("a noun is missing", remedy=f"It is one of: {', '.join(NOUNS)}. See: sev --help")
    noun = words[0]
    if noun not in NOUNS:
        _refuse(noun)
    module = _module(noun)
    found = module.quick(words[1:]) if hasattr(module, "quick") else None
    if found is not None:
        args, run = found
        options.copy_to(args)
        return int(run(args, out))
    args, extras = build_parser(noun).parse_known_args(words[1:])
    from sev.cli.parser import run_of

    if args.parser.verbs is not None and not extras and not out.json:
        sys.stderr.write(args.parser.format_help() + "\n")
    run = run_of(args, extras)
    options.copy_to(args)
    return int(run(args, out))


def _refuse(word: str) -> None:
    from sev.cli.parser import hint

    if word.startswith("-"):
        known: tuple[str, ...] = (*global_options.FLAGS, *global_options.VALUES, "--help")
        what = f"{word}: no such option before the noun"
    else:
        known, what = tuple(NOUNS), f"{word!r}: no such noun"
    near = hint(word.partition("=")[0], known) or f"It is one of: {', '.join(NOUNS)}."
    raise UsageError(what, remedy=f"{near} See: sev --help", field=word)


def _file_error(error: OSError) -> UsageError:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = error.strerror or str(error)
    return UsageError(f"{' and '.join(names)}: {reason}" if names else reason, field=names[0] if names else "")


def _unexpected(error: Exception, out: Output) -> int:
    import os

    if os.environ.get("SEV_DEBUG") == "1":
        raise error
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        out.detail(f"sev: at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
    out.error(InternalError(f"unexpected {type(error).__name__}: {error}"))
    return InternalError.exit_code


def _help() -> str:
    """`sev --help`, written without argparse: it has to be quick and knows no noun's options."""
    lines = [
        "usage: sev [OPTION]... NOUN [VERB] [ARGUMENT]...",
        "",
        "AMD SEV, SEV-ES and SEV-SNP: what this host is; launch guests, predict measurements, verify reports.",
        "",
        "nouns:",
        *(f"  {noun:<14}{text}" for noun, text in NOUNS.items()),
        "",
        "options of every command, before or after the noun, the last one wins:",
        *(f"  {option:<20}{text}" for option, text in global_options.HELP),
        "  -h, --help          this help; after a noun or verb, theirs",
        "",
        "examples:",
        "  # watch a confidential guest being launched, measured, attested and verified",
        "  sev demo",
        "",
        "  # the digest that a guest's report must show",
        "  sev measure snp --ovmf OVMF.fd --vcpus 4 --vcpu-type EPYC-v4",
        "",
        "  # is this report genuine?",
        "  sev report verify report.bin --vek vcek.der",
        "",
        "exit codes:",
        *(f"  {code:>3}  {text}" for code, text in EXIT_CODES),
        "",
        "Results go to stdout, everything else to stderr. `sev NOUN --help` lists the verbs of a noun.",
    ]
    return "\n".join(lines) + "\n"
