"""The ``raftd`` command line: its flags by the rules of Go's flag package, its log, its exit status.

Must not know how a node works: it hands ``Options`` to ``raftd.server`` and turns what comes back into an exit status.
"""

import ipaddress
import json
import logging
import os
import queue
import re
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple

from raftd import __version__
from raftd.config import TRACE, Settings, duration, is_name
from raftd.errors import RaftdError, StartupError

log = logging.getLogger(__name__)


# One value must leave room for others among the writes that wait (Settings.max_waiting_bytes).
_LARGEST_VALUE_BYTES = Settings.max_waiting_bytes // 2


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    path      the data directory, as typed
    host      the name under which others reach this node, ready for a URL: an IPv6 address is in brackets
    port      0 means: any free one
    bind      the address to listen on, ready for ``socket.bind``: never brackets
    join      "HOST:PORT" of members to ask, in this order; empty: do not join
    name      None means: the one on disk, or a new one
    """

    path: str = ""
    host: str = "localhost"
    port: int = 4001
    bind: str = "127.0.0.1"
    join: tuple[str, ...] = ()
    name: str | None = None
    v: bool = False
    debug: bool = False
    trace: bool = False
    settings: Settings = field(default_factory=Settings)
    help: bool = False
    version: bool = False


class UsageError(Exception):
    """The command line cannot be understood; ``str(error)`` is everything to print, ``status`` the exit status."""

    def __init__(self, complaint):
        super().__init__(f"{complaint}\n{usage()}")
        self.status = 2


class NoPath(UsageError):
    """There is no PATH. As in the original, the usage comes first and the exit status is 1."""

    def __init__(self):
        Exception.__init__(self, f"{usage()}\nData path argument required")
        self.status = 1


# The values of flags. Each reader returns the value or raises ValueError; its text ends the line "invalid value ...".


def _whole_number(text, lowest, highest):
    if not re.fullmatch(r"[+-]?(0|[1-9]\d*)", text, re.ASCII):
        raise ValueError("parse error")
    if len(text) > 18 or not lowest <= int(text) <= highest:
        raise ValueError("value out of range")
    return int(text)


def _port(text):
    return _whole_number(text, 0, 65535)


def _host(text):
    """*text* as it stands in a URL."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if re.fullmatch(r"\w([\w.-]{0,251}\w)?\.?", text, re.ASCII) and not re.fullmatch(r"[\d.]+", text):
            return text
        raise ValueError("not a host name or an IP address") from None
    if address.version == 4:
        return str(address)
    if "%" in bare:
        raise ValueError("an IPv6 address with a zone has no meaning on other hosts")
    return f"[{address}]"


def _reachable_host(text):
    host = _host(text)
    if host in ("0.0.0.0", "[::]"):
        raise ValueError(f"others cannot reach a node by this address; name the host here, and use -bind {text}")
    return host


def _bind(text):
    return _host(text).strip("[]")


def _member(text):
    host, colon, port = text.strip().removeprefix("http://").removesuffix("/").rpartition(":")
    try:
        if colon and not (":" in host and not host.startswith("[")):
            return f"{_host(host)}:{_whole_number(port, 1, 65535)}"
    except ValueError:
        pass
    raise ValueError("want HOST:PORT[,HOST:PORT...]")


def _members(text):
    """The members in *text*, each once; an empty text is no member, as in the original."""
    return tuple(dict.fromkeys(_member(part) for part in text.split(","))) if text else ()


def _name(text):
    if not is_name(text):
        raise ValueError("want 1 to 64 letters, digits, '.', '_' or '-'")
    return text


def _seconds(text):
    try:
        seconds = duration(text)
    except ValueError:
        raise ValueError("parse error") from None
    if not 0.001 <= seconds <= 3600:
        raise ValueError("value out of range")
    return seconds


def _size(text):
    match = re.fullmatch(r"(\d{1,15})(B|KiB|MiB|GiB|)", text, re.ASCII)
    if not match:
        raise ValueError("parse error")
    size = int(match[1]) << {"KiB": 10, "MiB": 20, "GiB": 30}.get(match[2], 0)
    if not 1 <= size <= _LARGEST_VALUE_BYTES:
        raise ValueError("value out of range")
    return size


def _switch(text):
    """Go's strconv.ParseBool."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError("parse error")


class Flag(NamedTuple):
    """One flag: what its argument is called ("" for a switch), how the argument is read, the value without it."""

    argument: str
    read: object
    default: object
    help: str


FLAGS = {
    "h": Flag("HOST", _reachable_host, Options.host, "name under which nodes and clients reach this node (default localhost)"),
    "p": Flag("PORT", _port, Options.port, "one port for clients and peers; 0 picks a free one (default 4001)"),
    "join": Flag("HOST:PORT[,HOST:PORT...]", _members, (), "members of the cluster to join, any of them, tried in turn"),
    "bind": Flag("ADDRESS", _bind, None, "where to listen (default loopback when HOST is loopback, else all interfaces)"),
    "name": Flag("NAME", _name, None, "identity of this node, kept in PATH (default 7 random hex digits, drawn once)"),
    "heartbeat": Flag("DURATION", _seconds, Settings.heartbeat_seconds,
                      f"how often a leader tells that it lives (default {Settings.heartbeat_seconds * 1000:g}ms)"),
    "election-timeout": Flag("DURATION", _seconds, Settings.election_timeout_seconds,
                             "wait this long, up to twice as long, for a leader before an election"
                             f" (default {Settings.election_timeout_seconds * 1000:g}ms)"),
    "max-value": Flag("SIZE", _size, Settings.max_value_bytes,
                      f"largest value of a key, such as 512KiB, up to {_LARGEST_VALUE_BYTES >> 20}MiB"
                      f" (default {Settings.max_value_bytes >> 20}MiB)"),
    "v": Flag("", _switch, False, "log each request of a client"),
    "debug": Flag("", _switch, False, "log Raft events too"),
    "trace": Flag("", _switch, False, "log every RPC too"),
    "help": Flag("", _switch, False, "print this and exit"),
    "version": Flag("", _switch, False, "print the version and exit"),
}


def usage():
    lines = ["Usage: raftd [flags] PATH", "", "Serves the node whose data is in the directory PATH, made if missing.", ""]
    for name, flag in FLAGS.items():
        lines += [f"  -{name} {flag.argument}".rstrip(), f"        {flag.help}"]
    return "\n".join([*lines, "", "The first node of a cluster is started without -join on an empty PATH."])


def parse(argv):
    """The ``Options`` in *argv*, the words after the program's name; raises UsageError."""
    values, words = _parse_flags(argv)
    if values["help"] or values["version"]:
        return Options(help=values["help"], version=values["version"])
    if not words or not words[0]:
        raise NoPath
    if len(words) > 1:
        raise UsageError(f"unexpected words after the data path (flags go before it): {' '.join(words[1:])}")
    return Options(
        path=words[0], host=values["h"], port=values["p"], bind=values["bind"] or _default_bind(values["h"]),
        join=values["join"], name=values["name"], v=values["v"], debug=values["debug"], trace=values["trace"],
        settings=_settings(values))


def _parse_flags(argv):
    """(value of every flag, the words after the flags), by the rules of Go's flag package, its texts word for word."""
    values = {name: flag.default for name, flag in FLAGS.items()}
    words = list(argv)
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"bad flag syntax: {word}")
        if name not in FLAGS:
            raise UsageError(f"flag provided but not defined: -{name}")
        if FLAGS[name].argument and not equals:
            if not words:
                raise UsageError(f"flag needs an argument: -{name}")
            text = words.pop(0)
        values[name] = _value(name, text if equals or FLAGS[name].argument else "true")
        if values["help"]:
            break  # what follows is not looked at
    return values, words


def _value(name, text):
    flag = FLAGS[name]
    try:
        return flag.read(text)
    except ValueError as error:
        what = f"value {_quoted(text)} for flag" if flag.argument else f"boolean value {_quoted(text)} for"
        raise UsageError(f"invalid {what} -{name}: {error}") from None


def _quoted(text):
    """*text* as Go's %q shows it."""
    return json.dumps(text, ensure_ascii=False)


def _default_bind(host):
    """Loopback if *host* is, judged by its name alone: Debian's /etc/hosts calls every machine 127.0.1.1."""
    if host.rstrip(".").lower() == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return "0.0.0.0"
    if address.is_loopback:
        return str(address)
    return "0.0.0.0" if address.version == 4 else "::"


def _settings(values):
    election_timeout = values["election-timeout"]
    try:
        return Settings(
            heartbeat_seconds=values["heartbeat"],
            election_timeout_seconds=election_timeout,
            rpc_timeout_seconds=0.5 * election_timeout,
            max_value_bytes=values["max-value"],
        ).check()
    except ValueError as error:
        raise UsageError(f"{error}: -heartbeat {values['heartbeat'] * 1000:g}ms"
                         f" -election-timeout {election_timeout * 1000:g}ms") from None


class StderrLog(logging.Handler):
    """Writes the log to stderr in a thread of its own.

    A terminal that is stopped, or a pipe that nobody reads, must not stop a node that wants to log: then lines wait, and when
    too many do, new ones are dropped and counted.
    """

    MAX_WAITING_LINES = 10_000

    def __init__(self, tracebacks):
        super().__init__()
        self.setFormatter(_Formatter(tracebacks))
        self._lines = queue.SimpleQueue()  # a signal handler may log in the middle of a put: this queue allows it
        self._lost = 0
        # The one daemon thread: it may be stuck in its write for ever, and the process ends all the same.
        self._thread = threading.Thread(target=self._write_lines, name="log-printer", daemon=True)
        self._thread.start()

    def emit(self, record):
        if self._lines.qsize() >= self.MAX_WAITING_LINES:
            self._lost += 1
            return
        try:
            line = self.format(record)
            if self._lost:
                line = f"({self._lost} lines of the log were lost here: nobody read them in time)\n{line}"
                self._lost = 0
            self._lines.put(line)
        except Exception:  # as every handler of logging does: a bad record is no reason to fail
            self.handleError(record)

    def _write_lines(self):
        while (line := self._lines.get()) is not None:
            data = f"{line}\n".encode(errors="backslashreplace")
            try:
                while data:  # not sys.stderr: whoever is stuck here must hold no lock that others need
                    data = data[os.write(2, data):]
            except OSError:
                pass  # nobody is left to tell

    def close(self):
        """Write what waits, for a second at most."""
        self._lines.put(None)
        self._thread.join(1.0)
        super().close()


class _Formatter(logging.Formatter):
    default_msec_format = "%s.%03d"

    def __init__(self, tracebacks):
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")
        self._tracebacks = tracebacks

    def format(self, record):
        if self._tracebacks or not record.exc_info or not record.exc_info[0]:
            return super().format(record)
        bare = copy(record)  # another handler may want the traceback
        bare.exc_info = bare.exc_text = None
        return f"{super().format(bare)} error={_one_line(record.exc_info[1])}"


@contextmanager
def _logging(options):
    """The log as *options* want it, on stderr, until the block ends; what waits is written then."""
    logging.addLevelName(TRACE, "TRACE")
    logging.raiseExceptions = options.debug
    level = TRACE if options.trace else logging.DEBUG if options.debug else logging.INFO
    server_level = min(level, logging.DEBUG) if options.v else level
    quiet = server_level == logging.INFO
    levels = {
        "raftd": level,
        "raftd.server": server_level,
        "raftd.web": server_level,
        "raftd.lane": server_level,
        "waitress": logging.WARNING if quiet else logging.INFO,
        "waitress.queue": logging.ERROR if quiet else logging.INFO,  # it warns of each request that waits for a thread
    }
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    handler = StderrLog(tracebacks=options.debug)
    logging.getLogger().addHandler(handler)
    threading.excepthook = _thread_failed
    try:
        yield
    finally:
        threading.excepthook = threading.__excepthook__
        logging.getLogger().removeHandler(handler)
        handler.close()


def _thread_failed(args):
    log.critical("thread failed thread=%s", args.thread and args.thread.name,
                 exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


def main(argv=None):
    """Run the command line *argv* (default: the process's own); returns the exit status."""
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.status
    if options.help or options.version:
        print(usage() if options.help else f"raftd {__version__}")
        return 0
    # Until the server has handlers of its own, SIGTERM ends the start as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _logging(options):
            return _serve(options)
    except KeyboardInterrupt:
        return 0  # asked to stop before the server had begun
    except Exception as error:
        print(f"raftd: {_one_line(error)}", file=sys.stderr)
        if options.debug:
            traceback.print_exception(error)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(options):
    from raftd.server import run  # here, so that -help and a wrong flag need not wait for Flask

    return run(options)


def _one_line(error):
    text = " ".join(str(error).split())
    if isinstance(error, (StartupError, RaftdError)):
        return text
    return f"{type(error).__name__}: {text}"
