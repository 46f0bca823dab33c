"""Completion scripts for bash, zsh and fish, written from the command tree."""

from __future__ import annotations

from sev.cli.tree import Option, global_options, walk

_SHELL_FUNCTION = """\
# Completion of sev; printed by `sev completion {name}`.
_sev() {{
    local word previous path= position=0 skip= state=
{setup}
    # walk the words before the cursor: which command, which argument of it
    local index=1
    while (( index < cursor )); do
        word="${{words[index+offset]}}"
        (( index += 1 ))
        if [[ -n "$skip" ]]; then skip=; continue; fi
        case "$word" in
            --*=*) continue ;;
            -*)
                case "$path:$word" in
{values}
                esac
                continue ;;
        esac
        case "$path:$word" in
{steps}
            *) (( position += 1 )) ;;
        esac
    done
    local choices= files=
    if [[ -n "$skip" ]]; then
        case "$path:$previous" in
{option_values}
        esac
    elif [[ "$current" == -* ]]; then
        case "$path" in
{options}
        esac
    else
        case "$path" in
{arguments}
        esac
    fi
{finish}
}}
{install}
"""

_BASH = {
    "setup": """\
    local offset=0 cursor=$COMP_CWORD current="${COMP_WORDS[COMP_CWORD]}"
    local words=("${COMP_WORDS[@]}")
    previous="${COMP_WORDS[COMP_CWORD-1]}\"""",
    "finish": """\
    COMPREPLY=($(compgen -W "$choices" -- "$current"))
    if [[ -n "$files" ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY+=($(compgen -f -- "$current"))
    fi""",
    "install": "complete -F _sev sev",
}

_ZSH = {
    "setup": """\
    emulate -L zsh
    local offset=1 cursor=$(( CURRENT - 1 )) current="${words[CURRENT]}"
    previous="${words[CURRENT-1]}\"""",
    "finish": """\
    if [[ -n "$choices" ]]; then compadd -- ${=choices}; fi
    if [[ -n "$files" ]]; then _files; fi""",
    "install": "compdef _sev sev",
}


def bash() -> str:
    """The script for bash."""
    return _SHELL_FUNCTION.format(name="bash", **_BASH, **_cases())


def zsh() -> str:
    """The script for zsh."""
    return _SHELL_FUNCTION.format(name="zsh", **_ZSH, **_cases())


def _cases() -> dict[str, str]:
    """The case branches, in the dialect that bash and zsh share."""
    commands = list(walk())
    shared = global_options()
    steps: list[str] = []
    options: list[str] = []
    arguments: list[str] = []
    values: list[str] = []
    option_values: list[str] = []
    for option in shared:
        _add_option(option, "*", values, option_values)
    for command in commands:
        path = " ".join(command.words)
        for word, _ in command.verbs:
            steps.append(f'"{path}:{word}") path="{f"{path} {word}".strip()}" ;;')
        for option in command.options:
            _add_option(option, f'"{path}"', values, option_values)
        names = " ".join(name for option in (*command.options, *shared) for name in option.names)
        options.append(f'"{path}") choices="{names}" ;;')
        if command.verbs:
            arguments.append(f'"{path}") choices="{" ".join(word for word, _ in command.verbs)}" ;;')
        elif command.arguments:
            arguments.append(f'"{path}") {_offer(command.arguments)} ;;')
    # a command's own options come before those of every command, so that the first match is the nearer one
    values.sort(key=lambda line: line.startswith("*"))
    option_values.sort(key=lambda line: line.startswith("*"))
    return {
        "steps": _indent(steps, 12),
        "options": _indent(options, 12),
        "arguments": _indent(arguments, 12),
        "values": _indent(values, 20),
        "option_values": _indent(option_values, 12),
    }


def _add_option(option: Option, path: str, values: list[str], option_values: list[str]) -> None:
    if not option.value:
        return
    for name in option.names:
        values.append(f"{path}:{name}) skip=1 ;;")
        offer = f'choices="{" ".join(option.choices)}"' if option.choices else "files=1" if option.is_file else ""
        if offer:
            option_values.append(f"{path}:{name}) {offer} ;;")


def _offer(arguments: list[Option]) -> str:
    """What may stand in the place of a command's positional arguments: choices of the first, files if any is one."""
    choices = [choice for argument in arguments for choice in argument.choices]
    parts = [f'choices="{" ".join(choices)}"'] if choices else []
    if any(argument.is_file for argument in arguments):
        parts.append("files=1")
    return "; ".join(parts) or ":"


def _indent(lines: list[str], width: int) -> str:
    return "\n".join(" " * width + line for line in lines)


_FISH_HEAD = """\
# Completion of sev; printed by `sev completion fish`.
function __sev_path
    # the words of the command line so far that are neither options nor values of options
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch $word
            case {valued}
                set skip 1
            case '-*'
                continue
            case '*'
                echo $word
        end
    end
end
function __sev_exactly
    set -l path (__sev_path)
    test "$path" = "$argv"
end
function __sev_under
    set -l path (__sev_path)
    test (count $path) -ge (count $argv); and test "$path[1..$(count $argv)]" = "$argv"
end
complete -c sev -f
"""


def fish() -> str:
    """The script for fish."""
    commands, shared = list(walk()), global_options()
    every = [*shared, *(option for command in commands for option in command.options)]
    valued = sorted({name for option in every if option.value for name in option.names})
    lines = [_fish_option(option, "") for option in shared]
    for command in commands:
        path = " ".join(command.words)
        exactly, under = (f" -n {_quote(f'{test} {path}'.strip())}" for test in ("__sev_exactly", "__sev_under"))
        for word, text in command.verbs:
            lines.append(f"complete -c sev{exactly} -a {_quote(word)} -d {_quote(text)}")
        for option in command.options:
            if "--help" not in option.names:
                lines.append(_fish_option(option, under))
        for argument in command.arguments:
            if argument.choices:
                lines.append(f"complete -c sev{exactly} -a {_quote(' '.join(argument.choices))}")
            elif argument.is_file:
                lines.append(f"complete -c sev{under} -F")
    return _FISH_HEAD.replace("{valued}", " ".join(valued)) + "\n".join(lines) + "\n"


def _fish_option(option: Option, condition: str) -> str:
    parts = [f"complete -c sev{condition}"]
    for name in option.names:
        parts.append(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}")
    if option.value:
        parts.append("-r")
        if option.choices:
            parts.append(f"-f -a {_quote(' '.join(option.choices))}")
        elif option.is_file:
            parts.append("-F")
    parts.append(f"-d {_quote(option.help)}")
    return " ".join(parts)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
