"""The command line: what each argv means, what it prints, and its exit status."""

import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from raftd import __version__, cli
from raftd.config import Settings
from raftd.errors import NotLeader, StartupError

TOP = Path(__file__).resolve().parent.parent

# argv, and what differs in its Options from those of "PATH" alone
UNDERSTOOD = [
    ("PATH", {}),
    ("-p 4002 PATH", {"port": 4002}),
    ("-p=4002 PATH", {"port": 4002}),
    ("--p 4002 PATH", {"port": 4002}),
    ("--p=4002 PATH", {"port": 4002}),
    ("-p 0 PATH", {"port": 0}),
    ("-p 65535 PATH", {"port": 65535}),
    ("-p +4002 PATH", {"port": 4002}),
    ("-p 1 -p 2 --p=3 PATH", {"port": 3}),
    ("-h localhost PATH", {}),
    ("-h LocalHost PATH", {"host": "LocalHost"}),
    ("-h n1.example.org PATH", {"host": "n1.example.org", "bind": "0.0.0.0"}),
    ("-h n_1 PATH", {"host": "n_1", "bind": "0.0.0.0"}),
    ("-h 10.0.0.1 PATH", {"host": "10.0.0.1", "bind": "0.0.0.0"}),
    ("-h 127.0.0.2 PATH", {"host": "127.0.0.2", "bind": "127.0.0.2"}),
    ("-h ::1 PATH", {"host": "[::1]", "bind": "::1"}),
    ("-h [::1] PATH", {"host": "[::1]", "bind": "::1"}),
    ("-h 2001:db8::7 PATH", {"host": "[2001:db8::7]", "bind": "::"}),
    ("-bind 10.0.0.1 PATH", {"bind": "10.0.0.1"}),
    ("-bind 0.0.0.0 -h 127.0.0.1 PATH", {"host": "127.0.0.1", "bind": "0.0.0.0"}),
    ("-bind [::] PATH", {"bind": "::"}),
    ("-bind eth0.example.org PATH", {"bind": "eth0.example.org"}),
    ("-join localhost:4001 PATH", {"join": ("localhost:4001",)}),
    ("-join=a:1,b:2,[::1]:3 PATH", {"join": ("a:1", "b:2", "[::1]:3")}),
    ("-join http://a:1/,http://b:2 PATH", {"join": ("a:1", "b:2")}),
    ("-join a:1,b:2,a:1 PATH", {"join": ("a:1", "b:2")}),
    ("-join a:1 -join b:2 PATH", {"join": ("b:2",)}),
    ("-join= PATH", {}),
    ("-name n1 PATH", {"name": "n1"}),
    (f"-name {'n' * 64} PATH", {"name": "n" * 64}),
    ("-name A-z_0.9 PATH", {"name": "A-z_0.9"}),
    ("-v PATH", {"v": True}),
    ("--v PATH", {"v": True}),
    *((f"-v={text} PATH", {"v": True}) for text in ("1", "t", "T", "true", "TRUE", "True")),
    *((f"-v={text} PATH", {}) for text in ("0", "f", "F", "false", "FALSE", "False")),
    ("-v -v=false PATH", {}),
    ("-v -debug -trace PATH", {"v": True, "debug": True, "trace": True}),
    ("-heartbeat 50ms PATH", {"settings": Settings(heartbeat_seconds=0.05)}),
    ("-heartbeat 0.5s -election-timeout 1m PATH", {"settings": Settings(
        heartbeat_seconds=0.5, election_timeout_seconds=60, rpc_timeout_seconds=30)}),
    ("-election-timeout 1s PATH", {"settings": Settings(election_timeout_seconds=1, rpc_timeout_seconds=0.5)}),
    ("-election-timeout 200ms PATH", {"settings": Settings(election_timeout_seconds=0.2, rpc_timeout_seconds=0.5 * 0.2)}),
    ("-max-value 1000 PATH", {"settings": Settings(max_value_bytes=1000)}),
    ("-max-value 7B PATH", {"settings": Settings(max_value_bytes=7)}),
    ("-max-value 512KiB PATH", {"settings": Settings(max_value_bytes=512 * 1024)}),
    ("-max-value 32MiB PATH", {"settings": Settings(max_value_bytes=32 << 20)}),
    ("-- PATH", {}),
    ("-v -- -p", {"v": True, "path": "-p"}),
    ("-", {"path": "-"}),
    ("-version=false PATH", {}),
]

# argv, the first line on stderr
REFUSED = [
    ("-bogus PATH", "flag provided but not defined: -bogus"),
    ("--bogus=1 PATH", "flag provided but not defined: -bogus"),
    ("-bogus", "flag provided but not defined: -bogus"),
    ("-P 4001 PATH", "flag provided but not defined: -P"),
    ("-p4001 PATH", "flag provided but not defined: -p4001"),
    ("-vdebug PATH", "flag provided but not defined: -vdebug"),
    ("---p 1 PATH", "bad flag syntax: ---p"),
    ("-=1 PATH", "bad flag syntax: -=1"),
    ("--=1 PATH", "bad flag syntax: --=1"),
    ("-p", "flag needs an argument: -p"),
    ("-h", "flag needs an argument: -h"),
    ("-v -join", "flag needs an argument: -join"),
    ("-p abc PATH", 'invalid value "abc" for flag -p: parse error'),
    ("-p= PATH", 'invalid value "" for flag -p: parse error'),
    ("-p 40.1 PATH", 'invalid value "40.1" for flag -p: parse error'),
    ("-p 04001 PATH", 'invalid value "04001" for flag -p: parse error'),
    ("-p -v PATH", 'invalid value "-v" for flag -p: parse error'),
    ("-p abc -p 4001 PATH", 'invalid value "abc" for flag -p: parse error'),
    ("-p 65536 PATH", 'invalid value "65536" for flag -p: value out of range'),
    ("-p -1 PATH", 'invalid value "-1" for flag -p: value out of range'),
    (f"-p {'9' * 5000} PATH", f'invalid value "{"9" * 5000}" for flag -p: value out of range'),
    ('-p a"b PATH', r'invalid value "a\"b" for flag -p: parse error'),
    ("-v=maybe PATH", 'invalid boolean value "maybe" for -v: parse error'),
    ("-v= PATH", 'invalid boolean value "" for -v: parse error'),
    ("-h= PATH", 'invalid value "" for flag -h: not a host name or an IP address'),
    ("-h -help PATH", 'invalid value "-help" for flag -h: not a host name or an IP address'),
    ("-h localhost:4001 PATH", 'invalid value "localhost:4001" for flag -h: not a host name or an IP address'),
    ("-h http://a PATH", 'invalid value "http://a" for flag -h: not a host name or an IP address'),
    ("-h 300.1.1.1 PATH", 'invalid value "300.1.1.1" for flag -h: not a host name or an IP address'),
    ("-h 0.0.0.0 PATH", 'invalid value "0.0.0.0" for flag -h: others cannot reach a node by this address; '
                        'name the host here, and use -bind 0.0.0.0'),
    ("-h fe80::1%eth0 PATH",
     'invalid value "fe80::1%eth0" for flag -h: an IPv6 address with a zone has no meaning on other hosts'),
    ("-bind a/b PATH", 'invalid value "a/b" for flag -bind: not a host name or an IP address'),
    *((f"-join {text} PATH", f'invalid value "{text}" for flag -join: want HOST:PORT[,HOST:PORT...]')
      for text in ("localhost", ":4001", "a:", "a:0", "a:65536", "a:b", "a:1,", ",", "a:1,,b:2", "https://a:1", "a:1/x",
                   "::1:4001", "-p", "me@a:1", "http://")),
    ("-name= PATH", """invalid value "" for flag -name: want 1 to 64 letters, digits, '.', '_' or '-'"""),
    *((f"-name {text} PATH", f"""invalid value "{text}" for flag -name: want 1 to 64 letters, digits, '.', '_' or '-'""")
      for text in ("a/b", "n" * 65, "é", "..", ".")),
    *((f"-heartbeat {text} PATH", f'invalid value "{text}" for flag -heartbeat: parse error')
      for text in ("50", "ms", "-1s", "1h5")),
    ("-heartbeat 0s PATH", 'invalid value "0s" for flag -heartbeat: value out of range'),
    ("-election-timeout 61m PATH", 'invalid value "61m" for flag -election-timeout: value out of range'),
    ("-election-timeout abc PATH", 'invalid value "abc" for flag -election-timeout: parse error'),
    ("-heartbeat 300ms PATH",
     "the heartbeat must be at most half of the election timeout: -heartbeat 300ms -election-timeout 500ms"),
    ("-election-timeout 150ms PATH",
     "the heartbeat must be at most half of the election timeout: -heartbeat 100ms -election-timeout 150ms"),
    *((f"-max-value {text} PATH", f'invalid value "{text}" for flag -max-value: parse error')
      for text in ("1MB", "-1", "MiB", "1.5MiB")),
    ("-max-value 0 PATH", 'invalid value "0" for flag -max-value: value out of range'),
    ("-max-value 33MiB PATH", 'invalid value "33MiB" for flag -max-value: value out of range'),
    ("PATH -p 4001", "unexpected words after the data path (flags go before it): -p 4001"),
    ("-v true PATH", "unexpected words after the data path (flags go before it): PATH"),
]


@pytest.mark.parametrize(("argv", "differs"), UNDERSTOOD, ids=[argv[:40] for argv, _ in UNDERSTOOD])
def test_understood(argv, differs):
    assert cli.parse(argv.split()) == cli.Options(**{"path": "PATH"} | differs)


@pytest.mark.parametrize(("argv", "line"), REFUSED, ids=[argv[:40] for argv, _ in REFUSED])
def test_refused_with_one_line_and_the_usage(argv, line, capsys):
    assert cli.main(argv.split()) == 2
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", f"{line}\n{cli.usage()}\n")


def test_defaults_are_those_of_the_contract():
    assert cli.parse(["PATH"]) == cli.Options(
        path="PATH", host="localhost", port=4001, bind="127.0.0.1", join=(), name=None, v=False, debug=False, trace=False,
        settings=Settings(), help=False, version=False)


def test_path_may_have_spaces_and_flags_stop_there():
    assert cli.parse(["-v", "my data"]).path == "my data"


@pytest.mark.parametrize("argv", [[], ["-v"], ["--"], ["-p", "1"], [""]])
def test_no_path(argv, capsys):
    assert cli.main(argv) == 1
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", f"{cli.usage()}\nData path argument required\n")


@pytest.mark.parametrize("argv", ["-help", "--help", "-help=true", "-p 1 -help", "-help -bogus", "-help PATH", "-version -help"])
def test_help(argv, capsys):
    assert cli.main(argv.split()) == 0
    assert capsys.readouterr() == (f"{cli.usage()}\n", "")


@pytest.mark.parametrize("argv", ["-version", "--version", "-version PATH", "-p 1 -version"])
def test_version(argv, capsys):
    assert cli.main(argv.split()) == 0
    assert capsys.readouterr() == (f"raftd {__version__}\n", "")


def test_usage_is_complete():
    shown = re.findall(r"^  -(\S+)", cli.usage(), re.MULTILINE)
    assert shown == ["h", "p", "join", "bind", "name", "heartbeat", "election-timeout", "max-value", "v", "debug", "trace",
                     "help", "version"]
    for default in ("default localhost", "default 4001", "default 100ms", "default 500ms", "default 1MiB"):
        assert default in cli.usage()


# What main makes of the server's end, and the log


@pytest.fixture
def serve(monkeypatch):
    """Let *run* stand for the server: ``serve(run, "-v")`` is the exit status of ``raftd -v PATH``."""
    def serve(run, *flags):
        monkeypatch.setitem(sys.modules, "raftd.server", types.SimpleNamespace(run=run))
        return cli.main([*flags, "PATH"])
    return serve


def failing_with(error):
    def run(options):
        raise error
    return run


def test_server_gets_the_options_and_gives_the_status(serve):
    seen = []
    assert serve(lambda options: seen.append(options) or 0, "-p", "0") == 0
    assert seen == [cli.Options(path="PATH", port=0)]
    assert serve(lambda options: 3) == 3


@pytest.mark.parametrize(("error", "line"), [
    (StartupError("port 4001 is in use"), "raftd: port 4001 is in use\n"),
    (StartupError("two\n lines"), "raftd: two lines\n"),
    (NotLeader(), "raftd: raft.Server: Not current leader\n"),
    (PermissionError(13, "Permission denied", "/x"), "raftd: PermissionError: [Errno 13] Permission denied: '/x'\n"),
    (ZeroDivisionError("what"), "raftd: ZeroDivisionError: what\n"),
])
def test_failure_is_one_line(serve, capfd, error, line):
    assert serve(failing_with(error)) == 1
    assert capfd.readouterr() == ("", line)


def test_traceback_only_with_debug(serve, capfd):
    assert serve(failing_with(ZeroDivisionError("what")), "-debug") == 1
    seen = capfd.readouterr().err
    assert seen.startswith("raftd: ZeroDivisionError: what\nTraceback")


def test_missing_dependency_is_one_line(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "raftd.server", None)
    assert cli.main(["PATH"]) == 1
    seen = capfd.readouterr().err
    assert seen.startswith("raftd: ModuleNotFoundError: ") and seen.count("\n") == 1


def test_sigterm_before_the_server_listens_for_it_is_a_clean_end(serve):
    def handler(*_):
        pytest.fail("it was called")
    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert serve(lambda options: os.kill(os.getpid(), signal.SIGTERM)) == 0
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def log_at_each_level(options):
    for name in ("raftd.server", "raftd.node", "waitress", "waitress.queue", "another"):
        for level in (cli.TRACE, logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "%s", name)
    return 0


@pytest.mark.parametrize(("flags", "lowest"), [
    ([], {"raftd.server": "INFO", "raftd.node": "INFO", "waitress": "WARNING", "another": "WARNING"}),
    (["-v"], {"raftd.server": "DEBUG", "raftd.node": "INFO", "waitress": "INFO", "waitress.queue": "INFO", "another": "WARNING"}),
    (["-debug"],
     {"raftd.server": "DEBUG", "raftd.node": "DEBUG", "waitress": "INFO", "waitress.queue": "INFO", "another": "WARNING"}),
    (["-v", "-trace"],
     {"raftd.server": "TRACE", "raftd.node": "TRACE", "waitress": "INFO", "waitress.queue": "INFO", "another": "WARNING"}),
])
def test_what_is_logged(serve, capfd, flags, lowest):
    assert serve(log_at_each_level, *flags) == 0
    seen = capfd.readouterr()
    lines = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (\w+) +(\S+)$", seen.err, re.MULTILINE)
    first = {}
    for level, name in lines:
        first.setdefault(name, level)
    assert (seen.out, first) == ("", lowest)
    assert len(lines) == seen.err.count("\n")


@pytest.mark.parametrize(("flags", "expected"), [([], False), (["-debug"], True)])
def test_failing_thread_is_told_without_a_traceback(serve, capfd, flags, expected):
    def run(options):
        thread = threading.Thread(target=lambda: 1 / 0, name="applier")
        thread.start()
        thread.join()
        return 1
    assert serve(run, *flags) == 1
    seen = capfd.readouterr().err
    assert "CRITICAL thread failed thread=applier" in seen and "ZeroDivisionError: division by zero\n" in seen
    assert ("Traceback" in seen) is expected


def test_log_ends_before_the_last_line(serve, capfd):
    def run(options):
        for number in range(1000):
            logging.getLogger("raftd.server").info("line %d", number)
        raise StartupError("the end")
    assert serve(run) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[-2].endswith("line 999") and lines[-1] == "raftd: the end" and len(lines) == 1001
    assert "log-printer" not in [thread.name for thread in threading.enumerate()]


STUFFED = """
import logging, sys, types
from raftd import cli
def run(options):
    for number in range(30_000):
        logging.getLogger("raftd.server").info("line %d %s", number, "x" * 100)
    print("served", flush=True)
    sys.stdin.readline()
    logging.getLogger("raftd.server").info("the last one")
    return 0
sys.modules["raftd.server"] = types.SimpleNamespace(run=run)
sys.exit(cli.main(["PATH"]))
"""


@pytest.fixture
def stuffed():
    """A raftd that has logged more than its stderr takes, and has gone on all the same."""
    with subprocess.Popen([sys.executable, "-c", STUFFED], cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        try:
            assert process.stdout.readline() == "served\n", "it waits for a reader of its log"
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def test_stderr_that_nobody_reads_stops_nothing_not_even_the_end(stuffed):
    stuffed.stdin.close()
    assert stuffed.wait(20) == 0


def test_lost_lines_are_counted(stuffed):
    for _ in range(cli.StderrLog.MAX_WAITING_LINES):
        stuffed.stderr.readline()
    fcntl.fcntl(stuffed.stderr, fcntl.F_SETPIPE_SZ, 1 << 17)  # what is left has room there, however late it is read
    stuffed.stdin.close()
    rest = stuffed.stderr.read()
    lost = [int(count) for count in re.findall(r"^\((\d+) lines of the log were lost", rest, re.MULTILINE)]
    assert lost and sum(lost) + cli.StderrLog.MAX_WAITING_LINES + len(re.findall(r"INFO +line", rest)) == 30_000
    assert rest.endswith("the last one\n")


# The programs


@pytest.mark.parametrize("command", [["bin/raftd"], ["-m", "raftd"]])
def test_programs(command):
    done = subprocess.run([sys.executable, *command, "-version"], cwd=TOP, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"raftd {__version__}\n", "")


def test_program_works_through_a_link_from_anywhere(tmp_path):
    (tmp_path / "raftd").symlink_to(TOP / "bin/raftd")
    done = subprocess.run([sys.executable, "raftd"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and done.stderr.endswith("\nData path argument required\n")


def test_program_without_dependencies_says_what_to_do(tmp_path):
    """A checkout without .venv, and a Python without site-packages."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/raftd").write_text((TOP / "bin/raftd").read_text())
    done = subprocess.run([sys.executable, "-S", "bin/raftd", "PATH"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stderr.startswith("raftd: needs Python 3.11 with flask and waitress") and done.stderr.count("\n") == 1


def test_program_takes_the_python_of_venv(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/raftd").write_text((TOP / "bin/raftd").read_text())
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / ".venv/bin/python").chmod(0o755)
    done = subprocess.run([sys.executable, "-S", "bin/raftd", "-v", "my data"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=20)
    assert done.stdout == f"{tmp_path}/bin/raftd -v my data\n"
