"""Options that every command has, taken out of the command line before anything else is parsed.

They stand before or after the noun and the last one wins. They are found by walking the words: an option's value is
never taken for a noun or an option, and nothing after `--` is looked at. (argparse cannot do this: a subparser's
defaults overwrite what stood before the noun.)
"""

from __future__ import annotations

from sev.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from sev.cli.quick import Arguments

DEFAULT_TIMEOUT = 5.0
"""Seconds to wait for a daemon that refuses or is unavailable."""

FLAGS = {
    "--json": ("json", True),
    "-q": ("quiet", True),
    "--quiet": ("quiet", True),
    "-v": ("verbose", True),
    "--verbose": ("verbose", True),
    "--yes": ("yes", True),
    "--version": ("version", True),
}
"""Option to (attribute, value)."""

VALUES = {
    "--socket": "socket",
    "--tls-cert": "tls_cert",
    "--tls-key": "tls_key",
    "--tls-ca": "tls_ca",
    "--timeout": "timeout",
}
"""Option that takes a value to attribute."""

HELP = (
    ("--socket PATH", "the daemon: a path or a unix: or dns: target ($SEVD_SOCKET, else the system's)"),
    ("--tls-cert FILE", "client certificate for a remote daemon (PEM)"),
    ("--tls-key FILE", "key of the client certificate (PEM)"),
    ("--tls-ca FILE", "authority that signed the daemon's certificate (PEM)"),
    ("--timeout SECONDS", "how long to wait for a daemon that does not answer (default 5)"),
    ("--json", "one JSON document on stdout, errors included; JSON Lines where a command watches"),
    ("-q, --quiet", "no notes and no progress on stderr"),
    ("-v, --verbose", "say on stderr what is done and which socket is used"),
    ("--yes", "confirm an irreversible command"),
    ("--version", "the version, and stop"),
)
"""The options with one line of help each."""


class GlobalOptions:
    """The values after the walk; attributes as in `FLAGS` and `VALUES`."""

    def __init__(self) -> None:
        self.socket: str | None = None
        self.tls_cert: str | None = None
        self.tls_key: str | None = None
        self.tls_ca: str | None = None
        self.timeout = DEFAULT_TIMEOUT
        self.json = False
        self.quiet = False
        self.verbose = False
        self.yes = False
        self.version = False
        self.problem: UsageError | None = None
        """What was wrong with them; raised by the caller once it is known how to print it."""

    def copy_to(self, namespace: Namespace | Arguments) -> None:
        """Sets them as attributes of parsed arguments."""
        for name, value in vars(self).items():
            if name not in ("problem", "version"):
                setattr(namespace, name, value)

    def _set(self, option: str, value: str) -> None:
        if option == "--timeout":
            try:
                seconds = float(value)
            except ValueError:
                seconds = -1.0
            if not 0 < seconds < 1e9:
                self.problem = UsageError(
                    f"{option}: expected seconds above 0, such as 5 or 0.5, not {value!r}", field=option
                )
                return
            self.timeout = seconds
        elif not value:
            self.problem = UsageError(f"{option}: the value is empty", field=option)
        else:
            setattr(self, VALUES[option], value)


def split(words: list[str]) -> tuple[GlobalOptions, list[str]]:
    """Takes the global options out of `words`; answers them and the other words in their order."""
    options = GlobalOptions()
    rest: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            return options, [*rest, word, *words[position:]]
        if word in FLAGS:
            name, value = FLAGS[word]
            setattr(options, name, value)
            if name in ("quiet", "verbose"):
                setattr(options, "verbose" if name == "quiet" else "quiet", False)
        elif word in VALUES:
            if position == len(words) or words[position].startswith("--"):
                options.problem = UsageError(f"{word}: a value is missing after it", field=word)
            else:
                options._set(word, words[position])
                position += 1
        elif word.startswith("--") and word.partition("=")[0] in VALUES:
            name, _, text = word.partition("=")
            options._set(name, text)
        else:
            rest.append(word)
    return options, rest
