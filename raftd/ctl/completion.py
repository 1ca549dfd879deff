"""``raftctl completion SHELL``: a script that a shell reads, made from the parsers themselves."""

SHELLS = ("bash", "zsh", "fish")


def add(add_command):
    parser = add_command("completion", None, "print a script that completes this command line", 'eval "$(raftctl completion bash)"\n'
                         "raftctl completion fish > ~/.config/fish/completions/raftctl.fish")
    parser.add_argument("shell", choices=SHELLS)


def script(shell, parser, parsers):
    """*parser*: of what may stand before a subcommand; *parsers*: {name of a subcommand: its parser}."""
    first, options = _options(parser), {name: _options(parser) for name, parser in parsers.items()}
    actions = [action for each in (parser, *parsers.values()) for action in each._actions]
    values = {option: action.choices or () for action in actions if action.nargs != 0 for option in action.option_strings}
    words = {name: [word for action in parser._actions if not action.option_strings for word in action.choices or ()]
             for name, parser in parsers.items()}
    if shell == "fish":
        return _fish(first, options, values, words)
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + _bash(first, options, values, words)


def _options(parser):
    return sorted(option for action in parser._actions for option in action.option_strings if option.startswith("--"))


def _bash(first, options, values, words):
    """*first*: the options before a subcommand; *options*: of each subcommand; *values*: of each option that has one, those that it may
    have if they are few; *words*: the same of what is no option."""
    cases = "\n".join(f"        {name}) words='{' '.join([*words[name], *found])}' ;;" for name, found in options.items())
    some = "\n".join(f"    {option}) words='{' '.join(choices)}' ;;" for option, choices in values.items() if choices)
    others = "|".join(option for option, choices in values.items() if not choices)
    return f"""_raftctl() {{
    local words='{' '.join(options)}' word
    case "${{COMP_WORDS[COMP_CWORD]}}" in
    -*) words='{' '.join(first)}' ;;
    esac
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in
{cases}
        *) continue ;;
        esac
        break
    done
    case "${{COMP_WORDS[COMP_CWORD-1]}}" in
{some}
    {others}) words='' ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _raftctl raftctl
"""


def _fish(first, options, values, words):
    names = " ".join(options)
    before = f"complete -c raftctl -n 'not __fish_seen_subcommand_from {names}'"
    lines = [f"{before} -f -a '{names}'", *(before + _fish_option(option, values) for option in first)]
    lines += [f"complete -c raftctl -n '__fish_seen_subcommand_from {name}'{_fish_option(option, values)}"
              for name, found in options.items() for option in found]
    lines += [f"complete -c raftctl -f -n '__fish_seen_subcommand_from {name}' -a '{' '.join(found)}'"
              for name, found in words.items() if found]
    return "\n".join(lines) + "\n"


def _fish_option(option, values):
    choices = values.get(option)
    return f" -l {option.removeprefix('--')}" + ("" if choices is None else f" -x -a '{' '.join(choices)}'" if choices else " -r")
