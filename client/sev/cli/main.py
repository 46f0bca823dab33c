"""Entry point of `sev`: finds the noun, builds only its parser, maps every error to an exit code."""

from __future__ import annotations

import sys

from sev.cli.output import Output
from sev.errors import InternalError, SevError, UsageError

NOUNS: dict[str, str] = {
    "demo": "plays the whole story on a private simulated host",
    "host": "what this host is",
    "snp": "the SNP platform: status, commit, configuration, VLEK",
    "certs": "certificates: export, import, show",
    "guest": "hosted guests: launch, list, show, watch, delete, report",
    "report": "attestation reports: show, verify, appraise",
    "measure": "expected launch digests",
    "id-block": "ID blocks: create, digest",
    "explain": "what a firmware status means and what to do",
    "completion": "completion for bash, zsh or fish",
}
"""Nouns with one line of help; the module is sev.cli.<noun>, hyphens as underscores."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; answers its exit code."""
    from argparse import ArgumentParser
    from importlib import import_module

    words = sys.argv[1:] if argv is None else argv
    noun = next((word for word in words if word in NOUNS), None)
    parser = ArgumentParser(prog="sev")
    for flag, name in (("--json", "json"), ("-q", "quiet"), ("-v", "verbose"), ("--yes", "yes")):
        parser.add_argument(flag, dest=name, action="store_true")
    parser.add_argument("--socket")
    parser.add_argument("--timeout", type=float, default=5.0)
    if noun is None:
        parser.print_help()
        return 2
    nouns = parser.add_subparsers(dest="noun", required=True)
    module = import_module("sev.cli." + noun.replace("-", "_"))
    module.build(nouns.add_parser(noun, help=NOUNS[noun]))
    args = parser.parse_args(words)
    out = Output(json=args.json, quiet=args.quiet, verbose=args.verbose)
    try:
        return int(args.run(args, out))
    except SevError as error:
        out.error(error)
        return error.exit_code
    except OSError as error:
        out.error(UsageError(f"{error.filename or ''}: {error.strerror}"))
        return 2
    except Exception as error:
        out.error(InternalError(f"unexpected {type(error).__name__}: {error}"))
        return 1
