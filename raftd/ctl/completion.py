"""``raftctl completion SHELL``: a script that a shell reads, made from the parsers themselves."""

SHELLS = ("bash", "zsh", "fish")


def add(add_command):
    parser = add_command("completion", None, "print a script that completes this command line", 'eval "$(raftctl completion bash)"\n'
                         "raftctl completion fish > ~/.config/fish/completions/raftctl.fish")
    parser.add_argument("shell", choices=SHELLS)


def script(shell, parsers):
    """*parsers*: {name of a subcommand: its parser}."""
    options = {name: sorted(option for action in parser._actions for option in action.option_strings if option.startswith("--"))
               for name, parser in parsers.items()}
    if shell == "fish":
        return _fish(options)
    return ("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + _bash(options)


def _bash(options):
    cases = "\n".join(f"        {name}) words='{' '.join(words)}' ;;" for name, words in options.items())
    return f"""_raftctl() {{
    local words='{' '.join(options)}' word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in
{cases}
        *) continue ;;
        esac
        break
    done
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _raftctl raftctl
"""


def _fish(options):
    names = " ".join(options)
    lines = [f"complete -c raftctl -f -n 'not __fish_seen_subcommand_from {names}' -a '{names}'"]
    lines += [f"complete -c raftctl -n '__fish_seen_subcommand_from {name}' -l {option.removeprefix('--')}"
              for name, words in options.items() for option in words]
    return "\n".join(lines) + "\n"
