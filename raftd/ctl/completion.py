"""``raftctl completion SHELL``: a script that a shell reads, made from the parsers themselves."""

SHELLS = ("bash", "zsh", "fish")


def add(add_command):
    parser = add_command("completion", None, "print a script that completes this command line", 'eval "$(raftctl completion bash)"\n'
                         "raftctl completion fish > ~/.config/fish/completions/raftctl.fish")
    parser.add_argument("shell", choices=SHELLS)


def script(shell, parser, parsers):
    """*parser*: of what may stand before a subcommand; *parsers*: {name of a subcommand: its parser}."""
    if shell == "fish":
        return _fish(parser, parsers)
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + _bash(parser, parsers)


def _bash(parser, parsers):
    values = {option: choices for each in (parser, *parsers.values()) for option, choices in values_of(each).items()}
    some = "\n".join(f"    {option}) words='{' '.join(choices)}' ;;" for option, choices in values.items() if choices)
    others = "|".join(option for option, choices in values.items() if not choices)
    cases = "\n".join(f"        {name}) words='{' '.join([*_words(each), *_options(each)])}' ;;" for name, each in parsers.items())
    return f"""_raftctl() {{
    local words='{' '.join(parsers)}' command='' option='' word current="${{COMP_WORDS[COMP_CWORD]}}"
    COMPREPLY=()
    case "$current" in
    -*) words='{' '.join(_options(parser))}' ;;
    =) current='' ;;
    esac
    for word in "${{COMP_WORDS[@]:1:$((COMP_CWORD - 1))}}"; do
        if [ -n "$option" ]; then  # this is its value, or the = before it
            [ "$word" = '=' ] || option=''
            continue
        fi
        case "$word" in
        --) return ;;
        {'|'.join(values)}) option="$word"; continue ;;
        -*) continue ;;
        esac
        [ -z "$command" ] || continue
        command="$word"
        case "$command" in
{cases}
        esac
    done
    case "$option" in
{some}
    {others}) words='' ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _raftctl raftctl
"""


def _fish(parser, parsers):
    names = " ".join(parsers)
    before = f"complete -c raftctl -n 'not __fish_seen_subcommand_from {names}'"
    lines = [f"{before} -f -a '{names}'", *(before + option for option in _fish_options(parser))]
    for name, each in parsers.items():
        after = f"complete -c raftctl -n '__fish_seen_subcommand_from {name}'"
        lines += [after + option for option in _fish_options(each)]
        if words := _words(each):
            lines.append(f"{after} -f -a '{' '.join(words)}'")
    return "\n".join(lines) + "\n"


def _fish_options(parser):
    for action in parser._actions:
        if action.option_strings:
            names = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in action.option_strings)
            yield names + ("" if action.nargs == 0 else f" -x -a '{' '.join(action.choices)}'" if action.choices else " -r")


def values_of(parser):
    """{option: the values that it may have, none if they are many}, of the options that have one."""
    return {option: action.choices or () for action in parser._actions if action.nargs != 0 for option in action.option_strings}


def _options(parser):
    return sorted(option for action in parser._actions for option in action.option_strings if option.startswith("--"))


def _words(parser):
    """What may stand where no option does, if that is one of a few."""
    return [word for action in parser._actions if not action.option_strings for word in action.choices or ()]
