"""The ``raftctl`` command line; ``status`` has its exit statuses. Must not know how a subcommand works: it reads flags, calls, and says
what went wrong."""

import argparse
import os
import sys

from raftd import __version__
from raftd.bench import BenchFailed, host_and_port
from raftd.ctl import completion, keys, load, servers
from raftd.ctl.output import FORMATS, Waiting
from raftd.ctl.status import DONE, INTERRUPTED, NO, NOT_DONE, PERHAPS, USAGE
from raftd.ctl.words import seconds
from raftd.errors import BadRequest, NotFound, PreconditionFailed, RaftdError

EXIT = """exit status: 0 done, 1 no such key or a condition does not hold, 2 certainly not done, 3 perhaps done, 64 wrong command line"""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"raftctl: {message}\n")


def main(argv=None):
    """Run the command line *argv* (default: the process's own); returns the exit status."""
    if hasattr(sys.stdout, "reconfigure"):  # not in a test
        sys.stdout.reconfigure(errors="backslashreplace")  # where a terminal knows no such character
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        return options.run(options)
    except SystemExit as end:  # argparse has said it
        return end.code or DONE
    except BrokenPipeError:  # who reads has heard enough
        sys.stdout = open(os.devnull, "w")
        return DONE
    except (BenchFailed, OSError) as error:
        named = isinstance(error, OSError) and error.filename is not None and error.strerror
        print(f"raftctl: {error.filename}: {error.strerror}" if named else f"raftctl: {error}", file=sys.stderr)
        return NOT_DONE
    except RaftdError as error:
        return _failed(error, options.only_reads)
    except KeyboardInterrupt:
        return INTERRUPTED


def _failed(error, only_reads):
    if isinstance(error, (PreconditionFailed, NotFound)) or error.code == "lock_held":
        status = NO
    elif isinstance(error, BadRequest):
        status = USAGE
    else:
        status = PERHAPS if error.retry == "maybe" and not only_reads else NOT_DONE
    print(f"raftctl: {' '.join(str(error).split())}{'; it may have been done' if status == PERHAPS else ''}", file=sys.stderr)
    return status


def parse(argv):
    """The options in *argv*; ``options.run(options)`` does what they say. Ends the process as argparse does."""
    parser = _Parser(prog="raftctl", description="Work with a cluster of raftd.", epilog=EXIT, allow_abbrev=False, parents=[_common()])
    parser.add_argument("--version", action="version", version=f"raftctl {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    common = _common()
    for action in common._actions:
        action.default = argparse.SUPPRESS  # what stands before the subcommand holds unless it stands after it, too

    def add_command(name, run, help, examples):
        """The parser of a subcommand that has a Client."""
        indented = "\n".join(f"  {line}" for line in examples.splitlines())
        added = commands.add_parser(name, parents=[common], help=help, description=help[0].upper() + help[1:] + ".",
                                    epilog=f"examples:\n{indented}\n\n{EXIT}", formatter_class=argparse.RawDescriptionHelpFormatter,
                                    allow_abbrev=False)
        added.set_defaults(run=lambda options: _with_client(run, options), parser=added,
                           only_reads=run in (*keys.READING, *servers.READING))
        return added

    keys.add(add_command)
    servers.add(add_command)
    load.add(commands, [common])
    completion.add(add_command)
    commands.choices["completion"].set_defaults(run=lambda options: _complete(options, parser, commands.choices))
    words, command = _without_command(argv, parser)
    options = parser.parse_args(words, argparse.Namespace(command=command))
    if options.endpoints is None and options.parser is not commands.choices["completion"]:  # which every shell reads that starts
        options.endpoints = _endpoints_of_the_environment(options.parser)
    _check_text(options)
    return options


def _check_text(options):
    """All but a value is text."""
    for name, text in vars(options).items():
        if name != "value" and isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                options.parser.error(f"not UTF-8: {text!a}")


def _without_command(argv, parser):
    """*argv* up to the ``--`` of ``lock``, and the command after it, whose options are none of ours."""
    with_value, at = completion.values_of(parser), 0
    while argv[at:] and argv[at].startswith("-"):
        at += 2 if argv[at] in with_value else 1
    if argv[at:at + 1] != ["lock"] or "--" not in argv[at:]:
        return argv, []
    end = argv.index("--", at)
    return argv[:end], argv[end + 1:]


def _complete(options, parser, parsers):
    print(completion.script(options.shell, parser, parsers), end="")
    return DONE


def _with_client(run, options):
    from raftd.client import Client  # only here: a load is generated without a package

    class PatientClient(Client):
        def _call(self, ask, attempts=None):
            with Waiting(options.timeout + ask.waiting()):
                return super()._call(ask, attempts)

    with (Client if run in keys.LASTING else PatientClient)(options.endpoints, timeout=options.timeout) as client:
        return run(client, options)


def _common():
    """What every subcommand takes, before its name or after it."""
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--endpoints", metavar="HOST:PORT[,...]", type=_endpoints,
        help="servers to ask, any of them first (default: $RAFTD_ENDPOINTS, else localhost:4001)")
    add("-o", "--output", choices=FORMATS, default="table", help="columns for people, or what a script can use (default table)")
    add("--timeout", type=seconds, default=10.0, metavar="TIME", help="for an answer, all attempts together (default 10s)")
    return common


def _endpoints_of_the_environment(parser):
    try:
        return _endpoints(os.environ.get("RAFTD_ENDPOINTS") or "localhost:4001")
    except argparse.ArgumentTypeError as error:
        parser.error(f"RAFTD_ENDPOINTS: {error}")


def _endpoints(text):
    found = [part.strip().removeprefix("http://").removesuffix("/") for part in text.split(",") if part.strip()]
    try:
        for endpoint in found:
            host_and_port(endpoint)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not found:
        raise argparse.ArgumentTypeError("no HOST:PORT in it")
    return found
